"""The words of a text in any script: `words` for counting what two texts share, `terms` for searching."""

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import regex

# Scripts whose hashtags have no spaces between words: a character, with its marks, is a word of them.
_BY_CHARACTER = {
    "Japanese": r"\p{Hiragana}\p{Katakana}",
    "Korean": r"\p{Hangul}",
    "Thai": r"\p{Thai}",
    "Lao": r"\p{Lao}",
    "Khmer": r"\p{Khmer}",
    "Burmese": r"\p{Myanmar}",
}
_ALONE = "".join(_BY_CHARACTER.values())
_HAN = r"\p{Han}"
_WORD = regex.compile(rf"(?V1)(?P<han>{_HAN}+)|[{_ALONE}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_HAN}{_ALONE}]]+")
_WORD_OR_MARK = regex.compile(rf"{_WORD.pattern}|\S")


def words(text: str) -> list[str]:
    """Words of a text, case folded: runs of letters, marks and digits; Chinese as jieba cuts it, as the authors do.

    Of scripts without spaces that jieba does not know each character is a word; see `how_cut`.
    """
    return _cut(_WORD, text.casefold(), _jieba)


def words_and_marks(text: str) -> list[str]:
    """The same without folding case, and with every other character that is no white space as a word."""
    return _cut(_WORD_OR_MARK, text, _jieba)


def terms(text: str) -> list[str]:
    """As `words`, but each Chinese character is one: a search finds what a longer word shares with its parts."""
    return _cut(_WORD, text.casefold(), list)


def how_cut(texts: Iterable[str]) -> str:
    """How `words` told the words of these texts apart where spaces do not, in a sentence; empty where they do."""
    text = " ".join(texts)
    by_character = [name for name, script in _BY_CHARACTER.items() if regex.search(f"[{script}]", text)]
    ways = ["jieba cuts Chinese"] if regex.search(_HAN, text) else []
    if by_character:
        ways.append(f"a character is a word of {', '.join(by_character)}")
    return f"Words: {'; '.join(ways)}." if ways else ""


def _cut(pattern: Any, text: str, chinese: Callable[[str], list[str]]) -> list[str]:
    return [word for match in pattern.finditer(text) for word in (chinese(match[0]) if match["han"] else (match[0],))]


def _jieba(text: str) -> list[str]:
    words: list[str] = _tokenizer().lcut(text)
    return words


@cache
def _tokenizer() -> Any:
    """jieba's, with its dictionary: left to itself it would write a cache that all users share, and talk on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old ways to find its own files
        import jieba
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
