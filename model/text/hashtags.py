"""Hashtags as the HTTP contract has them, from any text, and when two spellings are one hashtag."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

MAX_CHARS = 40

Kind = Literal["letter", "mark", "digit"]

_ASCII_WORD = re.compile("[A-Za-z0-9_]+")
_FRONT = re.compile(r"^[\s#]+")
_GAP = re.compile(r"[\s_\-\u2010-\u2015]+")
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_IS_CJK = re.compile(f"[{CJK}]")
_BETWEEN_CJK = re.compile(rf"(?<=[{CJK}]) (?=[{CJK}])")
# Apostrophes, full stops and middle dots: mother's, node.js, the Japanese and the Catalan dot.
_INSIDE_A_WORD = re.compile(r"(?<=[^\W\d_])['\u2019.\u00b7\u30fb](?=[^\W\d_])")
_DOTTED_I = re.compile("i\u0307+")
_NOT_BETWEEN_DIGITS = re.compile(r"(?<!\d)_|_(?!\d)")
# Invisible characters that Unicode counts among letters and marks: fillers, joiners, variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

_LATIN_PLURAL = re.compile("[a-z\u00df-\u00f6\u00f8-\u024f]{3}s$")
_NO_PLURALS = (
    "ss", "us", "is",
    # Without its s each of these is another word.
    "aids", "blues", "briefs", "canvas", "carlos", "chaos", "corps", "cosmos", "crocs", "does", "frances", "futures",
    "glasses", "goods", "greens", "https", "jeans", "lagos", "lens", "marcos", "mars", "means", "news", "pandas",
    "rails", "shorts", "temps", "tights", "toms", "vans", "vegas", "windows",
)  # fmt: skip
_PLURALS_IN_ES = ("ches", "shes", "sses", "xes")
_PLURALS_OF_IE = (
    "birdies", "brownies", "calories", "cookies", "foodies", "freebies", "hoodies", "indies", "movies", "newbies",
    "rookies", "selfies", "smoothies", "veggies", "zombies",
)  # fmt: skip
_SHORTEST_IN_Y = len("babies")
_CACHED = 8192  # most notes carry the same few hashtags


def clean_tag(text: str) -> str | None:
    """The hashtag in a text, or None if there is none: NFKC, lower case, words joined by ``_``.

    Letters with their marks, digits, underscore and CJK only, 1 to 40 of them; ``#`` in front is dropped, and so are
    apostrophes and full stops between letters.
    """
    return _checked(_joined(_lower(text)))


def clean_tags(texts: Iterable[str]) -> list[str]:
    """Clean hashtags in order, without those that are refused or repeated."""
    return list(dict.fromkeys(tag for tag in map(clean_tag, texts) if tag))


@lru_cache(_CACHED)
def spelling(text: str) -> str | None:
    """The hashtag of `clean_tag`, with upper and lower case as they were written."""
    return _checked(_joined(unicodedata.normalize("NFKC", text)))


@lru_cache(_CACHED)
def fold(text: str) -> str:
    """The key of a hashtag: two spellings with one key are one hashtag. Folding a key again changes nothing.

    Case, width, ``#``, gaps, hyphens and apostrophes do not matter, so ``Street Food``, ``street-food`` and
    ``streetfood`` are one; but ``1-2`` is not ``12``. The s of a simple English plural does not matter either:
    ``streetfoods``, ``cities``, ``beaches``. It stays where that rule is likely to be wrong: in words of three letters
    (``ios``), after a digit or another script, after s, u and i (``glass``, ``bus``, ``tennis``), and in words that
    end like one of a list (``news``, ``windows``). A plural that is missed is a second suggestion; two words taken for
    one would be a hashtag that nobody is ever given.

    Text that is no hashtag only loses its case.
    """
    lower = _lower(text)
    joined = _joined(lower)
    if not _in_words(joined):
        return _FRONT.sub("", lower).strip()
    return _singular(unicodedata.normalize("NFC", _NOT_BETWEEN_DIGITS.sub("", joined)))


def kind_of(character: str) -> Kind | None:
    """What a character is in a hashtag; None for those that no hashtag has.

    A mark is written onto the letter before it, as the vowels of Hindi, Thai and Arabic are. Digits and underscores,
    here one kind, take no marks.
    """
    if _INVISIBLE.match(character):
        return None
    if unicodedata.category(character) in ("Mn", "Mc"):
        return "mark"
    if character.isalpha():
        return "letter"
    return "digit" if character == "_" or character.isalnum() else None


def is_cjk(character: str) -> bool:
    """Whether it is Chinese, Japanese or Korean, where no space separates words (or, in Korean, none has to)."""
    return _IS_CJK.match(character) is not None


def _lower(text: str) -> str:
    # Folding undoes NFKC for a few letters. A Turkish capital I keeps its dot as a mark, which no small i has.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).casefold()
    return unicodedata.normalize("NFKC", _DOTTED_I.sub("i", folded))


def _joined(text: str) -> str:
    words = _INSIDE_A_WORD.sub("", _BETWEEN_CJK.sub("", _FRONT.sub("", text)))
    return unicodedata.normalize("NFC", _GAP.sub("_", words).strip("_"))


def _checked(tag: str) -> str | None:
    return tag if len(tag) <= MAX_CHARS and _in_words(tag) else None


def _in_words(text: str) -> bool:
    """Whether it is letters with their marks, digits and underscores, one at least."""
    if text.isascii():
        return _ASCII_WORD.fullmatch(text) is not None  # most hashtags, and many times as fast
    before: Kind | None = None
    for character in text:
        kind = kind_of(character)
        if kind is None or (kind == "mark" and before not in ("letter", "mark")):
            return False
        before = kind
    return True


def _singular(key: str) -> str:
    if not _LATIN_PLURAL.search(key) or key.endswith(_NO_PLURALS):
        return key
    if key.endswith("ies") and len(key) >= _SHORTEST_IN_Y and not key.endswith(_PLURALS_OF_IE):
        return key[:-3] + "y"
    return key[:-2] if key.endswith(_PLURALS_IN_ES) else key[:-1]
