"""What the tokens of every kind of tokenizer add to a text."""

import pytest
from support.scripts import EMOJI, hashtags
from support.vocabularies import LOSSLESS, VOCABULARIES, builder
from transformers.convert_slow_tokenizer import bytes_to_unicode


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
