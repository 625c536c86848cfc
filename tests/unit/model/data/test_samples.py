import json
import re
from collections import Counter

import pytest

from model.data.samples.generate import clicks, sample_notes, write


@pytest.fixture(scope="module")
def notes():
    return sample_notes()


def test_there_are_enough_notes_in_enough_categories(notes):
    assert len(notes) >= 1500
    assert len({note.category for note in notes}) >= 40
    assert len({note.id for note in notes}) == len({note.title for note in notes}) == len(notes)


def test_every_note_has_text_and_three_to_six_hashtags(notes):
    for note in notes:
        assert note.title
        assert 20 <= len(note.content.split()) <= 90, note.id
        assert 3 <= len(note.hashtags) <= 6, note.id
        assert all(re.fullmatch("[a-z0-9]+", tag) for tag in note.hashtags), note.id


def test_no_two_notes_are_cut_from_one_template(notes):
    """Two texts of some 50 words that share ten runs of five words would be one text with other nouns."""
    holders: dict[tuple[str, ...], set[str]] = {}
    for note in notes:
        words = re.findall(r"\w+", note.content.lower())
        for start in range(len(words) - 4):
            holders.setdefault(tuple(words[start : start + 5]), set()).add(note.id)
    shared = Counter((a, b) for ids in holders.values() for a in ids for b in ids if a < b)
    assert max(shared.values()) < 10


def test_most_hashtags_recur_so_that_they_can_be_learned(notes):
    counts = Counter(tag for note in notes for tag in note.hashtags)
    assert sum(count for count in counts.values() if count >= 3) > 0.9 * sum(counts.values())


def test_the_click_log_is_large_and_the_same_for_the_same_seed(notes):
    log = list(clicks(notes))
    assert len({user for user, _, _ in log}) >= 20_000
    assert log == list(clicks(notes))
    assert log != list(clicks(notes, seed=1))


def test_a_session_shows_no_note_twice_and_mostly_notes_of_one_kind(notes):
    category = {note.id: note.category for note in notes}
    sessions: dict[str, list[str]] = {}
    for user, note_id, place in clicks(notes, sessions=2000):
        sessions.setdefault(user, []).append(note_id)
        assert place == len(sessions[user])
    assert all(len(set(read)) == len(read) >= 1 for read in sessions.values())
    same = [category[other] == category[read[0]] for read in sessions.values() for other in read[1:]]
    assert 0.6 < sum(same) / len(same) < 0.98


def test_what_is_written_can_be_loaded_by_every_other_command(tmp_path, notes):
    from model.data.events import load_events
    from model.data.notes import load_notes

    count, events = write(tmp_path, sessions=50)
    assert (count, len(load_events(tmp_path))) == (len(notes), events)
    read = load_notes(tmp_path)
    assert [note.title for note in read] == [note.title for note in notes]
    clicked = Counter(json.loads(line)["note_id"] for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert {note.id: note.exposure for note in read if note.exposure} == {i: 20 * n for i, n in clicked.items()}
