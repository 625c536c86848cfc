"""What a tokenizer can write: the bytes of its tokens, and whether outputs can be told apart by them."""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from model.text.automaton import SEPARATORS

if TYPE_CHECKING:
    from model.text.prompt import PromptBuilder

_BYTE = re.compile("<0x([0-9A-F]{2})>")
# Names in a message; the others are counted.
_NAMED = 5
_REMEDY = "rename them, or take a base model whose tokenizer knows them"


class VocabularyError(ValueError):
    """Outputs cannot be written or told apart with a tokenizer; the message names them and says what to do."""


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each id adds to a text, by id: none for special tokens, and for ids without a token."""
    decoders = _decoders(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    letters = _byte_letters() if "ByteLevel" in decoders else {}
    # Decoded after a fixed neighbor, because a tokenizer may drop the space or mark of a first token.
    neighbor = (tokenizer.encode("a", add_special_tokens=False).ids or [0])[0]
    before = tokenizer.decode([neighbor], skip_special_tokens=True)
    ids = range(1 + max(tokenizer.get_vocab().values()))
    texts = tokenizer.decode_batch([[neighbor, token] for token in ids], skip_special_tokens=True)
    found = []
    for token, text in zip(ids, texts, strict=True):
        piece = tokenizer.id_to_token(token) or ""
        if token not in added and letters.keys() >= set(piece):
            found.append(bytes(letters[letter] for letter in piece))
        elif "ByteFallback" in decoders and (byte := _BYTE.fullmatch(piece)):
            found.append(bytes.fromhex(byte[1]))
        else:
            found.append(text.removeprefix(before).encode())
    return found


def check_outputs(builder: "PromptBuilder", categories: Iterable[str]) -> None:
    """Refuse categories and a separator of hashtags that cannot be learned with the builder's tokenizer.

    Raises:
        VocabularyError: if it has no tokens for a category or the separator, or the same tokens for two categories.
    """
    names = sorted(set(categories))
    unknown = [name for name in names if not builder.knows(name)]
    if unknown:
        raise VocabularyError(f"the base model's tokenizer has no tokens for {_listed(map(repr, unknown))}: {_REMEDY}")
    alike = defaultdict(list)
    for name in names:
        alike[tuple(builder.output(name))].append(name)
    same = [" and ".join(_shown(group)) for group in alike.values() if len(group) > 1]
    if same:
        raise VocabularyError(
            f"the base model's tokenizer cannot tell these categories apart: {_listed(same)}; rename or merge them, or "
            "take a base model whose tokenizer can"
        )
    written = b"".join(builder.token_bytes[token] for token in builder.output(SEPARATORS[0])[:-1])
    if written.decode(errors="ignore").strip() != SEPARATORS[0]:
        raise VocabularyError(
            f"the base model's tokenizer cannot write the {SEPARATORS[0]!r} between hashtags: take another base model"
        )


def _shown(names: Sequence[str]) -> list[str]:
    """Names between quotes; with escapes if they look alike, as the two forms of é do."""
    look_alike = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    return [ascii(name) if look_alike else repr(name) for name in names]


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _decoders(tokenizer: Tokenizer) -> set[str]:
    """The kinds of decoders that a tokenizer joins texts with."""
    if tokenizer.decoder is None:
        return set()
    state = json.loads(tokenizer.decoder.__getstate__())
    return {step["type"] for step in state.get("decoders", [state])}


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level vocabularies have for each byte that UTF-8 uses."""
    points = chain(range(0x800), range(0x800, 0xD800, 0x800), range(0xE000, 0x110000, 0x1000))
    text = "".join(map(chr, points))
    [(letters, _)] = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return dict(zip(letters, text.encode(), strict=True))
