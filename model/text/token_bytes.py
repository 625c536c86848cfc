"""The bytes that each token of a tokenizer adds to a text, whatever its kind."""

import json
import re
from itertools import chain

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_BYTE = re.compile("<0x([0-9A-F]{2})>")


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
