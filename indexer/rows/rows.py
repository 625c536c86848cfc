"""Rows of an index without their vectors: id, version and labels.

`Entries` are a few rows in lists; `Rows` are those of a base, in arrays: with ten bytes an id, a million rows
take 38 bytes each, where a list of strings and a dict from id to row would take more than 200.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.low_priority import run_low_priority
from indexer.rows.id_cells import Ids
from indexer.types import Floats, Ints, hash64

Codes = NDArray[np.uint64]
Short = NDArray[np.uint32]

SORTED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Entries:
    """Rows in lists. ``labels_M2`` holds the codes of category and author, see `indexer.types.label`."""

    ids: list[str]
    versions: list[int]
    vectors_MD: Floats
    labels_M2: Codes

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Labels:
    """Rows grouped by a code, and within a code in order: 4 bytes a row and 12 a code."""

    codes: Codes
    starts: Short
    order: Short

    @classmethod
    def of(cls, codes_M: Codes) -> Self:
        """From the code of each row."""
        order = sorted_rows(codes_M)
        sorted_M = codes_M[order]
        is_first_M = np.ones(len(sorted_M), dtype=np.bool_)
        is_first_M[1:] = sorted_M[1:] != sorted_M[:-1]
        first = np.flatnonzero(is_first_M)
        return cls(sorted_M[first], np.append(first, len(sorted_M)).astype(np.uint32), order)

    def rows(self, code: int) -> Ints:
        """The rows of one code, ascending."""
        place = int(np.searchsorted(self.codes, np.uint64(code)))
        if place == len(self.codes) or int(self.codes[place]) != code:
            return np.empty(0, dtype=np.int64)
        return self.order[self.starts[place] : self.starts[place + 1]].astype(np.int64)

    def each(self) -> Codes:
        """The code of each row: inverse of `of`."""
        codes_M = np.empty(len(self.order), dtype=np.uint64)
        codes_M[self.order] = np.repeat(self.codes, np.diff(self.starts))
        return codes_M


@dataclass(frozen=True, slots=True)
class Rows:
    """Immutable. ``order`` sorts the rows by the hash of their id, ``hashes`` are sorted.

    An id may have several rows, of which the last is its newest: a base keeps dead rows until it is trained again.
    """

    ids: Ids
    versions: Ints
    hashes: Codes
    order: Short
    category: Labels
    author: Labels

    @classmethod
    def of(cls, entries: Entries) -> Self:
        """From rows in lists, in their order."""
        versions = np.array(entries.versions, dtype=np.int64)
        return cls._of(Ids.of(entries.ids), versions, hashes_of(entries.ids), entries.labels_M2)

    @classmethod
    def _of(cls, ids: Ids, versions: Ints, hashes_M: Codes, labels_M2: Codes) -> Self:
        order = sorted_rows(hashes_M)
        labels = Labels.of(labels_M2[:, 0]), Labels.of(labels_M2[:, 1])
        return cls(ids, versions, hashes_M[order], order, *labels)

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
        return self._of(self.ids.taken(rows), self.versions[rows], self._hashes()[rows], self._labels()[rows])

    def extended(self, entries: Entries) -> Self:
        """A copy with more rows after these."""
        return self._of(
            self.ids.extended(entries.ids),
            np.concatenate([self.versions, np.array(entries.versions, dtype=np.int64)]),
            np.concatenate([self._hashes(), hashes_of(entries.ids)]),
            np.concatenate([self._labels(), entries.labels_M2]),
        )

    def _hashes(self) -> Codes:
        hashes_M = np.empty(len(self), dtype=np.uint64)
        hashes_M[self.order] = self.hashes
        return hashes_M

    def _labels(self) -> Codes:
        return np.stack([self.category.each(), self.author.each()], axis=1)


def sorted_rows(codes_M: Codes) -> Short:
    """The rows by rising code, those of one code in order."""
    if len(codes_M) < SORTED_AT_ONCE:
        return np.argsort(codes_M, kind="stable").astype(np.uint32)
    return run_low_priority(np.argsort, codes_M, kind="stable").astype(np.uint32)


def hashes_of(ids: Sequence[str]) -> Codes:
    """The 64-bit hash of each id."""
    return np.array([hash64(id_) for id_ in ids], dtype=np.uint64)
