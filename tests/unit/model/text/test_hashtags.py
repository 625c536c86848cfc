import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.text.hashtags import clean_tag, clean_tags, fold, spelling

# Letters of many scripts with their marks, what is written between words, and what must never get through.
PIECES = [
    *("a", "s", "ies", "News", "Straße", "İ", "\u0131", "i\u0307", "\ufb01", "É", "e\u0301", "1", "2", "ＡＢ"),
    *("北", "京", "가", "\u1100", "\u1161", "カ\u3099", "हि", "न्दी", "ไทย", "ที่", "قَهْوَة", "שׁ", "\u0e33"),
    *(" ", "_", "-", "\u2013", "'", "’", ".", "・", "#", "\u00a0"),
    *("\u200d", "\u200b", "\u034f", "\ufe0f", "\u20e3", "\u3164", "\u202e", "\x00", "<", "&", "🙂", "\ud800"),
]
texts = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)

SPELLINGS = [
    [
        "Street Food",
        "street-food",
        "street_food",
        "streetfood",
        "ｓｔｒｅｅｔｆｏｏｄ",
        "#StreetFoods",
        "STREET  FOODS",
    ],
    ["mother's day", "Mother’s Day", "mothersday", "#mothers_day"],
    ["Node.js", "nodejs", "NodeJS"],
    ["Covid-19", "covid19", "covid_19"],
    ["Straße", "STRASSE", "strasse"],
    ["İstanbul", "istanbul", "Istanbul"],
    ["北 京", "北京", "北-京"],
    ["スター・ウォーズ", "スターウォーズ", "ｽﾀｰｳｫｰｽﾞ"],
    ["cafe\u0301", "café", "CAFÉS"],
    ["हिन्दी", "#हिन्दी"],
    ["city", "cities", "Cities"],
    ["movie", "movies"],
    ["beach", "beaches"],
    ["box", "boxes"],
    ["dress", "dresses"],
    ["cat", "cats"],
    ["photo", "photos"],
    ["sea", "seas"],
    ["pizza", "Pizzas"],
    ["horse", "horses"],
    ["stray cat", "straycats"],
]

TWO_HASHTAGS = [
    ("news", "new"),
    ("breakingnews", "breaking new"),
    ("glass", "glas"),
    ("glasses", "glass"),
    ("bus", "bu"),
    ("tennis", "tenni"),
    ("canvas", "canva"),
    ("windows", "window"),
    ("jeans", "jean"),
    ("pandas", "panda"),
    ("goods", "good"),
    ("blues", "blue"),
    ("lens", "len"),
    ("vans", "van"),
    ("chess", "ches"),
    ("ios", "io"),
    ("css", "cs"),
    ("https", "http"),
    ("iphone5s", "iphone5"),
    ("python2", "python3"),
    ("1-2", "12"),
    ("24_7", "247"),
    ("c", "c++"),
    ("c#", "c"),
    ("a", "as"),
    ("resume", "résumé"),
    ("पर", "पार"),
    ("мир", "мира"),
]


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("citywalk", "citywalk"),
        ("#CityWalk", "citywalk"),
        ("# citywalk", "citywalk"),
        ("city walk", "city_walk"),
        ("coffee _ shop", "coffee_shop"),
        ("slow-travel", "slow_travel"),
        ("slow – travel", "slow_travel"),
        ("mother's day", "mothers_day"),
        ("node.js", "nodejs"),
        ("3.14", None),
        ("北 京", "北京"),
        ("ＣＡＦＥ", "cafe"),
        ("cafe\u0301", "café"),
        ("İstanbul", "istanbul"),
        ("3d", "3d"),
        ("हिन्दी खाना", "हिन्दी_खाना"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("ที่เที่ยว", "ที่เที่ยว"),
        ("قَهْوَة", "قَهْوَة"),
        ("தமிழ்", "தமிழ்"),
        ("", None),
        ("# ", None),
        ("<b>x</b>", None),
        ("a\x00b", None),
        ("a&b", None),
        ("a&amp;b", None),
        ("\u0301a", None),
        ("a_\u0301b", None),
        ("3\u0301", None),
        ("1\ufe0f\u20e3", None),
        ("न\u200dम", None),
        ("ไ\u200bทย", None),
        ("love\ufe0f", None),
        ("\u3164", None),
        ("x" * 40, "x" * 40),
        ("x" * 41, None),
    ],
)
def test_a_text_gives_one_clean_hashtag_or_none(text, tag):
    assert clean_tag(text) == tag


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("#StreetFood", "StreetFood"),
        ("Street Food", "Street_Food"),
        ("ＳｔｒｅｅｔＦｏｏｄ", "StreetFood"),
        ("İstanbul", "İstanbul"),
        ("京都", "京都"),
        ("c++", None),
    ],
)
def test_a_spelling_keeps_its_case(text, written):
    assert spelling(text) == written


def is_allowed(tag: str) -> bool:
    """The contract's rule, written out anew: visible letters with their marks, digits, underscore; 1 to 40; NFC."""
    kinds = ["_" if character == "_" else unicodedata.category(character)[0] for character in tag]
    stray = [mark for mark, before in zip(kinds, [" ", *kinds], strict=False) if mark == "M" and before not in "LM"]
    hidden = any(
        unicodedata.category(character) in ("Me", "Cf", "Cc") or character in "\ufe0f\u034f" for character in tag
    )
    return (
        1 <= len(tag) <= 40
        and set(kinds) <= set("LNM_")
        and not stray
        and not hidden
        and tag == unicodedata.normalize("NFC", tag)
    )


@given(texts)
@example("İ\u0307")
def test_whatever_comes_out_is_as_the_contract_says_and_cleaning_again_changes_nothing(text):
    for clean in (clean_tag, spelling):
        tag = clean(text)
        if tag is not None:
            assert is_allowed(tag)
            assert clean(tag) == tag


@given(texts)
@example("İ\u0307")
@example("# #a")
@example("\u1100'\u1161")
def test_a_key_is_its_own_key_and_that_of_every_clean_form(text):
    key = fold(text)

    assert fold(key) == key
    for clean in (clean_tag(text), spelling(text)):
        assert clean is None or fold(clean) == key


@given(texts)
def test_case_width_and_a_hash_in_front_never_make_another_hashtag(text):
    if clean_tag(text) is not None:
        assert fold(f"#{text}") == fold(unicodedata.normalize("NFKC", text)) == fold(text.lower()) == fold(text)


@pytest.mark.parametrize("spellings", SPELLINGS, ids=lambda spellings: spellings[0])
def test_these_are_one_hashtag(spellings):
    assert {fold(text) for text in spellings} == {fold(spellings[0])}


@pytest.mark.parametrize(("one", "other"), TWO_HASHTAGS)
def test_these_are_two(one, other):
    assert fold(one) != fold(other)


@pytest.mark.parametrize("text", ["c++", "a&b", "🙂A", "x" * 41 + "!"])
def test_what_is_no_hashtag_only_loses_its_case(text):
    assert fold(f"#{text}") == text.casefold()


def test_repeated_hashtags_keep_their_first_place():
    assert clean_tags(["Tea", "#tea", "<i>", "matcha"]) == ["tea", "matcha"]
