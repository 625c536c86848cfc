"""Cases on a pool whose answers are known, as text and as a page."""

from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import pytest

from model.backend import Prediction, Scored
from model.data.files import DataError
from model.data.pairs import Pairs
from model.evaluation.baselines import Embeddings
from model.evaluation.cases import cases_page, choose_notes, find_cases, format_cases, hashtags_of
from model.note import Note

POOL = [
    Note("a", "Harbor at dawn", "Boats.", ("harbor",), "Travel"),
    Note("b", "<script>alert(1)</script> & \x1b[31mred", "", ('"><img src=x>',), None),
    Note("c", "", "A text without a title, " * 60, (), None),
    Note("d", "Castle", "", (), "Travel"),
]
# For a the nearest is b in one method and d in the other; for c everything is equally far.
FIRST = Embeddings("first", np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1], [0, 1, 0]]))
SECOND = Embeddings("second", np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0, 0.1]]))


def gold(*ends: tuple[str, str]) -> Pairs:
    notes, related = zip(*ends, strict=True)
    return Pairs(notes, related, np.ones(len(ends)), np.full(len(ends), 2))


class Seen(HTMLParser):
    """Elements, their text, and the addresses that they would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_each_method_shows_its_nearest_note_and_whether_it_is_related():
    [case] = find_cases([FIRST, SECOND], POOL, gold(("a", "d")), POOL[:1])

    assert [(found.method, found.note.id, found.related) for found in case.found] == [
        ("first", "b", False),
        ("second", "d", True),
    ]
    assert case.found[0].score == pytest.approx(0.9 / np.hypot(0.9, 0.1))


def test_a_note_is_never_its_own_answer_and_ties_go_to_the_first():
    [case] = find_cases([FIRST], POOL, None, [POOL[2]])

    assert (case.found[0].note.id, case.found[0].related) == ("a", None)


def test_notes_are_drawn_by_their_ids_among_those_with_related_ones():
    pool = [Note(str(number), "x") for number in range(50)]
    related = gold(*((str(number), "0") for number in range(1, 20)))

    drawn = choose_notes(pool, related, 5)

    assert len(drawn) == 5
    assert {note.id for note in drawn} <= {str(number) for number in range(1, 20)}
    assert {note.id for note in choose_notes(pool[::-1], related, 5)} == {note.id for note in drawn}
    assert len(choose_notes(pool, None, 7)) == 7
    assert [note.id for note in choose_notes(pool, related, 5, ["30", "2"])] == ["30", "2"]


def test_a_note_that_is_not_in_the_pool_is_refused():
    with pytest.raises(DataError, match="1 of 2 notes are not in the pool of 4, 'zz' for one"):
        choose_notes(POOL, None, 5, ["a", "zz"])


def test_hashtags_are_predicted_without_being_seen():
    asked: list[Note] = []

    def predict(notes: Sequence[Note]) -> list[Prediction]:
        asked.extend(notes)
        return [Prediction(np.ones(2, dtype=np.float32), (Scored("boats", 0.5),), None) for _ in notes]

    training = [Note("t", "Harbor at noon", "", ("sea",)), Note("u", "Castle", "", ("stone",))]
    hashtags = hashtags_of(POOL[:1], training, predict)

    assert asked == [Note("a", "Harbor at dawn", "Boats.", (), None)]
    assert hashtags == {
        "the author's hashtags": [["harbor"]],
        "NoteLLM's hashtags": [["boats"]],
        "hashtags of TF-IDF neighbors": [["sea"]],
    }
    assert "hashtags of TF-IDF neighbors" not in hashtags_of(POOL[:1], [], predict)


def test_the_page_shows_every_text_as_text_and_loads_nothing():
    cases = find_cases([FIRST, SECOND], POOL, gold(("a", "d")), POOL[:3], {"tags": [["x"], ["<b>"], []]})

    page = cases_page(cases, "Title", "Model <1>")
    seen = Seen(page)

    assert {"script", "img", "b", "link"}.isdisjoint(seen.tags)
    assert seen.loaded == []
    assert "<script>alert(1)</script> & [31mred" in seen.texts
    assert "\x1b" not in page
    assert {"Title", "Model <1>", "Harbor at dawn", "second, related", '#"><img src=x>', "#<b>"} <= set(seen.texts)
    assert max(map(len, seen.texts)) < 2500
    assert any(text.endswith("…") for text in seen.texts), "a long text is cut"
    assert seen.tags.count("article") == 3 * (1 + 2)


def test_the_text_has_a_short_line_for_each_method():
    cases = find_cases([FIRST, SECOND], POOL, gold(("a", "d")), [POOL[0], POOL[2]], {"tags": [["x", "y"], []]})

    text = format_cases(cases)

    assert text.splitlines()[:4] == [
        "1. Harbor at dawn",
        "   first    <script>alert(1)</script> & [31mred",
        "   second * Castle",
        "   tags     #x #y",
    ]
    assert max(map(len, text.splitlines())) < 100
