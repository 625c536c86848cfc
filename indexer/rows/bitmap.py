"""Packed bits, least significant first, as FAISS selectors read them: bit ``row`` is 1 while it is alive."""

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Places = NDArray[np.int64]


def all_alive(rows: int) -> Bits:
    """At least ``rows`` bits, all 1."""
    return np.full((rows + 7) // 8, 0xFF, dtype=np.uint8)


def without(bits: Bits, rows: Places) -> Bits:
    """A copy in which these rows are dead; the original stays as its readers saw it."""
    copy = bits.copy()
    np.bitwise_and.at(copy, rows >> 3, ~_masks(rows))
    return copy


def only(rows: Places, bits: Bits) -> Places:
    """Those of these rows that are alive, in their order."""
    alive: Places = rows[(bits[rows >> 3] & _masks(rows)) != 0]
    return alive


def of(rows: Places, total: int) -> Bits:
    """At least ``total`` bits, of which only these rows are 1."""
    bits = np.zeros((total + 7) // 8, dtype=np.uint8)
    np.bitwise_or.at(bits, rows >> 3, _masks(rows))
    return bits


def is_alive(bits: Bits, row: int) -> bool:
    """Whether one row is alive."""
    return bool(bits[row >> 3] >> (row & 7) & 1)


def flags(bits: Bits, rows: int) -> NDArray[np.bool_]:
    """The first ``rows`` bits as booleans, shape (rows,)."""
    return np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)


def packed(alive: NDArray[np.bool_]) -> Bits:
    """Inverse of `flags`."""
    return np.packbits(alive, bitorder="little")


def _masks(rows: Places) -> Bits:
    masks: Bits = np.left_shift(1, rows & 7).astype(np.uint8)
    return masks
