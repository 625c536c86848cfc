"""Living and hidden rows against two sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.rows import bitmap
from indexer.rows.liveness import Liveness, Selection

ROWS = 20


def rows(bits: np.ndarray) -> set[int]:
    return set(bitmap.live_rows(bits, ROWS).tolist())


@given(st.lists(st.tuples(st.booleans(), st.integers(0, ROWS - 1))))
def test_dead_and_hidden_rows_are_not_shown_and_are_counted(steps):
    live, alive, hidden = Liveness.of(bitmap.all_alive(ROWS), ROWS), set(range(ROWS)), set()
    before = [(live, set(alive), set(hidden))]
    for hides, row in steps:
        if hides and row in alive - hidden:
            live = live.hiding(np.array([row]))
            hidden.add(row)
        elif not hides and row in alive:
            live = live.without(row)
            alive.remove(row)
            hidden.discard(row)
        before.append((live, set(alive), set(hidden)))

    for live, alive, hidden in before:  # each stays as its readers saw it
        assert rows(live.alive) == alive
        assert rows(live.shown) == alive - hidden
        assert (live.dead, live.hidden) == (ROWS - len(alive), len(hidden))


@given(st.sets(st.integers(0, 6)), st.integers(0, 40))
def test_more_rows_are_alive_and_shown(hidden, more):
    live = Liveness.of(bitmap.all_alive(7), 7).hiding(np.array(sorted(hidden), dtype=np.int64))
    for _ in range(more):
        live = live.with_next()

    assert (live.rows, live.dead) == (7 + more, 0)
    assert bitmap.flags(live.alive, 7 + more).all()
    assert set(np.flatnonzero(~bitmap.flags(live.shown, 7 + more)).tolist()) == hidden
    assert live.selection.size == 7 + more - len(hidden)
    assert (live.selection.bits is None) == (not hidden)


@given(st.sets(st.integers(0, ROWS - 1)))
def test_a_selection_knows_its_rows(selected):
    flags = np.isin(np.arange(ROWS), sorted(selected))

    selection = Selection.of(bitmap.packed(flags))

    assert selection.size == len(selected)
    assert selection.rows.tolist() == sorted(selected)
