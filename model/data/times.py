"""The times of events: numbers in any one unit, or dates, which become seconds since 1970."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.data.files import DataError
from model.data.rows import given, kind_of, shown

Times = NDArray[np.int64] | NDArray[np.float64]

# The last second of the year 9999: larger numbers count milliseconds or less.
MOST_SECONDS = 253_402_300_799
_ISO_8601 = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(?P<second>:\d\d)?.*)?", re.ASCII | re.DOTALL)


@dataclass(slots=True)
class Unit:
    """What a log counts its times in, as far as it was loaded: where its first date and its first large number are."""

    date: str = ""
    large: str = ""

    def check(self) -> None:
        """Raises DataError if dates stand beside numbers that are no seconds: nobody knows the order of the two."""
        if self.date and self.large:
            raise DataError(
                f"{self.large}: ts is no time in seconds since 1970, but {self.date}: ts is a date; a log has one unit"
            )


def seconds(text: str) -> float:
    """An ISO 8601 time as seconds since 1970, to the microsecond; UTC if it has no offset.

    A leap second (23:59:60 UTC at the end of a month) is the same as the next one, as in POSIX.

    Raises:
        ValueError: if it is none.
    """
    text = text.upper()
    match = _ISO_8601.fullmatch(text)
    if not match:
        raise ValueError("not an ISO 8601 time")
    leaps = match["second"] == ":60"
    time = datetime.fromisoformat(text.replace(":60", ":59", 1) if leaps else text)
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if leaps:
        try:
            time = (time + timedelta(seconds=1)).astimezone(UTC)
        except OverflowError:
            raise ValueError("after the year 9999") from None
        if (time.day, time.hour, time.minute, time.second) != (1, 0, 0, 0):
            raise ValueError("not a leap second")
    return time.timestamp()


def in_unit_of(newest: float, time: float) -> float:
    """A time in seconds since 1970, as dates are, in the unit of a log whose largest time is ``newest``.

    Numbers that no year reaches in seconds count milliseconds or microseconds; a time of that size stays as it is.
    """
    if time > MOST_SECONDS or newest <= MOST_SECONDS:
        return time
    return time * (1e6 if newest > 1000 * MOST_SECONDS else 1e3)


def event_time(row: Mapping[str, Any], where: str, unit: Unit) -> int | float | None:
    """A row's ``ts``; None where it is not given. Raises DataError."""
    value = given(row, "ts")
    if isinstance(value, str):
        unit.date = unit.date or where
        try:
            value = seconds(value)
        except ValueError:
            raise DataError(f"{where}: ts must be a number or an ISO 8601 time, got {shown(value)}") from None
    elif value is not None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise DataError(f"{where}: ts must be a number or an ISO 8601 time, got {kind_of(value)}")
        if not -(2**63) <= value < 2**63:
            raise DataError(f"{where}: ts must fit into 64 bits")
        if abs(value) > MOST_SECONDS:
            unit.large = unit.large or where
    return int(value) if isinstance(value, float) and value.is_integer() else value


def column_times(column: pa.ChunkedArray, label: str, unit: Unit) -> tuple[Times, NDArray[np.bool_]]:
    """A column's times with 0 for null and NaN, shape (E,), and which of them are given. Raises DataError."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return np.zeros(len(column), dtype=np.int64), np.zeros(len(column), dtype=np.bool_)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        rows = enumerate(column.to_pylist())
        column = pa.array([event_time({"ts": text}, f"{label} row {row}", unit) for row, text in rows], pa.float64())
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        if column.null_count < len(column):
            unit.date = unit.date or label
        column = _since_1970(column, label)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    elif not pa.types.is_integer(kind):
        raise DataError(f"{label}: ts must be a column of numbers or of times, got {kind}")
    numbers = pc.fill_null(column, 0).to_numpy()
    size = np.abs(numbers.astype(np.float64))
    if (fits := size < 2**63).all():
        if (size > MOST_SECONDS).any():
            unit.large = unit.large or f"{label} row {int(np.argmax(size > MOST_SECONDS))}"
        return _whole(numbers), np.asarray(column.is_valid())
    raise DataError(f"{label} row {int(np.argmin(fits))}: ts must fit into 64 bits")


def _since_1970(column: pa.ChunkedArray, label: str) -> pa.ChunkedArray:
    try:
        # Microseconds: nanoseconds of 64 bits end in the year 2262. Not safe: they lose the digits beyond.
        micros = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"{label}: ts cannot be loaded: {str(error).splitlines()[0]}") from None
    return pc.divide(micros.cast(pa.int64()).cast(pa.float64(), safe=False), 1e6)


def _whole(numbers: NDArray[Any]) -> Times:
    """Whole numbers as such: floats are exact up to 2**53 alone."""
    is_whole = np.issubdtype(numbers.dtype, np.integer) or bool((numbers == np.floor(numbers)).all())
    return numbers.astype(np.int64) if is_whole else numbers.astype(np.float64)
