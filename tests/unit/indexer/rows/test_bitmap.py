"""Packed bits against sets of rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.rows import bitmap

ROWS = 20
subsets = st.sets(st.integers(0, ROWS - 1))


def array(rows: set[int]) -> np.ndarray:
    return np.array(sorted(rows), dtype=np.int64)


@given(subsets, subsets)
def test_bits_are_a_set_of_rows(alive, some):
    bits = bitmap.packed(np.isin(np.arange(ROWS), array(alive)))

    assert set(bitmap.live_rows(bits, ROWS).tolist()) == alive
    assert {row for row in range(ROWS) if bitmap.is_alive(bits, row)} == alive
    assert np.array_equal(bitmap.packed(bitmap.flags(bits, ROWS)), bits)
    assert bitmap.only(array(some), bits).tolist() == sorted(some & alive)
    assert set(bitmap.live_rows(bitmap.without(bits, array(some)), ROWS).tolist()) == alive - some
    assert set(bitmap.live_rows(bits, ROWS).tolist()) == alive


@given(st.integers(0, 30))
def test_as_many_bytes_as_the_rows_need(rows):
    assert len(bitmap.all_alive(rows)) == -(-rows // 8)
    assert bitmap.flags(bitmap.all_alive(rows), rows).tolist() == [True] * rows
    assert bitmap.live_rows(None, rows).tolist() == list(range(rows))
