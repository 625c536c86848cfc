import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.batching import TokenBudget, admits, batches, together

_LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=80)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "count"),
    [
        ([], 100, 0),
        ([10], 100, 1),
        ([500], 100, 1),
        ([10, 500], 100, 1),
        ([500, 10], 100, 1),
        ([10] * 10, 100, 10),
        ([10] * 11, 100, 10),
        ([10, 20, 30, 40], 90, 3),
        ([0, 0, 0], 1, 3),
    ],
)
def test_a_batch_takes_as_many_as_the_padded_budget_allows(lengths, max_tokens, count):
    assert admits(lengths, max_tokens) == count


@pytest.mark.parametrize(
    ("under_way", "lengths", "count"),
    [
        ([10], [10] * 10, 9),
        ([10], [500], 0),
        ([50], [10] * 10, 1),
        ([500], [10], 0),
        ([10] * 10, [10], 0),
        ([10], [], 0),
    ],
)
def test_those_under_way_take_their_part_of_the_budget_and_a_long_note_waits_for_them(under_way, lengths, count):
    assert admits(lengths, 100, under_way) == count


@given(_LENGTHS, st.integers(1, 4096))
def test_a_batch_is_never_over_budget_and_never_stuck(lengths, max_tokens):
    count = admits(lengths, max_tokens)
    assert 1 <= count <= len(lengths)
    assert count == 1 or count * max(lengths[:count]) <= max_tokens


@given(_LENGTHS, st.integers(1, 4096))
def test_one_more_note_would_not_have_fitted(lengths, max_tokens):
    count = admits(lengths, max_tokens)
    assert count == len(lengths) or (count + 1) * max(lengths[: count + 1]) > max_tokens


@given(_LENGTHS, st.integers(1, 4096))
def test_batches_hold_every_position_once(lengths, max_tokens):
    assert sorted(place for batch in batches(lengths, max_tokens) for place in batch) == list(range(len(lengths)))


def test_no_notes_no_batches():
    assert batches([], 100) == []


@given(_LENGTHS, st.integers(1, 4096))
def test_a_batch_of_like_length_holds_the_first_note_and_is_within_budget(lengths, max_tokens):
    positions = together(lengths, max_tokens)
    longest = max(lengths[position] for position in positions)
    assert positions[0] == 0
    assert len(set(positions)) == len(positions)
    assert len(positions) == 1 or len(positions) * longest <= max_tokens


@given(_LENGTHS, st.integers(1, 4096))
def test_no_note_left_out_is_nearer_in_length_than_one_that_was_taken(lengths, max_tokens):
    positions = together(lengths, max_tokens)
    left = set(range(len(lengths))) - set(positions)
    distance = [abs(length - lengths[0]) for length in lengths]
    assert max(distance[position] for position in positions) <= min((distance[p] for p in left), default=10_000)


def test_a_note_of_uncommon_length_waits_for_nobody_once_it_is_first():
    assert together([500, 10, 10, 10], 100) == [0]
    assert together([10, 500, 10, 12], 100) == [0, 2, 3]


def test_a_budget_is_halved_below_what_failed_and_grows_back_in_64_passes():
    budget = TokenBudget(4096)
    budget.shed(1000)
    assert budget.now == 500
    budget.shed(4096)
    assert budget.now == 250

    for _ in range(60):
        budget.recover()
    assert budget.now == 250 + 60 * 64
    for _ in range(4):
        budget.recover()
    assert budget.now == 4096


@given(st.integers(1, 5000), st.lists(st.none() | st.integers(1, 5000), max_size=200))
def test_a_budget_is_at_least_one_token_and_never_more_than_it_was(most, history):
    budget = TokenBudget(most)
    for tokens in history:
        budget.recover() if tokens is None else budget.shed(tokens)
        assert 1 <= budget.now <= most
