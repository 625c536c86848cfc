"""The immutable state of an index that one search uses: a base, the published part of a delta, and the live rows.

Rows of the delta are numbered after those of the base.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from indexer.base import Base, Ranked, best, products
from indexer.filters.expression import Expression, OneOf
from indexer.rows import bitmap
from indexer.rows.bitmap import Bits, Flags, all_alive, flags, live_rows
from indexer.rows.columns import Columns
from indexer.rows.liveness import Liveness
from indexer.rows.packed_fields import HIDDEN
from indexer.rows.rows import Codes, Entries, Rows, hashes_of
from indexer.types import Change, Fields, Floats, Hits, Ints

SMALLEST_DELTA = 1024
# To extend the columns of a delta sorts them again.
FEWEST_MORE, MORE = 32, 1 / 32
# Names that the columns of a delta have at most; they start again with the next ones.
MOST_NAMES = 64
# So many rows are asked one by one in the time of the columns.
FEW = 20
_IS_HIDDEN = OneOf(HIDDEN, (True,))


class Delta:
    """Rows that are searched exactly. It only grows: a published row never changes again.

    ``newest`` maps an id to its last row, ``before`` a row to the one that its id had before, or to -1. Both may be
    ahead of the published rows. Filters find most rows in columns, which searches extend once there are enough more.
    """

    def __init__(self, entries: Entries) -> None:
        """The ids of the entries are distinct."""
        rows = len(entries)
        capacity = max(SMALLEST_DELTA, 2 * rows)
        self.ids = entries.ids
        self.versions = entries.versions
        self.fields = entries.fields
        self.newest = {id_: row for row, id_ in enumerate(entries.ids)}
        self.before = [-1] * rows
        self.vectors_MD = _grown(entries.vectors_MD, capacity)
        self._columns: tuple[frozenset[str], Columns] = frozenset(), Columns.of([])

    def append(self, change: Change, vector_D: Floats) -> None:
        """Write a row that is not published yet."""
        row = len(self.ids)
        if row == len(self.vectors_MD):
            # Readers keep the old arrays through their state.
            self.vectors_MD = _grown(self.vectors_MD, 2 * row)
        self.vectors_MD[row] = vector_D
        self.ids.append(change.id)
        self.versions.append(change.version)
        self.fields.append(change.fields, hidden=change.hidden)
        self.before.append(self.newest.get(change.id, -1))
        self.newest[change.id] = row

    def passing(self, filter_: Expression, rows: Ints) -> Flags:
        """Whether these rows, in ascending order, pass a filter."""
        columns = self._columns_of(filter_.names())
        start = int(rows.searchsorted(columns.total)) if len(rows) > FEW else 0
        flags = np.empty(len(rows), dtype=np.bool_)
        flags[:start] = bitmap.are_alive(columns.passing(filter_), rows[:start])
        flags[start:] = [filter_.matches(self.fields[row]) for row in rows[start:].tolist()]
        return flags

    def _columns_of(self, names: frozenset[str]) -> Columns:
        """Columns of these names, and of others that were asked for, of nearly all rows."""
        kept, columns = self._columns
        if not names <= kept:
            kept, columns = (kept | names if len(kept | names) <= MOST_NAMES else names), Columns.of([])
        total = len(self.fields)
        if total - columns.total >= max(FEWEST_MORE, MORE * total):
            columns = columns.extended(self._picked(kept, range(columns.total, total)))
        self._columns = kept, columns  # two searches may do so at once: one is forgotten
        return columns

    def _picked(self, names: frozenset[str], rows: Iterable[int]) -> Iterable[Fields]:
        return ({name: value for name, value in self.fields[row].items() if name in names} for row in rows)


@dataclass(frozen=True, slots=True)
class State:
    """``vectors_MD`` are those of the delta's published rows, whose liveness is ``delta_live``."""

    generation: int
    base: Base
    rows: Rows
    base_live: Liveness
    delta: Delta
    vectors_MD: Floats
    delta_live: Liveness

    @classmethod
    def of(cls, generation: int, base: Base, rows: Rows, base_alive: Bits, entries: Entries) -> Self:
        """A state whose delta holds these entries, all alive."""
        delta = Delta(entries)
        base_live = Liveness.of(base_alive, len(rows))
        return cls(
            generation=generation,
            base=base,
            rows=rows,
            base_live=base_live.hiding(bitmap.only(rows.columns.rows(_IS_HIDDEN).astype(np.int64), base_alive)),
            delta=delta,
            vectors_MD=delta.vectors_MD[: len(entries)],
            delta_live=Liveness.of(all_alive(len(delta.vectors_MD)), len(entries)).hiding(entries.fields.hidden()),
        )

    def __len__(self) -> int:
        return len(self.rows) + len(self.vectors_MD) - self.dead

    @property
    def dead(self) -> int:
        """How many rows are dead."""
        return self.base_live.dead + self.delta_live.dead

    def with_next_row(self) -> Self:
        """A copy in which the next row of the delta is published."""
        row = len(self.vectors_MD)
        live = self.delta_live.with_next()
        if HIDDEN in self.delta.fields[row]:
            live = live.hiding(np.array([row]))
        return replace(self, vectors_MD=self.delta.vectors_MD[: row + 1], delta_live=live)

    def without(self, row: int) -> Self:
        """A copy in which this row, which must be alive, is dead."""
        if row < len(self.rows):
            return replace(self, base_live=self.base_live.without(row))
        return replace(self, delta_live=self.delta_live.without(row - len(self.rows)))

    def hiding(self, ids: Iterable[str]) -> Self:
        """A copy in which the rows of these ids are in no search's hits."""
        first = len(self.rows)
        rows = np.unique([row for id_ in ids if (row := self.find(id_)) is not None]).astype(np.int64)
        base, delta = rows[rows < first], rows[rows >= first] - first
        return replace(
            self,
            base_live=self.base_live.hiding(bitmap.only(base, self.base_live.shown)),
            delta_live=self.delta_live.hiding(bitmap.only(delta, self.delta_live.shown)),
        )

    def find(self, id_: str) -> int | None:
        """The row of an id, if it is published and alive."""
        row = self.delta.newest.get(id_, -1)
        while row >= len(self.vectors_MD):
            row = self.delta.before[row]
        if row >= 0:
            return len(self.rows) + row if bitmap.is_alive(self.delta_live.alive, row) else None
        row = self.rows.newest(id_)
        return row if row >= 0 and bitmap.is_alive(self.base_live.alive, row) else None

    def version(self, row: int) -> int:
        """The version of a row."""
        first = len(self.rows)
        return int(self.rows.versions[row]) if row < first else self.delta.versions[row - first]

    def vector(self, row: int) -> Floats:
        """The vector of a row, shape (D,)."""
        first = len(self.rows)
        vector_D: Floats = self.base.vectors(np.array([row]))[0] if row < first else self.vectors_MD[row - first]
        return vector_D

    def live_base(self) -> Ints:
        """Numbers of the base's live rows."""
        return live_rows(self.base_live.alive, len(self.rows))

    def live_delta(self) -> Ints:
        """Numbers, within the delta, of its published live rows."""
        return live_rows(self.delta_live.alive, len(self.vectors_MD))

    def entries(self, delta_rows: Ints) -> Entries:
        """These rows of the delta, numbered within it."""
        return Entries(
            [self.delta.ids[row] for row in delta_rows],
            [self.delta.versions[row] for row in delta_rows],
            self.vectors_MD[delta_rows],
            self.delta.fields.taken(delta_rows),
        )

    def ids(self, rows_NK: Ints) -> list[list[str]]:
        """Ids of a matrix of rows; any id for a cell without a hit."""
        first = len(self.rows)
        if not len(self.vectors_MD) or not (in_delta_NK := rows_NK >= first).any():
            return self.rows.ids.at(rows_NK)
        ids_NK = self.rows.ids.at(np.where(in_delta_NK, -1, rows_NK))
        for query, place in np.argwhere(in_delta_NK).tolist():
            ids_NK[query][place] = self.delta.ids[rows_NK[query, place] - first]
        return ids_NK

    def newer_than(self, other: Self) -> Ints:
        """Live rows whose id the other state does not hold, or only in an older version."""
        hashes_M, versions_M, rows_M = self._live()
        others_M, others_versions_M, _ = other._live()
        if not len(others_M):
            return rows_M
        places_M = np.searchsorted(others_M, hashes_M).clip(max=len(others_M) - 1)
        is_known_M = (others_M[places_M] == hashes_M) & (others_versions_M[places_M] >= versions_M)
        newer_M: Ints = rows_M[~is_known_M]
        return newer_M

    def search(self, queries_ND: Floats, k: int, filter_: Expression | None = None) -> list[Hits]:
        """The k best shown rows of base and delta together, for each query."""
        live, columns = self.base_live, self.rows.columns
        selection = live.selection if filter_ is None else columns.selection(filter_, live.shown)
        ranked = self.base.search(queries_ND, k, selection) if selection.size else _no_rows(len(queries_ND))
        if len(self.vectors_MD):
            ranked = self._with_delta(ranked, queries_ND, k, filter_)
        scores_NK, rows_NK = ranked
        return [_hits(*row) for row in zip(self.ids(rows_NK), scores_NK.tolist(), strict=True)]

    def _live(self) -> tuple[Codes, Ints, Ints]:
        """Hash of the id, version and number of every live row, by ascending hash."""
        alive_M = flags(self.base_live.alive, len(self.rows))[self.rows.order]
        in_base, in_delta = self.rows.order[alive_M].astype(np.int64), self.live_delta()
        delta = self.entries(in_delta)
        hashes_M = np.concatenate([self.rows.hashes[alive_M], hashes_of(delta.ids)])
        versions_M = np.concatenate([self.rows.versions[in_base], np.array(delta.versions, dtype=np.int64)])
        rows_M = np.concatenate([in_base, in_delta + len(self.rows)])
        order = np.argsort(hashes_M, kind="stable")
        return hashes_M[order], versions_M[order], rows_M[order]

    def _with_delta(self, base: Ranked, queries_ND: Floats, k: int, filter_: Expression | None) -> Ranked:
        """The k best of the base's hits and the delta. Most often no row of the small delta is among them."""
        scores_NM = products(queries_ND, self.vectors_MD)
        worst_N1 = base[0][:, k - 1 : k] if base[0].shape[1] >= k else np.float32(-np.inf)
        better_NM = scores_NM > worst_N1
        if self.delta_live.selection.bits is not None:
            better_NM &= flags(self.delta_live.shown, len(self.vectors_MD))
        rows_J = np.flatnonzero(better_NM.any(axis=0))
        if filter_ is not None and len(rows_J):
            rows_J = rows_J[self.delta.passing(filter_, rows_J)]
        if not len(rows_J):
            return base
        scores_NJ = np.where(better_NM[:, rows_J], scores_NM[:, rows_J], np.float32(-np.inf))
        places_NJ = np.broadcast_to(rows_J + len(self.rows), scores_NJ.shape)
        return best(np.concatenate([base[0], scores_NJ], axis=1), np.concatenate([base[1], places_NJ], axis=1), k)


def _hits(ids: list[str], scores: list[float]) -> Hits:
    """Drops the cells without a hit."""
    if scores and scores[-1] == -math.inf:
        end = bisect_left(scores, math.inf, key=lambda score: -score)
        ids, scores = ids[:end], scores[:end]
    if scores and scores[0] > 1.0:
        # By rounding to float16, the cosine of equal vectors may be a little above 1.
        scores = [min(score, 1.0) for score in scores]
    return Hits(ids, scores)


def _no_rows(queries: int) -> Ranked:
    return np.empty((queries, 0), dtype=np.float32), np.empty((queries, 0), dtype=np.int64)


def _grown(array: NDArray[Any], capacity: int) -> NDArray[Any]:
    larger = np.empty((capacity, *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger
