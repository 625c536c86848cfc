"""The split by time keeps what was seen first apart from what came after."""

import numpy as np
import pytest

from model.data.cooccurrence import PairRules
from model.data.events import EventTable
from model.data.periods import split_periods, temporal_pairs
from model.note import Note


def events(*log: tuple[int, str, int], untimed: int = 0) -> EventTable:
    users, notes, times = zip(*log, strict=True)
    ids = sorted(set(notes))
    return EventTable(
        np.array(users, dtype=np.int32),
        np.array([ids.index(note) for note in notes], dtype=np.int32),
        np.array(times, dtype=np.int64),
        np.ones(len(log), dtype=np.bool_),
        tuple(ids),
        len(set(users)),
        untimed,
    )


LOG = events((1, "a", 1), (1, "b", 2), (1, "c", 11), (1, "d", 12), (2, "a", 13), (2, "b", 14), (2, "c", 15))


def test_a_note_belongs_to_the_period_of_its_first_event():
    periods = split_periods(LOG, start=10)
    assert periods.before == {"a", "b"}
    assert periods.after == {"c", "d"}


def test_a_share_of_the_notes_sets_the_start():
    periods = split_periods(LOG, share=0.5)
    assert (periods.start, periods.after) == (11, {"c", "d"})
    assert split_periods(LOG, share=0.25).after == {"d"}


def test_no_event_or_note_of_one_period_is_in_the_pairs_of_the_other():
    notes = [Note(name, name) for name in "abcd"]
    training, gold = temporal_pairs(notes, LOG, split_periods(LOG, start=10), PairRules())
    # b came before a's second event; that one is of the later period.
    assert training.ends() == [("a", "b")]
    assert gold.ends() == [("c", "d")]
    # Reader 1 clicked two notes in each period, and four in all.
    assert training.scores.tolist() == gold.scores.tolist() == [0.5]


@pytest.mark.parametrize(
    ("log", "start", "share", "reason"),
    [
        (events((1, "a", 0), untimed=1), 3, None, "1 of 1 events have no ts: without times, use the split by note"),
        (LOG, 99, None, "no note was first seen from 99: the log has ts from 1 to 15"),
        (LOG, 1, None, "no note was first seen before 1: the log has ts from 1 to 15"),
        (LOG, None, 1.0, "must be within 0..1, got 1.0"),
    ],
)
def test_a_split_that_cannot_be_made_is_one_line(log, start, share, reason):
    with pytest.raises(ValueError, match=reason):
        split_periods(log, start=start, share=share)
