"""Hashtags as they are suggested: clean, new to the draft, most likely first, and honest about who said them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text.hashtags import fold, spelling
from model.text.suggestions import VOTERS, Candidate, Uncalibrated
from service.recommend.hashtags import Tag, suggest

raw_tags = st.text(max_size=50) | st.sampled_from(
    [
        "#Harbor",
        "harbor",
        "HARBORS",
        " harbor",
        "city walk",
        "CityWalk",
        "<b>x</b>",
        "海边",
        "ＡＢＣ",
        "ﬁ",
        "İ",
        "ß",
    ]
)
scores = st.floats(0, 1)
suggestions = st.lists(st.tuples(raw_tags, scores), max_size=12)
neighbors = st.lists(st.tuples(st.floats(-1, 1), st.lists(raw_tags, max_size=5)), max_size=VOTERS)
PLAIN = Uncalibrated()


def even(*hashtags: str) -> list[tuple[float, list[str]]]:
    """As many neighbors as vote, all as near; the first carries the hashtags."""
    return [(1.0, list(hashtags)), *[(1.0, [])] * (VOTERS - 1)]


@given(suggestions, st.none() | neighbors, st.lists(raw_tags, max_size=5))
def test_what_is_suggested_is_clean_distinct_new_and_most_likely_first(generated, near, known):
    suggested = suggest(generated, near, known, PLAIN)

    tags = [tag.tag for tag in suggested]
    assert all(spelling(tag) == tag for tag in tags)
    assert len({fold(tag) for tag in tags}) == len(tags)
    assert not {fold(tag) for tag in tags} & {fold(tag) for tag in known}
    assert [tag.score for tag in suggested] == sorted((tag.score for tag in suggested), reverse=True)
    assert all(0 <= tag.score <= 1 for tag in suggested)


@given(suggestions, neighbors)
def test_the_source_says_who_suggested_it(generated, near):
    by_model = {fold(raw) for raw, _ in generated}
    by_neighbors = {fold(raw) for cosine, hashtags in near if cosine > 0 for raw in hashtags}

    for tag in suggest(generated, near, (), PLAIN):
        if tag.source == "both":
            assert fold(tag.tag) in by_model & by_neighbors
        elif tag.source == "generated":
            # A neighbor may be too far behind the others for its vote to be told from nothing.
            assert fold(tag.tag) in by_model
        else:
            assert fold(tag.tag) in by_neighbors - by_model


def test_both_sources_are_scored_by_the_stated_formula():
    suggested = suggest([("sea", 0.5), ("sun", 0.3)], even("Seas", "sand"), ["SUN"], PLAIN)

    assert [(tag.tag, round(tag.score, 9), tag.source) for tag in suggested] == [
        ("sea", round(1 - 0.5 * (1 - 1 / VOTERS), 9), "both"),
        ("sand", round(1 / VOTERS, 9), "neighbors"),
    ]


def test_equal_scores_keep_the_models_order_and_then_the_neighbors():
    [vote] = {tag.score for tag in suggest([], even("c"), (), PLAIN)}

    assert suggest([("b", 1 / VOTERS), ("a", 1 / VOTERS)], even("c"), (), PLAIN) == [
        Tag("b", vote, "generated"),
        Tag("a", vote, "generated"),
        Tag("c", vote, "neighbors"),
    ]


class Told:
    """Scores that say which question was asked."""

    def suggestion(self, candidate: Candidate) -> float:
        return 0.2

    def alone(self, probability: float) -> float:
        return 0.9

    def category(self, probability: float) -> float:
        return probability


def test_a_model_that_speaks_alone_is_scored_as_such():
    [alone] = suggest([("sea", 0.5)], None, (), Told())
    [heard] = suggest([("sea", 0.5)], [], (), Told())

    assert (alone.score, heard.score) == (0.9, 0.2)
    assert (alone.source, heard.source) == ("generated", "generated")


def test_hashtags_of_the_draft_are_known_in_any_spelling():
    assert suggest([("street_food", 0.9)], even("StreetFoods"), ["Street-Food"], PLAIN) == []


@pytest.mark.parametrize(
    "markup", ["<script>alert(1)</script>", "a\0b", "a\u202eb", "a&amp;b", "\ud800", "", "#", "🙂", "\u3164"]
)
def test_what_is_no_hashtag_is_left_out(markup):
    assert suggest([(markup, 0.9)], even(markup), (), PLAIN) == []
