import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tags import clean_tag, clean_tags


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("citywalk", "citywalk"),
        ("#CityWalk", "citywalk"),
        ("city walk", "city_walk"),
        ("coffee _ shop", "coffee_shop"),
        ("slow-travel", "slow_travel"),
        ("北 京", "北京"),
        ("ＣＡＦＥ", "cafe"),
        ("cafe\u0301", "café"),
        ("3d", "3d"),
        ("", None),
        ("# ", None),
        ("<b>x</b>", None),
        ("a\x00b", None),
        ("a&b", None),
        ("x" * 40, "x" * 40),
        ("x" * 41, None),
    ],
)
def test_a_text_gives_one_clean_hashtag_or_none(text, tag):
    assert clean_tag(text) == tag


@given(st.text())
def test_whatever_comes_out_is_as_the_contract_says_and_cleaning_again_changes_nothing(text):
    tag = clean_tag(text)
    if tag is not None:
        assert 1 <= len(tag) <= 40
        assert unicodedata.is_normalized("NFC", tag)
        assert all(letter == "_" or letter.isalnum() or unicodedata.category(letter)[0] == "M" for letter in tag)
        assert clean_tag(tag) == tag


def test_repeated_hashtags_keep_their_first_place():
    assert clean_tags(["Tea", "#tea", "<i>", "matcha"]) == ["tea", "matcha"]
