import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.batching import batches, fits

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
    assert fits(lengths, max_tokens) == count


@given(_LENGTHS, st.integers(1, 4096))
def test_a_batch_is_never_over_budget_and_never_stuck(lengths, max_tokens):
    count = fits(lengths, max_tokens)
    assert 1 <= count <= len(lengths)
    assert count == 1 or count * max(lengths[:count]) <= max_tokens


@given(_LENGTHS, st.integers(1, 4096))
def test_one_more_note_would_not_have_fitted(lengths, max_tokens):
    count = fits(lengths, max_tokens)
    assert count == len(lengths) or (count + 1) * max(lengths[: count + 1]) > max_tokens


@given(_LENGTHS, st.integers(1, 4096))
def test_batches_hold_every_position_once(lengths, max_tokens):
    assert sorted(place for batch in batches(lengths, max_tokens) for place in batch) == list(range(len(lengths)))


def test_no_notes_no_batches():
    assert batches([], 100) == []
