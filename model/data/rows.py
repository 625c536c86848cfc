"""Rows of data files, Parquet or JSON lines, one after the other, and their fields by type.

A row is named in errors as a person would look it up: the 1-based line of a ``.jsonl`` file, the 0-based row
of a ``.parquet`` file. Unknown columns are ignored; null and NaN mean "not given". A column may be written in another
case (``Note_ID``), as long as it is clear which one it is.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from model.data.files import DataError, labels, text_lines
from model.progress import bar

_ROWS_PER_BATCH = 8192

Row = tuple[str, Mapping[str, Any]]


def load_rows(files: Sequence[Path], columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    """Every row of some files as (place, fields), loaded batch by batch. Raises DataError."""
    for file, label in zip(files, labels(files), strict=True):
        if file.suffix == ".parquet":
            yield from parquet_rows(file, label, columns, required)
        else:
            yield from jsonl_rows(file, label, columns, required)


def jsonl_rows(path: Path, label: str, columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    """Every line that is not blank as (place, fields)."""
    known = frozenset(columns)
    for where, line in text_lines(path, label):
        row = json_object(line, where)
        if not row.keys() <= known:
            row |= {column: row[name] for column, name in column_names(where, list(row), columns).items()}
        for name in required:
            if name not in row:
                raise DataError(f"{where}: {name} is missing; it holds {listed(row)}")
        yield where, row


def parquet_rows(path: Path, label: str, columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    """Every row of a Parquet file as (place, fields)."""
    with open_parquet(path, label) as file, bar(f"load {label}", file.metadata.num_rows, "rows") as progress:
        names = present_columns(label, file.schema_arrow.names, columns, required)
        start = 0
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=list(names.values())):
            batch = pa.record_batch([batch.column(name) for name in names.values()], names=list(names))
            for index, row in enumerate(batch.to_pylist(), start=start):
                yield f"{label} row {index}", row
            start += len(batch)
            progress.update(len(batch))


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """A line's fields. Raises DataError."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row = _with_nan(line)
        if row is None:
            raise DataError(f"{where}: not valid JSON: {error.msg} (character {error.colno})") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, got {kind_of(row)}")
    return row


def _with_nan(line: bytes) -> Any:
    """A line with NaN, which Python writes and JSON does not know; None if that is not what is wrong with it."""
    try:
        return json.loads(line) if b"NaN" in line else None
    except (ValueError, RecursionError):
        return None


@contextmanager
def open_parquet(path: Path, label: str, **options: Any) -> Iterator[pq.ParquetFile]:
    """The open file; errors of Arrow become a DataError."""
    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: dates beyond Python's
        reason = str(error).splitlines()[0]
        raise DataError(f"{label} cannot be read as Parquet: {reason}") from error


def present_columns(
    label: str, found: Sequence[str], columns: Sequence[str], required: Iterable[str]
) -> dict[str, str]:
    """What the file calls those ``columns`` that it has. Raises DataError when a required one is missing."""
    names = column_names(label, found, columns)
    for name in required:
        if name not in names:
            raise DataError(f"{label}: no column {name}; it holds {listed(found)}")
    return names


def column_names(where: str, found: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """What each of ``columns`` that is there is called: its own name, else one that differs in case or outer blanks.

    Raises DataError if there are two of them.
    """
    names = {}
    for column in columns:
        alike = [name for name in found if name == column]
        alike = alike or [name for name in found if name.strip().lower() == column]
        if len(alike) > 1:
            raise DataError(f"{where}: {column} is there twice, as {listed(alike)}")
        if alike:
            names[column] = alike[0]
    return names


def given(row: Mapping[str, Any], name: str) -> Any:
    """The field's value, None when it is missing, null or NaN."""
    value = row.get(name)
    return None if isinstance(value, float | Decimal) and math.isnan(value) else value


def text(row: Mapping[str, Any], name: str, where: str) -> str | None:
    """A string, None where it is not given. Raises DataError."""
    value = given(row, name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {name} must be a string, got {kind_of(value)}")
    return value


def identifier(row: Mapping[str, Any], name: str, where: str) -> str:
    """A string that is not empty. Raises DataError."""
    value = text(row, name, where)
    if not value:
        raise DataError(f"{where}: {name} must not be empty")
    return value


def strings(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A list of strings, empty where it is not given. Raises DataError."""
    value = given(row, name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} must be a list of strings, got {kind_of(value)}")
    for item in value:
        if not isinstance(item, str):
            raise DataError(f"{where}: {name} must be a list of strings, got {kind_of(item)} in it")
    return tuple(value)


def number(row: Mapping[str, Any], name: str, where: str) -> float:
    """A number, given in any case. Raises DataError."""
    value = given(row, name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"{where}: {name} must be a number, got {kind_of(value)}")
    return float(value)


def whole(row: Mapping[str, Any], name: str, where: str) -> int | None:
    """A whole number, or one stored as a float, as in columns with NaN. Raises DataError."""
    value = given(row, name)
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise DataError(f"{where}: {name} must be a whole number, got {kind_of(value)}")
    if value is not None and not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: {name} must fit into 64 bits")
    return value


def count(row: Mapping[str, Any], name: str, where: str) -> int:
    """A whole number that is not negative, 0 where it is not given. Raises DataError."""
    value = whole(row, name, where) or 0
    if value < 0:
        raise DataError(f"{where}: {name} must not be negative, got {value}")
    return value


def kind_of(value: object) -> str:
    """The name of a value's type in JSON, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float() | Decimal():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def shown(value: object) -> str:
    """A value as it may stand in a one-line message."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."


def listed(names: Iterable[str]) -> str:
    """Names as they stand in a message."""
    return ", ".join(names) or "nothing"
