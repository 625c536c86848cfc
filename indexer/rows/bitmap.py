"""Packed bits, least significant first, as FAISS selectors read them: bit ``row`` is 1 while the row is alive."""

import numpy as np
from numpy.typing import NDArray

from indexer.types import Ints

Bits = NDArray[np.uint8]
Flags = NDArray[np.bool_]


def all_alive(rows: int) -> Bits:
    """At least ``rows`` bits, all 1."""
    return np.full((rows + 7) // 8, 0xFF, dtype=np.uint8)


def without(bits: Bits, rows: Ints) -> Bits:
    """A copy in which these rows are dead; the original stays as its readers saw it."""
    copy = bits.copy()
    np.bitwise_and.at(copy, rows >> 3, ~_masks(rows))
    return copy


def only(rows: Ints, bits: Bits) -> Ints:
    """The rows that are alive, in their order."""
    alive: Ints = rows[are_alive(bits, rows)]
    return alive


def are_alive(bits: Bits, rows: Ints) -> Flags:
    """Whether each of these rows is alive."""
    alive: Flags = (bits[rows >> 3] & _masks(rows)) != 0
    return alive


def is_alive(bits: Bits, row: int) -> bool:
    """Whether one row is alive."""
    return bool(bits[row >> 3] >> (row & 7) & 1)


def flags(bits: Bits, rows: int) -> Flags:
    """The first ``rows`` bits as booleans, shape (rows,)."""
    return np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)


def packed(alive: Flags) -> Bits:
    """Inverse of `flags`."""
    return np.packbits(alive, bitorder="little")


def live_rows(bits: Bits | None, rows: int) -> Ints:
    """Numbers of the rows whose bit is 1, ascending; without bits, of all."""
    return np.arange(rows) if bits is None else np.flatnonzero(flags(bits, rows))


def _masks(rows: Ints) -> Bits:
    masks: Bits = np.left_shift(1, rows & 7).astype(np.uint8)
    return masks
