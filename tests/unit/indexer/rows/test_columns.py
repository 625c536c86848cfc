"""Columns against the fields that they were made of, asked one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.filters import expressions, fields, holds

from indexer.filters.expression import Expression, Not, OneOf, Ordered
from indexer.rows import bitmap
from indexer.rows.columns import Columns

rows_of_fields = st.lists(fields(), max_size=12)


def passing(columns: Columns, expression: Expression, shown: np.ndarray | None = None) -> list[int]:
    bits = bitmap.all_alive(columns.total) if shown is None else bitmap.packed(shown)
    selection = columns.selection(expression, bits)
    rows = bitmap.live_rows(selection.bits, columns.total).tolist()
    assert selection.size == len(rows)
    assert selection.rows is not None
    assert selection.rows.tolist() == rows
    return rows


@settings(max_examples=50)
@given(rows_of_fields, expressions())
def test_a_filter_selects_the_rows_whose_fields_it_matches(fields_M, expression):
    expected = [row for row, one in enumerate(fields_M) if holds(expression, one)]

    assert passing(Columns.of(fields_M), expression) == expected


@settings(max_examples=50)
@given(rows_of_fields, rows_of_fields, expressions())
def test_more_rows_stand_behind_the_first(fields_M, more_M, expression):
    both = [*fields_M, *more_M]

    assert passing(Columns.of(fields_M).extended(more_M), expression) == passing(Columns.of(both), expression)


@settings(max_examples=50)
@given(rows_of_fields, expressions(), st.randoms())
def test_some_rows_can_be_taken_in_any_order(fields_M, expression, random):
    kept = [row for row in range(len(fields_M)) if random.random() < 0.5]
    random.shuffle(kept)

    taken = Columns.of(fields_M).taken(np.array(kept, dtype=np.int64))

    assert passing(taken, expression) == passing(Columns.of([fields_M[row] for row in kept]), expression)


@settings(max_examples=50)
@given(rows_of_fields, expressions(), st.randoms())
def test_of_some_rows_the_others_have_no_fields_and_their_names_are_gone(fields_M, expression, random):
    kept = [row for row in range(len(fields_M)) if random.random() < 0.5]

    columns = Columns.of(fields_M).of_rows(np.array(kept, dtype=np.int64))

    bare = [one if row in kept else {} for row, one in enumerate(fields_M)]
    assert passing(columns, expression) == passing(Columns.of(bare), expression)
    assert columns.texts.keys() | columns.numbers.keys() == {
        name for row in kept for name, value in fields_M[row].items() if value != ()
    }


def test_only_shown_rows_are_selected_also_when_a_filter_is_asked_for_again():
    columns = Columns.of([{"city": "a"}, {"city": "b"}, {"city": "a"}])
    in_a = OneOf("city", ("a",))

    for shown, expected in (([1, 1, 1], [0, 2]), ([1, 1, 0], [0]), ([0, 1, 1], [2]), ([1, 1, 1], [0, 2])):
        assert passing(columns, in_a, np.array(shown, dtype=np.bool_)) == expected
    assert passing(columns, Not(in_a), np.array([1, 0, 1], dtype=np.bool_)) == []


def test_many_rows_with_few_and_with_many_values_are_selected():
    """More than are sorted at once, in both layouts of a column."""
    random = np.random.default_rng(0)
    price, stars = random.permutation(20_000) / 7, random.integers(5, size=20_000)
    columns = Columns.of([{"price": float(price[row]), "stars": float(stars[row])} for row in range(20_000)])

    assert len(columns.numbers["price"].starts) == 0
    assert len(columns.numbers["stars"].starts) == 6
    for name, values in (("price", price), ("stars", stars)):
        for order, expected in (("<", values < 3), ("<=", values <= 3), (">", values > 3), (">=", values >= 3)):
            bits = columns.selection(Ordered(name, order, 3.0), bitmap.all_alive(20_000)).bits
            assert np.array_equal(bits, bitmap.packed(expected))


def test_rows_that_two_values_of_a_list_find_are_selected_once():
    columns = Columns.of([{"tags": ("a", "b")}, {"city": "a"}] * 8 + [{"tags": ("a", "b")}] + [{}] * 300)

    assert passing(columns, OneOf("tags", ("a", "b"))) == [*range(0, 16, 2), 16]


def test_four_fields_take_at_most_24_bytes_a_row():
    random = np.random.default_rng(0)
    numbers = random.random(20_000)
    fields_M = [
        {"city": f"c{row % 50}", "brand": f"b{row % 300}", "sale": bool(row % 3), "price": float(numbers[row])}
        for row in range(20_000)
    ]
    columns = Columns.of(fields_M)

    arrays = [
        part
        for column in (*columns.texts.values(), *columns.numbers.values())
        for part in (column.values, column.starts, column.rows)
    ]
    assert sum(array.nbytes for array in arrays) / 20_000 <= 24.3  # with the dictionaries of so few rows
