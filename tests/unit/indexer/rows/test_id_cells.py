"""Packed ids against the list that they stand for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.rows.id_cells import OTHER_BYTES, Ids

LONG = ["京都" * 20, "x" * 128]
texts = st.lists(st.text(max_size=3) | st.text("a\0", max_size=12) | st.sampled_from(LONG), max_size=30)


def listed(ids: Ids) -> list[str]:
    return [ids[row] for row in range(len(ids))]


@given(texts, texts, st.randoms())
def test_they_come_back_as_they_were_however_they_were_put_together(first, more, random):
    ids = Ids.of(first).extended(more)
    rows = [random.randrange(len(ids)) for _ in range(40)] if len(ids) else []
    names = first + more

    assert listed(Ids.of(first)) == first
    assert listed(ids) == names
    assert listed(ids.taken(np.array(rows, dtype=np.int64))) == [names[row] for row in rows]
    matrix = np.array([rows, rows[::-1]], dtype=np.int64)
    assert ids.at(matrix) == [[names[row] for row in rows], [names[row] for row in rows[::-1]]]


def test_a_row_that_is_none_has_some_text():
    for names in ([], ["a"], ["a" * 100, "", "b\0"]):
        [found] = Ids.of(names).at(np.full((1, 3), -1))
        assert all(isinstance(id_, str) for id_ in found)


def test_a_few_long_ids_do_not_widen_the_cells_of_all():
    ids = Ids.of([f"{row:08}" for row in range(10_000)] + ["x" * 128] * 3)

    assert ids.cells.nbytes + OTHER_BYTES * len(ids.others) < 10_003 * 9


def test_cells_that_have_become_too_narrow_are_made_anew():
    ids = Ids.of(["a", "b"]).extended([f"note {row}" for row in range(100)])

    assert ids.others == {}
    assert ids.cells.itemsize == len("note 99")
