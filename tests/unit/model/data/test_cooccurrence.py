"""The split that keeps training and evaluation apart, and the pairs of its first side."""

import pytest
from support.click_logs import Event, table

from model.data.cooccurrence import split_notes, training_pairs
from model.note import Note


def test_the_split_holds_out_its_share():
    ids = [f"n{number}" for number in range(10_000)]

    # Four standard deviations of a binomial: 0.3 of 10,000 draws.
    assert abs(len(split_notes(ids, 0.3)) - 3000) < 4 * (10_000 * 0.3 * 0.7) ** 0.5
    assert split_notes(ids, 0.0) == frozenset()
    assert split_notes(ids, 1.0) == frozenset(ids)


def test_the_split_of_a_note_depends_on_no_other_note():
    ids = [f"n{number}" for number in range(500)]

    assert split_notes(ids[:100]) == split_notes(ids) & set(ids[:100])
    assert split_notes(reversed(ids)) == split_notes(ids)


def test_a_larger_holdout_holds_the_smaller_one():
    ids = [f"n{number}" for number in range(500)]

    assert split_notes(ids, 0.1) < split_notes(ids, 0.3)


def test_another_seed_is_another_split():
    ids = [f"n{number}" for number in range(500)]

    assert split_notes(ids, seed=0) != split_notes(ids, seed=1)


@pytest.mark.parametrize("holdout", [-0.1, 1.1, float("nan")])
def test_a_holdout_that_is_no_share_is_refused(holdout):
    with pytest.raises(ValueError, match="holdout must be within"):
        split_notes(["a"], holdout)


def test_training_pairs_touch_no_held_out_and_no_blank_note():
    ids = [f"n{number:02}" for number in range(30)]
    notes = [Note(note_id, title="" if number == 7 else "x") for number, note_id in enumerate(ids)]
    log: list[Event] = [("u", note_id, time, True) for time, note_id in enumerate(ids)]

    ends = training_pairs(notes, table(log), holdout=0.5, seed=3).ends()

    used = {note_id for pair in ends for note_id in pair}
    assert used == set(ids) - split_notes(ids, 0.5, 3) - {"n07"}
