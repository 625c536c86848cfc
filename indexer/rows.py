"""What is known of rows besides their vectors: id, version and labels.

`Entries` are a few rows as they come; `Rows` are those of a base, in arrays: with seven bytes an id, a million rows
take 39 bytes each, where a list of strings and a dict from id to row would take more than 200.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Codes = NDArray[np.uint64]
Short = NDArray[np.uint32]

LARGEST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Entries:
    """Rows one by one. ``labels_M2`` holds the codes of category and author, see `indexer.types.label`."""

    ids: list[str]
    versions: list[int]
    vectors_MD: NDArray[np.float32]
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
        codes, counts = np.unique(codes_M, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
        return cls(codes, starts, np.argsort(codes_M, kind="stable").astype(np.uint32))

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
    """Immutable. Row r's id is ``text[bounds[r]:bounds[r + 1]]``; ``order`` sorts the rows by the hash of their id.

    An id may have several rows, of which the last is its newest: a base keeps dead rows until it is built anew.
    """

    text: str
    bounds: Short
    versions: Ints
    hashes: Codes
    order: Short
    category: Labels
    author: Labels

    @classmethod
    def of(cls, entries: Entries) -> Self:
        """Raises ValueError when the ids are longer than 2^32 letters."""
        hashes_M = hashed(entries.ids)
        lengths = np.array([len(id_) for id_ in entries.ids], dtype=np.int64)
        versions = np.array(entries.versions, dtype=np.int64)
        return cls._of("".join(entries.ids), lengths, versions, hashes_M, entries.labels_M2)

    @classmethod
    def _of(cls, text: str, lengths: Ints, versions: Ints, hashes_M: Codes, labels_M2: Codes) -> Self:
        if len(text) > LARGEST:
            raise ValueError(f"the ids of one shard have {len(text)} letters; at most {LARGEST} fit")
        order = np.argsort(hashes_M, kind="stable").astype(np.uint32)
        return cls(
            text,
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32),
            versions,
            hashes_M[order],
            order,
            Labels.of(labels_M2[:, 0]),
            Labels.of(labels_M2[:, 1]),
        )

    def __len__(self) -> int:
        return len(self.versions)

    def ids(self, rows_NK: Ints) -> list[list[str]]:
        """Ids of a matrix of rows."""
        starts, ends = self.bounds[rows_NK].tolist(), self.bounds[rows_NK + 1].tolist()
        text = self.text
        return [
            [text[start:end] for start, end in zip(*places, strict=True)] for places in zip(starts, ends, strict=True)
        ]

    def newest(self, id_: str) -> int:
        """The last row of an id, -1 if it has none."""
        hashed = np.uint64(_hash(id_))
        place = int(np.searchsorted(self.hashes, hashed, side="right"))
        while place and self.hashes[place - 1] == hashed:
            place -= 1
            row = int(self.order[place])
            if self.text[self.bounds[row] : self.bounds[row + 1]] == id_:
                return row
        return -1

    def taken(self, rows: Ints) -> Self:
        """These rows alone, in this order."""
        lengths = self._lengths()[rows]
        # Letter by letter: where each of the new text stands in the old one.
        shifts = self.bounds[rows + 1] - np.cumsum(lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(shifts, lengths)
        text = np.frombuffer(self.text.encode("utf-32-le"), dtype=np.uint32)[places].tobytes().decode("utf-32-le")
        return self._of(text, lengths, self.versions[rows], self._hashes()[rows], self._labels()[rows])

    def extended(self, entries: Entries) -> Self:
        """With more rows behind these."""
        more = type(self).of(entries)
        return self._of(
            self.text + more.text,
            np.concatenate([self._lengths(), more._lengths()]),
            np.concatenate([self.versions, more.versions]),
            np.concatenate([self._hashes(), more._hashes()]),
            np.concatenate([self._labels(), more._labels()]),
        )

    def _lengths(self) -> Ints:
        return np.diff(self.bounds.astype(np.int64))

    def _hashes(self) -> Codes:
        hashes_M = np.empty(len(self), dtype=np.uint64)
        hashes_M[self.order] = self.hashes
        return hashes_M

    def _labels(self) -> Codes:
        return np.stack([self.category.each(), self.author.each()], axis=1)


def hashed(ids: Sequence[str]) -> Codes:
    """The 64-bit hash of each id."""
    return np.array([_hash(id_) for id_ in ids], dtype=np.uint64)


def _hash(id_: str) -> int:
    return int.from_bytes(blake2b(id_.encode(), digest_size=8).digest(), "big")
