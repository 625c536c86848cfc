"""Rows of an index without their vectors: id, version and fields.

`Entries` are a few rows in lists; `Rows` are those of a base, in arrays: with ten bytes an id, a million rows
take 30 bytes each and their fields, where a list of strings and a dict from id to row would take more than 200.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.rows.columns import Columns, Short, sorted_places
from indexer.rows.id_cells import Ids
from indexer.rows.packed_fields import PackedFields
from indexer.types import Floats, Ints, hash64

Codes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Entries:
    """Rows in lists."""

    ids: list[str]
    versions: list[int]
    vectors_MD: Floats
    fields: PackedFields

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Rows:
    """Immutable. ``order`` sorts the rows by the hash of their id, ``hashes`` are sorted.

    An id may have several rows, of which the last is its newest: a base keeps dead rows until it is trained again.
    """

    ids: Ids
    versions: Ints
    hashes: Codes
    order: Short
    columns: Columns

    @classmethod
    def of(cls, entries: Entries) -> Self:
        """From rows in lists, in their order."""
        versions = np.array(entries.versions, dtype=np.int64)
        return cls._of(Ids.of(entries.ids), versions, hashes_of(entries.ids), Columns.of(entries.fields))

    @classmethod
    def _of(cls, ids: Ids, versions: Ints, hashes_M: Codes, columns: Columns) -> Self:
        order = sorted_places(hashes_M)
        return cls(ids, versions, hashes_M[order], order, columns)

    def __len__(self) -> int:
        return len(self.versions)

    def newest(self, id_: str) -> int:
        """The last row of an id, -1 if it has none."""
        hash_ = np.uint64(hash64(id_))
        place = int(np.searchsorted(self.hashes, hash_, side="right"))
        while place and self.hashes[place - 1] == hash_:
            place -= 1
            row = int(self.order[place])
            if self.ids[row] == id_:
                return row
        return -1

    def taken(self, rows: Ints) -> Self:
        """These rows alone, in this order."""
        return self._of(self.ids.taken(rows), self.versions[rows], self._hashes()[rows], self.columns.taken(rows))

    def with_fields_of(self, rows: Ints) -> Self:
        """A copy with the fields of these rows alone."""
        return replace(self, columns=self.columns.of_rows(rows))

    def extended(self, entries: Entries) -> Self:
        """A copy with more rows after these."""
        return self._of(
            self.ids.extended(entries.ids),
            np.concatenate([self.versions, np.array(entries.versions, dtype=np.int64)]),
            np.concatenate([self._hashes(), hashes_of(entries.ids)]),
            self.columns.extended(entries.fields),
        )

    def _hashes(self) -> Codes:
        hashes_M = np.empty(len(self), dtype=np.uint64)
        hashes_M[self.order] = self.hashes
        return hashes_M


def hashes_of(ids: Sequence[str]) -> Codes:
    """The 64-bit hash of each id."""
    return np.array([hash64(id_) for id_ in ids], dtype=np.uint64)
