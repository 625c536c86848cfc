"""Packed bits, least significant first, as FAISS selectors read them: bit ``row`` is 1 while it is alive."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]


def all_alive(rows: int) -> Bits:
    """At least ``rows`` bits, all 1."""
    return np.full((rows + 7) // 8, 0xFF, dtype=np.uint8)


def without(bits: Bits, rows: Iterable[int]) -> Bits:
    """A copy in which these rows are dead; the original stays as its readers saw it."""
    copy = bits.copy()
    for row in rows:
        copy[row >> 3] &= 0xFF ^ (1 << (row & 7))
    return copy


def flags(bits: Bits, rows: int) -> NDArray[np.bool_]:
    """The first ``rows`` bits as booleans, shape (rows,)."""
    return np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)


def packed(alive: NDArray[np.bool_]) -> Bits:
    """Inverse of `flags`."""
    return np.packbits(alive, bitorder="little")
