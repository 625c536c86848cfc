"""Rules of hashtags as suggestions obey them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text.hashtags import fold
from model.text.suggestions import VOTERS, Uncalibrated
from service.recommend.hashtags import Tag, suggest
from service.recommend.vocabulary import HashtagRules
from service.store.interfaces import HashtagRule

WORDS = st.sampled_from(["sea", "sun", "tea", "way", "cat", "dog"])


def rules(**written: str | None) -> HashtagRules:
    return HashtagRules(HashtagRule(tag, alias_of) for tag, alias_of in written.items())


def test_an_alias_is_followed_to_what_stands_for_itself():
    chain = rules(a="bees", bee="Sea Way", x=None, y="x", z="Y")

    assert [chain.stands_for(tag) for tag in ("A", "bee", "Sea Way", "other", "x", "y", "z")] == [
        "Sea Way",
        "Sea Way",
        "Sea Way",
        "other",
        None,
        None,
        None,
    ]
    assert sorted(chain.aliases("seaway")) == ["a", "bee"]


def test_an_alias_and_what_it_stands_for_are_one_suggestion_scored_as_spellings_of_one():
    """The likelier that the model wrote counts, a neighbor votes with either, once."""
    near = [(1.0, ["sea", "ocean"]), *[(1.0, [])] * (VOTERS - 1)]

    merged = suggest([("ocean", 0.3), ("sea", 0.5)], near, (), Uncalibrated(), rules(ocean="sea"))

    assert merged == suggest([("sea", 0.5)], [(1.0, ["sea"]), *near[1:]], (), Uncalibrated())
    assert merged == [Tag("sea", pytest.approx(1 - 0.5 * (1 - 1 / VOTERS)), "both")]


@given(
    st.dictionaries(WORDS, st.none() | WORDS, max_size=6),
    st.lists(st.tuples(WORDS, st.floats(0, 1)), max_size=6),
    st.lists(st.tuples(st.floats(-1, 1), st.lists(WORDS, max_size=4)), max_size=5),
    st.lists(WORDS, max_size=2),
)
def test_nothing_blocked_and_no_alias_is_ever_suggested(written, generated, near, known):
    loose = {tag: alias_of for tag, alias_of in written.items() if alias_of is None or alias_of > tag}  # no loops
    own = rules(**loose)

    tags = [fold(tag.tag) for tag in suggest(generated, near, known, Uncalibrated(), own)]
    named = [fold(tag) for tag, _ in own.merged(generated)]

    assert not {*tags, *named} & set(loose)
    assert len(set(tags)) == len(tags)
    assert len(set(named)) == len(named)
    assert not set(tags) & {fold(one) for one in own.allowed(known)}
