"""Packed fields against a list of dicts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.filters import fields

from indexer.rows.packed_fields import PackedFields


@given(st.lists(st.tuples(fields(), st.booleans())))
def test_rows_come_back_as_they_were_and_the_hidden_ones_are_known(rows):
    packed = PackedFields()
    for one, hidden in rows:
        packed.append(one, hidden=hidden)
    expected = [one | {"hidden": True} if hidden else one for one, hidden in rows]

    assert [*packed] == [packed[row] for row in range(len(packed))] == expected
    assert packed.hidden().tolist() == [row for row, (_, hidden) in enumerate(rows) if hidden]
    every_second = np.arange(0, len(rows), 2)
    assert [*packed.taken(every_second[::-1])] == expected[::2][::-1]
    assert [*PackedFields(expected)] == [*PackedFields.of_packed(packed.packed)] == expected


def test_a_text_of_that_name_hides_no_row():
    assert PackedFields([{"city": "hidden"}]).hidden().tolist() == []
