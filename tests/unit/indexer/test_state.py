"""The delta of a state: filters find its rows in columns, the last ones by their fields, always the same ones."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.filters import expressions, fields, holds

from indexer.filters.expression import Exists, Or
from indexer.rows.packed_fields import PackedFields
from indexer.rows.rows import Entries
from indexer.state import FEW, FEWEST_MORE, MOST_NAMES, Delta
from indexer.types import Change, Fields

VECTOR = np.ones(2, dtype=np.float32)


def delta_of(fields_M: Sequence[Fields]) -> Delta:
    rows = len(fields_M)
    vectors = np.ones((rows, 2), dtype=np.float32)
    return Delta(Entries([str(row) for row in range(rows)], [1] * rows, vectors, PackedFields(fields_M)))


def append(delta: Delta, row: int, one: Fields) -> None:
    delta.append(Change("0-1", str(row), 1, "m", VECTOR, fields=one), VECTOR)


@settings(max_examples=50, deadline=None)
@given(st.lists(fields(), min_size=1, max_size=8), st.lists(expressions(), min_size=1, max_size=4), st.randoms())
def test_rows_pass_a_filter_as_their_fields_do_however_many_came_since_the_last_one(few, asked, random):
    fields_M = [random.choice(few) for _ in range(random.randrange(2 * FEWEST_MORE))]
    delta = delta_of(fields_M)
    for expression in [*asked, *asked]:
        for one in random.choices(few, k=random.randrange(2 * FEWEST_MORE)):
            append(delta, len(fields_M), one)
            fields_M.append(one)
        rows = np.flatnonzero([random.random() < 0.8 for _ in fields_M])

        assert delta.passing(expression, rows).tolist() == [holds(expression, fields_M[row]) for row in rows.tolist()]


def test_columns_are_of_few_names_however_many_are_asked_for():
    rows = 2 * FEWEST_MORE
    names = [f"a{number}" for number in range(3 * MOST_NAMES)]
    delta = delta_of([dict.fromkeys(names, 1.0) for _ in range(rows)])
    every = np.arange(rows)
    assert len(every) > FEW

    for number in range(0, len(names), 16):
        asked = Or(tuple(map(Exists, names[number : number + 16])))
        assert delta.passing(asked, every).all()
        assert not delta.passing(Exists("none"), every).any()

    known, columns = delta._columns
    assert len(known) <= MOST_NAMES
    assert columns.numbers.keys() <= known
    assert columns.total == rows
