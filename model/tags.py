"""Hashtags as the HTTP contract wants them, whatever text they come from."""

import re
import unicodedata

MAX_CHARS = 40

_GAP = re.compile(r"[\s_\-]+")
_BETWEEN_CJK = re.compile(
    r"(?<=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]) (?=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])"
)
_REFUSED = re.compile(r"\W")


def clean_tag(text: str) -> str | None:
    """The hashtag in a text, or None if there is none: NFKC, lower case, words joined by ``_``.

    Letters, digits, underscore and CJK only, 1 to 40 of them; ``#`` in front is dropped.
    """
    text = unicodedata.normalize("NFKC", text).casefold().strip().lstrip("#").strip()
    text = _GAP.sub("_", _BETWEEN_CJK.sub("", text)).strip("_")
    text = unicodedata.normalize("NFC", text)
    if not text or len(text) > MAX_CHARS or _REFUSED.search(text):
        return None
    return text


def clean_tags(texts: list[str]) -> list[str]:
    """Clean hashtags in order, without those that are refused or repeated."""
    return list(dict.fromkeys(tag for tag in map(clean_tag, texts) if tag))
