"""The language of a text, as far as it is clear."""

import re
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingua import ConfidenceValue, LanguageDetector

# Those of large communities (ISO 639-1). A long text in a language that is not here has none, a short one may be taken
# for a relative of it; each one more costs memory, and makes short texts less clear.
LANGUAGES = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko",
    "nb", "nl", "pl", "pt", "ro", "ru", "sv", "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
# Of English titles without a text, one in sixty is then given to another language, and one in nine to none; of whole
# notes none. See docs/decisions/059.
_SURE = 0.8
_CHARS = 200
# What CLD3 is that sure of in a text that is not short is right at least as often as what lingua is sure of, for a
# third of the time: see docs/decisions/111.
_CLEAR = 0.97
_SHORT_CHARS = 32
_CODES_OF_CLD3 = {code: code for code in LANGUAGES} | {"no": "nb", "iw": "he"}
# Most of the other texts are that clear after so many characters, for half the time: see docs/decisions/099.
_SURE_AT_ONCE = 0.999
_FIRST_CHARS = 80
_CACHED = 4096
_NO_WORDS = re.compile(r"(?:https?://|www\.)\S+|@\w+")


def detect_language(title: str, content: str) -> str | None:
    """The language of a note, one of `LANGUAGES`; None where it is unsure. The beginning decides."""
    return _detected(_beginning(title, content))


def detect_languages(notes: Sequence[tuple[str, str]]) -> list[str | None]:
    """The same of many titles and contents, in order; those that are not clear at once on all cores."""
    return _languages([_beginning(title, content) for title, content in notes])


def load() -> None:
    """Load the models of letters, 0.2 s, so that no request waits for them."""
    _detected("Loading")


@lru_cache(_CACHED)
def _detected(text: str) -> str | None:
    return _languages([text])[0]


def _languages(texts: Sequence[str]) -> list[str | None]:
    found = [_clear(text) for text in texts]
    unclear = [place for place, language in enumerate(found) if language is None]
    for place, language in zip(unclear, _looked_closely([texts[place] for place in unclear]), strict=True):
        found[place] = language
    return [language or None for language in found]


def _clear(text: str) -> str | None:
    """The language of a text that is clear at once, empty for one that is not of `LANGUAGES`; else None."""
    if len(text) < _SHORT_CHARS:
        return None
    found = _of_thread().cld3.FindLanguage(text)
    return _CODES_OF_CLD3.get(found.language, "") if found.probability >= _CLEAR else None


def _looked_closely(texts: Sequence[str]) -> list[str]:
    """The languages that lingua is sure of; empty for those of none."""
    best = _best([text[:_FIRST_CHARS] for text in texts])
    unclear = [
        place for place, text in enumerate(texts) if best[place].value < _SURE_AT_ONCE and len(text) > _FIRST_CHARS
    ]
    for place, value in zip(unclear, _best([texts[place] for place in unclear]), strict=True):
        best[place] = value
    return [one.language.iso_code_639_1.name.lower() if one.value >= _SURE else "" for one in best]


def _best(texts: list[str]) -> "list[ConfidenceValue]":
    detector = _detector()
    if len(texts) == 1:  # not worth another thread
        return [detector.compute_language_confidence_values(texts[0])[0]]
    return [values[0] for values in detector.compute_language_confidence_values_in_parallel(texts)]


def _beginning(title: str, content: str) -> str:
    return _NO_WORDS.sub(" ", f"{title}\n{content[: 2 * _CHARS]}")[:_CHARS]


@cache
def _detector() -> "LanguageDetector":
    from lingua import IsoCode639_1, LanguageDetectorBuilder  # 95 MB of file: not for every process

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
    # Without low accuracy 10 times the memory, for titles alone a few more that are clear.
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_low_accuracy_mode().build()


class _OfThread(threading.local):
    """CLD3 for each thread, 0.2 ms: it gives up Python's lock, and does not say that threads may share it."""

    def __init__(self) -> None:
        from gcld3 import NNetLanguageIdentifier

        self.cld3 = NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=4 * _CHARS)


@cache
def _of_thread() -> _OfThread:
    return _OfThread()
