"""Near copies against their definition written out: sets of word 3-grams."""

import random
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.recommend.near_copies import LARGEST_SKETCH, NEAR, Fingerprint, different

TEXT = "Three days in Kyoto: temples in the morning, markets at noon, and a quiet garden before dinner."


def similarity(one: str, other: str) -> float:
    return Fingerprint.of("", one).similarity(Fingerprint.of("", other))


def by_sets(one: list[str], other: list[str]) -> float:
    grams, others = ({tuple(words[at : at + 3]) for at in range(len(words) - 2)} for words in (one, other))
    return len(grams & others) / max(len(grams), len(others))


@pytest.mark.parametrize(
    "other",
    [
        TEXT.upper(),
        f"#kyoto {TEXT} #travel #京都",
        re.sub("[,.:]", " !! ", TEXT),
        f"🍵 {TEXT} 🌸✨",
        unicodedata.normalize("NFD", TEXT),
        TEXT.replace(" ", "\u3000\n"),
    ],
    ids=["case", "hashtags", "punctuation", "emoji", "form", "space"],
)
def test_what_reposts_change_changes_nothing(other):
    assert similarity(TEXT, other) == 1.0


def test_title_and_content_are_one_text():
    assert Fingerprint.of("Three days", "in Kyoto").similarity(Fingerprint.of("", "Three days in Kyoto")) == 1.0


def test_a_few_changed_words_are_a_near_copy_and_many_are_none():
    words = [f"w{number}" for number in range(50)]
    few, many = list(words), list(words)
    few[20:22] = ["a", "b"]
    many[0::10] = ["x"] * 5

    assert similarity(" ".join(words), " ".join(few)) == pytest.approx(44 / 48)
    assert similarity(" ".join(words), " ".join(many)) < NEAR


@pytest.mark.parametrize("text", ["京都三日游记", "きょうとの三日", "교토 삼일"])
def test_a_cjk_character_is_a_word(text):
    assert Fingerprint.of("", text).grams == len(re.sub(r"\s", "", text)) - 2


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Hello", "hello!", 1.0),
        ("Hello you", "HELLO, you", 1.0),
        ("Hello", "hello you", 0.0),
        ("Hello you", "you hello", 0.0),
        ("Hello you there", "hello you", 0.0),
        ("#kyoto", "🍵", 1.0),
        ("#kyoto", "kyoto", 0.0),
    ],
)
def test_fewer_than_three_words_have_to_be_equal(one, other, expected):
    assert similarity(one, other) == expected


words = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "e"]), min_size=3, max_size=40)


@given(words, words)
def test_the_similarity_of_texts_is_that_of_their_sets(one, other):
    assert similarity(" ".join(one), " ".join(other)) == pytest.approx(by_sets(one, other))


@pytest.mark.parametrize("changed", [10, 40, 80, 120])
def test_that_of_long_texts_is_estimated(changed):
    chance = random.Random(changed)
    one = [chance.choice("abcdefghij") * chance.randint(1, 9) for _ in range(1500)]
    other = list(one)
    for place in chance.sample(range(1500), changed):
        other[place] = f"x{place}"

    assert Fingerprint.of("", " ".join(one)).grams > LARGEST_SKETCH
    assert similarity(" ".join(one), " ".join(other)) == pytest.approx(by_sets(one, other), abs=0.09)


@given(st.lists(words, max_size=12), st.integers(0, 3))
def test_those_that_are_kept_are_found_one_by_one(texts, first):
    prints = [Fingerprint.of("", " ".join(text)) for text in texts]
    origins, notes = prints[:first], prints[first:]
    kept: list[int] = []
    for place, note in enumerate(notes):
        if all(note.similarity(other) < NEAR for other in [*origins, *(notes[before] for before in kept)]):
            kept.append(place)

    assert different(notes, origins) == kept


@pytest.mark.parametrize("length", [150, 400, 2000])
def test_a_copy_that_changes_the_longest_words_is_found(length):
    """They stand first in the prefixes, in which a copy is looked for."""
    chance = random.Random(length)
    texts = []
    for number in range(20):
        text = ["".join(chance.choices("abcdefghij", k=chance.randint(1, 9))) for _ in range(length)]
        copy = list(text)
        for place in sorted(range(length), key=lambda at: -len(text[at]))[: length // 20]:
            copy[place] = f"{number}{copy[place]}"
        texts += [text, copy]
    prints = [Fingerprint.of("", " ".join(text)) for text in texts]
    assert all(one.similarity(copy) >= NEAR for one, copy in zip(prints[::2], prints[1::2], strict=True))

    assert different(prints) == list(range(0, len(prints), 2))


def test_a_phrase_that_all_texts_share_costs_no_comparison(monkeypatch):
    texts = [
        f"Note {number} about tag{number}, and what came of it. Follow me for more of it!" for number in range(100)
    ]
    prints = [Fingerprint.of("", text) for text in texts]
    monkeypatch.setattr(Fingerprint, "similarity", lambda *_: pytest.fail("compared"))

    assert different(prints) == list(range(100))
