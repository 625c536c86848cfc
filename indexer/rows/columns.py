"""The fields of a base's rows, by value: a filter reads only the rows that a condition names.

A text, an element of a list and a truth take 4 bytes and 12 for each different one, a number at most 12. What a row
does not have takes nothing, so that there may be many names which few rows have.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from indexer.filters.expression import And, Exists, Expression, Not, OneOf, Or, Ordered
from indexer.low_priority import run_low_priority
from indexer.rows import bitmap
from indexer.rows.bitmap import Bits, Flags
from indexer.rows.liveness import Selection
from indexer.types import Fields, Ints, hash64

Short = NDArray[np.uint32]
# Sorted values of one field: hashes of texts, or numbers.
Values = NDArray[Any]

SORTED_AT_ONCE = 10_000
_NO_ROWS: Short = np.empty(0, dtype=np.uint32)
# Filters whose rows are kept: for a million rows 4 MB, and at most 16 MB for the numbers of few rows.
KEPT_FILTERS = 32
_FEW = 1 / 8


@dataclass(frozen=True, slots=True)
class Column:
    """Rows by the value of one field. The rows of ``values[i]`` are ``rows[starts[i] : starts[i + 1]]``.

    Without ``starts``, where most values differ, each row has its own value: ``values`` and ``rows`` are as long.
    """

    values: Values
    starts: Short
    rows: Short

    @classmethod
    def of(cls, values_E: Values, rows_E: NDArray[Any]) -> Self:
        """From the value of each row; a row may have several."""
        order = sorted_places(values_E)
        return cls._of_sorted(values_E[order], rows_E[order].astype(np.uint32))

    @classmethod
    def _of_sorted(cls, values_E: Values, rows_E: Short) -> Self:
        is_first_E = np.ones(len(values_E), dtype=np.bool_)
        is_first_E[1:] = values_E[1:] != values_E[:-1]
        first = np.flatnonzero(is_first_E)
        if 12 * len(first) > 8 * len(values_E):
            return cls(values_E, _NO_ROWS, rows_E)
        return cls(values_E[first], np.append(first, len(values_E)).astype(np.uint32), rows_E)

    def each(self) -> Values:
        """The value of each of ``rows``."""
        return np.repeat(self.values, np.diff(self.starts)) if len(self.starts) else self.values

    def taken(self, place_of_row: Ints) -> Self:
        """With other numbers of the rows, without those whose number is -1."""
        rows_E = place_of_row[self.rows]
        is_kept_E = rows_E >= 0
        return self._of_sorted(self.each()[is_kept_E], rows_E[is_kept_E].astype(np.uint32))

    def moved(self, first: int) -> Self:
        """With the rows numbered from ``first`` on."""
        return replace(self, rows=self.rows + np.uint32(first))

    def extended(self, other: "Column") -> Self:
        """A copy with the rows of another column."""
        values_E = np.concatenate([self.each(), other.each()])
        return self.of(values_E, np.concatenate([self.rows, other.rows]))

    def equal(self, value: Any) -> Short:
        """The rows with this value."""
        return self._between(self._place(value, "left"), self._place(value, "right"))

    def within(self, bounds: Iterable[Ordered]) -> Short:
        """The rows whose value is within all of these bounds."""
        start, end = 0, len(self.values)
        for bound in bounds:
            place = self._place(bound.value, "left" if bound.order in ("<", ">=") else "right")
            start, end = (start, min(end, place)) if bound.order[0] == "<" else (max(start, place), end)
        return self._between(start, max(start, end))

    def _place(self, value: Any, side: Any) -> int:
        return int(self.values.searchsorted(self.values.dtype.type(value), side))

    def _between(self, start: int, end: int) -> Short:
        return self.rows[self.starts[start] : self.starts[end]] if len(self.starts) else self.rows[start:end]


class _Passing:
    """The rows of a base that pass a filter, and those of them that were shown when it was last asked for.

    If ``within`` is given, they are all among its rows.
    """

    def __init__(self, bits: Bits, within: Short | None) -> None:
        self.bits = bits
        self._within = within
        self._last: tuple[Bits | None, Selection] = None, Selection(0)

    def among(self, shown: Bits) -> Selection:
        last, selection = self._last
        if last is not shown:
            selection = Selection.of(self.bits & shown, self._within)
            self._last = shown, selection
        return selection


class Columns:
    """Immutable: the fields of ``total`` rows. Texts and truths by their `code`, and numbers, by name."""

    def __init__(self, total: int, texts: Mapping[str, Column], numbers: Mapping[str, Column]) -> None:
        self.total = total
        self.texts = texts
        self.numbers = numbers
        self._kept = lru_cache(KEPT_FILTERS)(self._evaluated)

    @classmethod
    def of(cls, fields_M: Iterable[Fields]) -> Self:
        """From the fields of each row."""
        texts: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        numbers: dict[str, tuple[list[float], list[int]]] = defaultdict(lambda: ([], []))
        coded = lru_cache(None)(code)
        total = 0
        for row, fields in enumerate(fields_M):
            total += 1
            for name, value in fields.items():
                if isinstance(value, tuple):
                    texts[name][0].extend(map(coded, value))
                    texts[name][1].extend([row] * len(value))
                elif isinstance(value, str | bool):
                    texts[name][0].append(coded(value))
                    texts[name][1].append(row)
                else:
                    numbers[name][0].append(value)
                    numbers[name][1].append(row)
        return cls(total, _columns(texts, np.uint64), _columns(numbers, np.float64))

    def taken(self, rows: Ints) -> "Columns":
        """These rows alone, in this order."""
        place_of_row = np.full(self.total, -1)
        place_of_row[rows] = np.arange(len(rows))
        return self._renumbered(len(rows), place_of_row)

    def of_rows(self, rows: Ints) -> "Columns":
        """With nothing of any other row. Names that only those have are gone, and the rows keep their numbers."""
        place_of_row = np.full(self.total, -1)
        place_of_row[rows] = rows
        return self._renumbered(self.total, place_of_row)

    def extended(self, fields_M: Iterable[Fields]) -> "Columns":
        """A copy with more rows after these."""
        more = self.of(fields_M)

        def extended(columns: Mapping[str, Column], others: Mapping[str, Column]) -> dict[str, Column]:
            moved = {name: other.moved(self.total) for name, other in others.items()}
            both = {name: columns[name].extended(moved[name]) for name in columns.keys() & moved.keys()}
            return {**columns, **moved, **both}

        total = self.total + more.total
        return Columns(total, extended(self.texts, more.texts), extended(self.numbers, more.numbers))

    def selection(self, filter_: Expression, shown: Bits) -> Selection:
        """The rows that pass a filter, of those that are shown. Costs next to nothing when it is asked for again."""
        return self._kept(filter_).among(shown)

    def passing(self, filter_: Expression) -> Bits:
        """The rows that pass a filter, shown or not."""
        bits: Bits = self._kept(filter_).bits
        return bits

    def rows(self, condition: Expression) -> Short:
        """The rows for which one condition holds, in no order, some of them twice."""
        parts: list[Short] = []
        match condition:
            case OneOf(name, values):
                parts = [column.equal(coded) for column, coded in self._coded(name, values)]
            case Ordered(name):
                return self._within(name, [condition])
            case Exists(name):
                parts = [columns[name].rows for columns in (self.texts, self.numbers) if name in columns]
        return parts[0] if len(parts) == 1 else np.concatenate([_NO_ROWS, *parts])

    def _within(self, name: str, bounds: Sequence[Ordered]) -> Short:
        if name not in self.numbers or any(isinstance(bound.value, bool) for bound in bounds):
            return _NO_ROWS
        return self.numbers[name].within(bounds)

    def _coded(self, name: str, values: Iterable[Any]) -> Iterable[tuple[Column, Any]]:
        for value in values:
            columns = self.texts if isinstance(value, str | bool) else self.numbers
            if name in columns:
                yield columns[name], code(value) if columns is self.texts else value

    def _renumbered(self, total: int, place_of_row: Ints) -> "Columns":
        def taken(columns: Mapping[str, Column]) -> dict[str, Column]:
            fewer = {name: column.taken(place_of_row) for name, column in columns.items()}
            return {name: column for name, column in fewer.items() if len(column.rows)}

        return Columns(total, taken(self.texts), taken(self.numbers))

    def _evaluated(self, filter_: Expression) -> _Passing:
        flags, within = self._passes(filter_)
        few = within is not None and len(within) <= _FEW * self.total
        return _Passing(bitmap.packed(flags), within if few else None)

    def _passes(self, filter_: Expression) -> tuple[Flags, Short | None]:
        """Whether each row passes; and rows among which all that do are, where they cost nothing."""
        match filter_:
            case Not(operand):
                return ~self._passes(operand)[0], None
            case And(several):
                parts = list(self._each(several))
                known = [within for _, within in parts if within is not None]
                return reduce(np.logical_and, (flags for flags, _ in parts)), min(known, key=len, default=None)
            case Or(several):
                return reduce(np.logical_or, (self._passes(operand)[0] for operand in several)), None
        return self._flagged(self.rows(filter_))

    def _each(self, operands: Iterable[Expression]) -> Iterable[tuple[Flags, Short | None]]:
        """What passes each operand of AND; the bounds of one field together, between which there are few rows."""
        bounds: dict[str, list[Ordered]] = defaultdict(list)
        for operand in operands:
            if isinstance(operand, Ordered):
                bounds[operand.name].append(operand)
            else:
                yield self._passes(operand)
        for name, several in bounds.items():
            yield self._flagged(self._within(name, several))

    def _flagged(self, rows: Short) -> tuple[Flags, Short]:
        flags = np.zeros(self.total, dtype=np.bool_)
        flags[rows] = True
        return flags, rows


def code(value: str | bool) -> int:
    """The 64-bit code of a text or a truth."""
    return int(value) if isinstance(value, bool) else hash64(value)


def sorted_places(values: NDArray[Any]) -> Short:
    """The places of an array by rising value, those of one value in order."""
    if len(values) < SORTED_AT_ONCE:
        return np.argsort(values, kind="stable").astype(np.uint32)
    return run_low_priority(np.argsort, values, kind="stable").astype(np.uint32)


def _columns(elements: Mapping[str, tuple[list[Any], list[int]]], dtype: Any) -> dict[str, Column]:
    return {
        name: Column.of(np.array(values, dtype=dtype), np.array(rows, dtype=np.uint32))
        for name, (values, rows) in elements.items()
        if rows
    }
