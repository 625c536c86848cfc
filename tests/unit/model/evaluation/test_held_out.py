"""Pools and gold pairs, of events and of files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.cooccurrence import split_notes
from model.data.files import DataError
from model.data.pairs import Pairs, write_pairs
from model.evaluation.held_out import load_held_out


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_file(path: Path, *ends: tuple[str, str], users: int = 2) -> Path:
    notes, related = zip(*ends, strict=True) if ends else ((), ())
    write_pairs(path, Pairs(notes, related, np.ones(len(ends)), np.full(len(ends), users)))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty notes, the first of them blank; three users clicked all of them in order."""
    notes = [{"note_id": f"n{number}", "title": f"story {number}" if number else " "} for number in range(40)]
    events = [
        {"user_id": f"u{user}", "note_id": f"n{number}", "event": "click", "ts": number}
        for user in range(3)
        for number in range(40)
    ]
    write(tmp_path / "notes.jsonl", *notes)
    write(tmp_path / "events.jsonl", *events)
    return tmp_path


def test_without_files_the_pool_is_drawn_by_ids_and_its_pairs_are_those_of_the_events(data):
    held_out = load_held_out(data, holdout=0.5, seed=1)

    drawn = split_notes((f"n{number}" for number in range(40)), 0.5, 1)
    assert {note.id for note in held_out.pool} == drawn - {"n0"}
    assert {note.id for note in held_out.training} == {f"n{number}" for number in range(1, 40)} - drawn
    assert held_out.gold is not None
    assert {end for pair in held_out.gold.ends() for end in pair} <= drawn
    assert (
        held_out.origin == "split by note, holdout 0.5, seed 1; ordered pairs of the events, 0 overactive users skipped"
    )


def test_a_given_pool_is_ranked_whole_and_training_saw_all_others(data):
    pool = write(data / "later.jsonl", *({"note_id": f"n{number}", "title": "x"} for number in (3, 7, 9, 50)))

    held_out = load_held_out(data, pool=pool, gold=pairs_file(data / "gold.parquet", ("n3", "n50"), ("n9", "n7")))

    assert [note.id for note in held_out.pool] == ["n3", "n7", "n9", "n50"]
    assert {note.id for note in held_out.training} == {f"n{number}" for number in range(1, 40)} - {"n3", "n7", "n9"}
    assert held_out.gold is not None
    assert held_out.gold.ends() == [("n3", "n50"), ("n9", "n7")]
    assert held_out.origin == "the notes of later.jsonl; the pairs of gold.parquet"


def test_given_pairs_need_no_events(data):
    (data / "events.jsonl").unlink()

    held_out = load_held_out(data, pool=data, gold=pairs_file(data / "gold.parquet", ("n3", "n5")))

    assert held_out.events is None
    assert len(held_out.pool) == 39
    assert held_out.blank == 1


def test_notes_without_events_and_pairs_are_still_a_pool_if_they_can_be_predicted(data):
    (data / "events.jsonl").unlink()
    with pytest.raises(DataError, match="no events, and no held-out note has a category or hashtags"):
        load_held_out(data)
    write(data / "notes.jsonl", *({"note_id": f"n{number}", "title": "x", "category": "c"} for number in range(40)))

    assert load_held_out(data).gold is None


@pytest.mark.parametrize(
    ("ends", "users", "message"),
    [
        (
            [("n3", "z1"), ("n5", "z2")],
            2,
            r"gold.parquet: 2 of its 4 notes are not among the 39 notes .*, 'z1' for one",
        ),
        ([("n3", "n0")], 2, r"gold.parquet: 1 of its 2 notes are not among .* that have text or hashtags, 'n0'"),
        ([("n3", "n3")], 2, r"gold.parquet: 1 pairs relate a note to itself, 'n3' for one"),
        ([], 2, r"gold.parquet holds no pairs"),
        ([("n3", "n5")], 1, r"gold.parquet: no pair of the 39 notes of the pool has 2 users behind it"),
    ],
)
def test_pairs_that_do_not_fit_the_pool_are_refused(data, ends, users, message):
    with pytest.raises(DataError, match=message):
        load_held_out(data, pool=data, gold=pairs_file(data / "gold.parquet", *ends, users=users))


def test_a_pool_without_any_text_is_refused(data):
    with pytest.raises(DataError, match="none of 1 held-out notes has text or hashtags"):
        load_held_out(data, pool=write(data / "pool.jsonl", {"note_id": "a"}))
