"""What tokenizers of every kind can write, and the categories that training refuses with them."""

from collections.abc import Callable

import pytest
from support.scripts import EMOJI, hashtags
from support.vocabularies import VOCABULARIES, builder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from model.network.checkpoint import special_ids
from model.text.prompt import SHARED, PromptBuilder
from model.text.vocabulary import VocabularyError, check_outputs

LOSSLESS = [name for name in VOCABULARIES if "WordPiece" not in name]


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_bytes_of_a_texts_tokens_are_the_texts(name):
    for tags in hashtags().values():
        for text in [", ".join(tags), *EMOJI]:
            tokens = builder(name).output(text)
            assert b"".join(builder(name).token_bytes[token] for token in tokens).decode().removeprefix(" ") == text


@pytest.mark.parametrize("name", ["byte-level", "byte-level (Qwen)"])
def test_a_byte_level_token_has_the_bytes_of_its_letters(name):
    """By transformers' own table, also where they are no text. No text has the bytes that UTF-8 never uses."""
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = builder(name)._tokenizer
    added = tokenizer.get_added_tokens_decoder()
    for token, text in enumerate(builder(name).token_bytes):
        if token not in added:
            expected = bytes(byte_of[letter] for letter in tokenizer.id_to_token(token))
            assert text == expected or (never & set(expected) and "\ufffd".encode() in text)


def test_the_256_bytes_of_a_fallback_are_tokens_of_one_byte():
    vocabulary = builder("SentencePiece (Mistral)")
    bytes_of = [vocabulary.token_bytes[vocabulary._tokenizer.token_to_id(f"<0x{byte:02X}>")] for byte in range(256)]
    assert bytes_of == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_tokens_that_frame_a_prompt_have_no_bytes(name):
    special = builder(name).special
    for token in {special.bos, special.eos, special.emb, special.pad} - {None}:
        assert builder(name).token_bytes[token] == b""


def test_wordpieces_have_their_space_unless_they_continue_a_word():
    vocabulary = builder("WordPiece (MiniLM)")
    texts = [vocabulary.token_bytes[token] for token in vocabulary.output("Citywalks, 中")]
    assert texts == [b" city", b"walk", b"s", b",", " 中".encode(), b""]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_categories_that_differ_are_accepted(name):
    check_outputs(builder(name), ["Travel", "Home & Garden", "Home Decor", "Sports/Outdoor", "3D"])


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_tokenizer_that_keeps_everything_tells_all_categories_apart(name):
    check_outputs(builder(name), ["Travel", "travel", "Travel ", "Cafe", "Café", "🍜", "🎉", "美食", "美妆"])


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["Travel", "Baking", "travel"], "apart: 'Travel' and 'travel'; rename or merge them"),
        (["Travel", "Travel "], "apart: 'Travel' and 'Travel '; rename"),
        (["Caf\u00e9", "Cafe\u0301", "cafe"], r"apart: 'Cafe\u0301' and 'Caf\xe9' and 'cafe'; rename"),
        (["Food 🍜", "Food 🎉"], "apart: 'Food 🍜' and 'Food 🎉'; rename"),
        (["Travel", "🍜"], "has no tokens for '🍜': rename"),
        (["Travel", "美食穿搭"], "has no tokens for '美食穿搭': rename"),
        ([" "], "has no tokens for ' ': rename"),
        ([letter * 2 for letter in "穿搭龘鬱餐喵"], " and 1 more: rename"),
    ],
)
def test_categories_that_wordpiece_cannot_write_or_tell_apart_are_named_in_one_line(categories, message):
    with pytest.raises(VocabularyError) as refused:
        check_outputs(builder("WordPiece (MiniLM)"), categories)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def _words(change: Callable[[Tokenizer], None]) -> PromptBuilder:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2, "b": 3, ",": 4}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.add_special_tokens(["[UNK]"])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    change(tokenizer)
    return PromptBuilder(tokenizer, special_ids(tokenizer, None, "</s>", None), SHARED, 20, 80)


def test_a_vocabulary_without_the_comma_is_refused():
    def lose_commas(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Replace(",", " ")

    check_outputs(_words(lambda tokenizer: None), ["a", "b"])
    with pytest.raises(VocabularyError, match="cannot write the ',' between hashtags: take another base model"):
        check_outputs(_words(lose_commas), ["a", "b"])
