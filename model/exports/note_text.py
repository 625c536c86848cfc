"""The text of a note for an exported NoteLLM model.

This file is copied into every export, with `model.text.hashtags` beside it; they need the package `tokenizers` alone::

    from note_text import NoteText

    text = NoteText("path/to/the/export")
    model.encode([text("Night train to Lisbon", "Bring socks.", ["travel"])])
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from model.text.hashtags import clean_tags

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_CHARS_PER_TOKEN = 32


class NoteText:
    """Title, hashtags and content of a note: cleaned, cut by tokens and put together as in training."""

    def __init__(self, folder: str | Path) -> None:
        self._form = json.loads((Path(folder) / "note_text.json").read_text(encoding="utf-8"))
        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, title: str = "", content: str = "", hashtags: Sequence[str] = ()) -> str:
        """The text for ``encode``. Never raises on any text; the hashtags are the known ones, if any."""
        fields = {"title": self._cut(title, "title_tokens")}
        if self._form["topics_tokens"]:
            fields["topic"] = self._cut(", ".join(clean_tags(hashtags)), "topics_tokens")
        fields["content"] = self._cut(content, "content_tokens")
        if self._form["as_json"]:
            return json.dumps(fields, ensure_ascii=False)
        return " ".join(field for field in fields.values() if field)

    def _cut(self, text: str, limit: str) -> str:
        max_tokens = self._form[limit]
        text = _plain(text[: max_tokens * _CHARS_PER_TOKEN])
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return text if len(encoding.ids) <= max_tokens else text[: encoding.offsets[max_tokens - 1][1]]


def _plain(text: str) -> str:
    """NFKC first, and only then without control characters and lone surrogates; white space folded."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFKC", text)).split())
