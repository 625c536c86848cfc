"""Hashtags of two sources: what is clean, which are equal, and how they are merged."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tags import Tag, fold, merge, votes

raw_tags = st.text(max_size=50) | st.sampled_from(
    [
        "#Harbor",
        "harbor",
        "HARBOR",
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
neighbors = st.lists(st.tuples(st.floats(-1, 1), st.lists(raw_tags, max_size=5)), max_size=10)


def is_clean(tag: str) -> bool:
    """The contract's rule, written out anew."""
    return (
        1 <= len(tag) <= 40
        and all(unicodedata.category(character)[0] in "LN" or character == "_" for character in tag)
        and unicodedata.is_normalized("NFC", tag)
    )


@given(suggestions, neighbors, st.lists(raw_tags, max_size=5))
def test_what_is_merged_is_clean_distinct_new_and_most_likely_first(generated, near, known):
    merged = merge(generated, votes(near, 10), known)

    tags = [tag.tag for tag in merged]
    assert all(map(is_clean, tags))
    assert len({fold(tag) for tag in tags}) == len({tag.casefold() for tag in tags}) == len(tags)
    assert not {fold(tag) for tag in tags} & {fold(tag) for tag in known}
    assert [tag.score for tag in merged] == sorted((tag.score for tag in merged), reverse=True)
    assert all(0 <= tag.score <= 1 for tag in merged)


@given(suggestions, neighbors)
def test_the_source_says_who_suggested_it(generated, near):
    by_model = {fold(raw) for raw, _ in generated}
    by_neighbors = {fold(raw) for _, hashtags in near for raw in hashtags}

    for tag in merge(generated, votes(near, 10), ()):
        sources = {
            (True, False): "generated",
            (False, True): "neighbours",
            (True, True): "both",
        }
        assert tag.source == sources[tag.tag in by_model, tag.tag in by_neighbors]


@given(neighbors, suggestions)
def test_a_second_voice_never_lowers_a_score(near, generated):
    voted = votes(near, 10)
    alone = {tag.tag: tag.score for tag in merge(generated, {}, ())}

    for tag in merge(generated, voted, ()):
        assert tag.score >= max(alone.get(tag.tag, 0.0), voted.get(tag.tag, 0.0)) - 1e-9


def test_a_vote_is_the_share_of_similarity_among_the_neighbors_asked_for():
    near = [(0.9, ["Sea", "#sea", "sun"]), (0.6, ["sea"]), (-0.5, ["sea", "rain"])]

    assert votes(near, 10) == pytest.approx({"sea": 0.15, "sun": 0.09, "rain": 0.0})


def test_merging_follows_the_formula():
    merged = merge([("sea", 0.5), ("sun", 0.3)], {"sea": 0.2, "sand": 0.4}, ["SUN"])

    assert [(tag.tag, round(tag.score, 9), tag.source) for tag in merged] == [
        ("sea", 0.6, "both"),
        ("sand", 0.4, "neighbours"),
    ]


def test_equal_scores_keep_the_models_order_and_then_the_neighbors():
    merged = merge([("b", 0.5), ("a", 0.5)], {"c": 0.5}, ())

    assert merged == [Tag("b", 0.5, "generated"), Tag("a", 0.5, "generated"), Tag("c", 0.5, "neighbours")]


@pytest.mark.parametrize(
    "markup", ["<script>alert(1)</script>", "a\0b", "a\u202eb", "a&amp;b", "\ud800", "", "#", "🙂"]
)
def test_what_is_no_hashtag_is_left_out(markup):
    assert merge([(markup, 0.9)], votes([(0.9, [markup])], 10), ()) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("#Harbor", "harbor"), ("STRASSE", "straße"), ("e\u0301", "é"), (" a ", "a"), ("🙂A", "🙂a")],
)
def test_spellings_of_one_hashtag_fold_alike(one, other):
    assert fold(one) == fold(other)
