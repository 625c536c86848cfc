import math
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.outputs import written as outputs_of
from support.scripts import EMOJI, hashtags
from support.tiny import tiny_tokenizer
from support.vocabularies import builder as builder_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.network.base_models import special_ids
from model.text.automaton import REFUSED, SEPARATORS, START, transitions
from model.text.grammar import CategoryGrammar, FreeGrammar, Grammar, TagGrammar
from model.text.hashtags import MAX_CHARS, clean_tag
from model.text.outputs import Outputs
from model.text.prompt import SHARED, PromptBuilder

_TOKENIZER = tiny_tokenizer()
BUILDER = PromptBuilder(_TOKENIZER, special_ids(_TOKENIZER, "<s>", "</s>", None), SHARED, 20, 80)
GRAMMAR = TagGrammar(BUILDER, 20)
SIZE = len(BUILDER.token_bytes)
# Tokens of it hold parts of characters, and ends of hashtags with the comma and the space behind them.
MERGED = builder_of("byte-level")


def _allowed(grammar: TagGrammar, written: list[int]) -> torch.Tensor:
    """Whether each token may follow, bool, shape (V,)."""
    return outputs_of(grammar, [written]).log_probabilities(torch.zeros(1, len(grammar._bytes)))[0].isfinite()


def _goes_on(grammar: Grammar, tokens: list[int]) -> bool:
    return bool(outputs_of(grammar, [tokens]).goes_on[0])


def _can_write(grammar: TagGrammar, tokens: list[int]) -> bool:
    return all(bool(_allowed(grammar, tokens[:place])[token]) for place, token in enumerate(tokens))


def _greedy(grammar: TagGrammar, scores_TV: torch.Tensor) -> list[int]:
    """What a network that wants these scores, one after the other, writes."""
    written: list[int] = []
    outputs = outputs_of(grammar, [[]])
    for scores_V in scores_TV:
        if not outputs.goes_on[0]:
            break
        written.append(int(outputs.log_probabilities(scores_V[None])[0].argmax()))
        outputs.advance(np.array(written[-1:]))
    return written


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.sampled_from([BUILDER, MERGED]))
def test_whatever_a_network_wants_it_writes_closed_hashtags_of_allowed_characters(seed, builder):
    grammar = TagGrammar(builder, 5)
    random = torch.Generator().manual_seed(seed)
    written = _greedy(grammar, torch.randn((grammar.max_tokens, len(builder.token_bytes)), generator=random))
    # A part of a character may stand behind the last comma alone, in one token with it.
    text = b"".join(builder.token_bytes[token] for token in written).decode(errors="replace").rstrip("\ufffd")
    assert all(unicodedata.category(letter)[0] in "LMN" or letter in f"_ {SEPARATORS}" for letter in text)
    found = grammar.parse(written, [0.0] * len(written))
    assert len(found) <= 5
    assert all(clean_tag(tag.name) == tag.name for tag in found)


@settings(max_examples=300)
@given(st.lists(st.sampled_from([tag for tags in hashtags().values() for tag in tags]), min_size=1, max_size=5))
def test_whatever_is_a_clean_hashtag_can_be_written_with_the_tokens_that_training_teaches(tags):
    grammar = TagGrammar(MERGED, 5)
    tokens = MERGED.output(", ".join(tags))
    assert _can_write(grammar, tokens)
    assert {tag.name for tag in grammar.parse(tokens, [0.0] * len(tokens))} == set(tags)


@settings(max_examples=500)
@given(st.text(max_size=45))
def test_any_text_that_cleans_to_a_hashtag_does_so_letter_by_letter_and_byte_by_byte(text):
    tag = clean_tag(text)
    if tag is not None:
        tokens = BUILDER.output(f"a, {tag}")
        assert _can_write(TagGrammar(BUILDER, 2), tokens)


def test_the_bytes_that_the_automaton_takes_are_those_of_hashtags_and_nothing_else():
    """Every character after a letter, judged by `clean_tag`; overlong forms, surrogates and stray bytes by Python."""
    table = transitions()

    def place(text: bytes) -> int:
        state = START
        for byte in text:
            state = int(table[state, byte])
        return state

    for point in [*range(0x3400), *range(0x9F00, 0x10000), *range(0x10000, 0x10F000, 37)]:
        letter = chr(point)
        if letter in f" {SEPARATORS}" or 0xD800 <= point < 0xE000:
            continue
        is_allowed = letter == "_" or unicodedata.category(letter) in ("Mn", "Mc") or letter.isalnum()
        invisible = clean_tag(f"a{letter}b") is None and clean_tag(f"a{letter}") is None
        compatible = unicodedata.normalize("NFKC", letter) != letter
        if not compatible:
            assert (place(f"a{letter}".encode()) != REFUSED) == (is_allowed and not invisible), hex(point)
    for text in (b"\xc0\x80", b"\xe0\x80", b"\xed\xa0", b"\xf0\x80", b"\xf4\x90", b"\xf8", b"\x80", b"\xe6\x97a"):
        assert place(text) == REFUSED


@pytest.mark.parametrize("text", EMOJI)
def test_no_part_of_an_emoji_is_written(text):
    for builder in (BUILDER, MERGED):
        grammar = TagGrammar(builder, 5)
        assert not _can_write(grammar, builder.output(text))
        assert not _can_write(grammar, builder.output(f"travel, {text}"))


def test_no_character_is_written_that_cleaning_takes_apart():
    assert not _can_write(GRAMMAR, BUILDER.output("a⑸"))  # which is a(5)


def test_a_hashtag_ends_after_forty_characters_however_many_bytes_they_have():
    for letter in ("x", "旅", "𠮷"):
        tokens = BUILDER.output(letter * MAX_CHARS)[:-1]
        assert _can_write(GRAMMAR, tokens)
        allowed_V = _allowed(GRAMMAR, tokens)
        openings = {separator.encode()[:1] for separator in SEPARATORS}
        assert {BUILDER.token_bytes[token] for token in allowed_V.nonzero()[:, 0].tolist()} == {b"", *openings}
        assert allowed_V[GRAMMAR.end]


def test_a_vocabulary_without_every_byte_writes_whole_characters_alone():
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, ",": 3, "Ġ": 4, "æ": 5, "æĹħ": 6, "b": 7}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    builder = PromptBuilder(tokenizer, special_ids(tokenizer, "<s>", "</s>", None), SHARED, 20, 80)
    assert builder.token_bytes[5:7] == [b"\xe6", "旅".encode()]
    allowed_V = _allowed(TagGrammar(builder, 2), [])
    assert allowed_V[6]
    assert not allowed_V[5]


def _hindi_builder() -> PromptBuilder:
    """Word pieces as BERT cuts Hindi: most begin with a vowel's mark."""
    pieces = [
        "[UNK]",
        "<s>",
        "</s>",
        ",",
        "_",
        "3",
        "travel",
        "हि",
        "नम",
        "ा",
        "##ा",
        "##ि",
        "##्",
        "##न",
        "##्दी",
        "##_",
        "##3",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: token for token, piece in enumerate(pieces)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PromptBuilder(tokenizer, special_ids(tokenizer, "<s>", "</s>", None), SHARED, 20, 80)


@settings(max_examples=200)
@given(st.integers(0, 2**31))
def test_whatever_is_written_in_a_script_with_marks_is_a_clean_hashtag(seed):
    builder = _hindi_builder()
    grammar = TagGrammar(builder, 20)
    scores_TV = torch.randn((60, len(builder.token_bytes)), generator=torch.Generator().manual_seed(seed))
    tokens = _greedy(grammar, scores_TV)
    text = b"".join(builder.token_bytes[token] for token in tokens).decode()
    closed = text.split(",") if tokens[-1] == grammar.end else text.split(",")[:-1]
    for tag in closed:
        # Underscores alone are a word to the tokenizer, and a last token may lead beyond forty characters.
        assert clean_tag(tag) is not None or set(tag) <= set("_ ") or len(tag) > MAX_CHARS or tokens == [grammar.end]


def test_hindi_is_written_with_its_vowels():
    builder = _hindi_builder()
    tokens = builder.output("हिन्दी, travel")
    grammar = TagGrammar(builder, 20)
    assert _can_write(grammar, tokens)
    assert [tag.name for tag in grammar.parse(tokens, [0.0] * len(tokens))] == ["हिन्दी", "travel"]


def test_a_list_may_be_empty_but_no_hashtag_of_it():
    [comma] = BUILDER.output(",")[:-1]
    [space] = BUILDER.output(" ")[:-1]
    empty = _allowed(GRAMMAR, [])
    assert empty[GRAMMAR.end]
    assert not empty[comma]
    for written in ("travel,", "travel, "):
        allowed_V = _allowed(GRAMMAR, BUILDER.output(written)[:-1])
        assert not allowed_V[comma]
        assert not allowed_V[GRAMMAR.end]
    assert not _allowed(GRAMMAR, [space])[space]


def test_one_word_does_not_follow_itself_but_letters_digits_and_syllables_do():
    wordpiece = builder_of("WordPiece (MiniLM)")
    grammar = TagGrammar(wordpiece, 5)
    [travel] = wordpiece.output("travel")[:-1]
    assert not _allowed(grammar, [travel])[travel]
    assert _can_write(grammar, wordpiece.output("bora_bora, 2000, hahahaha, 人人"))


def test_hashtags_stand_most_likely_first_with_the_mean_probability_of_their_own_tokens():
    tokens = BUILDER.output("travel, diy, travel, 旅")
    text = [BUILDER.token_bytes[token] for token in tokens]
    bounds = [place for place, piece in enumerate(text) if piece == b","]
    probabilities = [0.01] * len(tokens)  # of separators, and of the lone space before 旅
    for place in range(bounds[0]):
        probabilities[place] = 0.5
    for place in range(bounds[0] + 1, bounds[1]):
        probabilities[place] = 0.9
    for place in range(bounds[1] + 1, bounds[2]):
        probabilities[place] = 0.7
    assert text[bounds[2] + 1 :] == [b" ", b"\xe6", b"\x97", b"\x85", b""]
    for place, probability in zip(range(len(tokens) - 4, len(tokens) - 1), (0.1, 0.2, 0.4), strict=True):
        probabilities[place] = probability
    found = GRAMMAR.parse(tokens, [math.log(p) for p in probabilities])
    assert [tag.name for tag in found] == ["diy", "travel", "旅"]
    assert [tag.score for tag in found] == pytest.approx([0.9, 0.7, 0.2])


def test_a_token_that_closes_a_hashtag_counts_toward_it():
    tokens = MERGED.output("ที่, 咖啡")
    grammar = TagGrammar(MERGED, 5)
    merged = [token for token in range(len(MERGED.token_bytes)) if MERGED.token_bytes[token].endswith(b", ")]
    assert len(merged) > 5, "the vocabulary has none, so this tests nothing"
    token = next(token for token in merged if clean_tag(MERGED.token_bytes[token][:-2].decode(errors="ignore")))
    written = [token, *MERGED.output("咖啡")]
    [first, second] = grammar.parse(written, [math.log(0.3), *[math.log(0.2)] * (len(written) - 2), 0.0])
    assert (first.score, second.score) == (pytest.approx(0.3), pytest.approx(0.2))
    assert second.name == "咖啡"
    assert tokens


def test_a_hashtag_that_was_not_closed_is_dropped():
    tokens = BUILDER.output("travel, diy")[:-1]
    assert [tag.name for tag in GRAMMAR.parse(tokens, [0.0] * len(tokens))] == ["travel"]


def test_what_is_parsed_is_clean():
    tokens = BUILDER.output("slow _ travel, 3d，旅 行、café")
    names = {tag.name for tag in GRAMMAR.parse(tokens, [0.0] * len(tokens))}
    assert names == {"slow_travel", "3d", "旅行", "café"}


def test_a_list_ends_behind_its_last_hashtag():
    grammar = GRAMMAR.of(2)
    tokens = BUILDER.output("travel, diy, trains")
    [comma] = BUILDER.output(",")[:-1]
    commas = [place for place, token in enumerate(tokens) if token == comma]
    assert _goes_on(grammar, tokens[: commas[1]])
    assert not _goes_on(grammar, tokens[: commas[1] + 1])
    assert [tag.name for tag in GRAMMAR.of(1).parse(tokens, [-0.1] * len(tokens))] == ["travel"]


def test_the_probabilities_of_all_paths_through_the_closed_set_add_up_to_one():
    """Each step is renormalized over what the set allows, so the categories share out probability 1."""
    names = ["Home Decor", "Home Gym", "Baking", "Travel"]
    grammar = CategoryGrammar(BUILDER, names)
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))

    def leaves(tokens: list[int], log_probabilities: list[float]) -> dict[str, float]:
        outputs = outputs_of(grammar, [tokens])
        if not outputs.goes_on[0]:
            found = grammar.parse(tokens, log_probabilities)
            return {found.name: found.score}
        next_V = outputs.log_probabilities(logits[None])[0]
        found = {}
        for token in next_V.isfinite().nonzero()[:, 0].tolist():
            found |= leaves([*tokens, token], [*log_probabilities, float(next_V[token])])
        return found

    shares = leaves([], [])
    assert sorted(shares) == sorted(names)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_what_is_written_behind_a_complete_category_changes_nothing():
    grammar = CategoryGrammar(BUILDER, ["Home Decor", "Home Gym", "Travel"])
    tokens = BUILDER.output("Travel")
    assert not _goes_on(grammar, tokens[:1])
    assert not _goes_on(grammar, tokens)
    assert grammar.parse(tokens, [-0.5, *[-9.0] * (len(tokens) - 1)]).score == pytest.approx(math.exp(-0.5))


def test_names_that_the_tokenizer_cannot_tell_apart_are_no_endless_path():
    grammar = CategoryGrammar(BUILDER, ["Travel", "Travel"])
    assert grammar.parse(BUILDER.output("Travel"), [0.0] * 20).name == "Travel"


def test_a_network_may_have_more_logits_than_the_tokenizer_has_tokens():
    logits = torch.zeros(1, SIZE + 7)
    logits[0, SIZE:] = 99.0
    for grammar in (GRAMMAR, CategoryGrammar(BUILDER, ["Baking", "Travel"])):
        assert outputs_of(grammar, [[]]).log_probabilities(logits).shape == (1, SIZE)


def test_outputs_of_any_grammar_are_written_side_by_side_as_each_is_alone():
    """They come, go and change places, and each has the tokens of its own grammar and of what it has written."""
    category = CategoryGrammar(MERGED, ["Home Decor", "Home Gym", "Baking"])
    free = FreeGrammar(MERGED, [])
    tags = TagGrammar(MERGED, 2)
    logits_NV = torch.randn((4, len(MERGED.token_bytes)), generator=torch.Generator().manual_seed(2))
    rows = [
        (tags, MERGED.output("diy")[:-1]),
        (category, MERGED.output("Home Decor")[:1]),
        (free, MERGED.output("Anything")[:-1]),
        (tags.of(1), MERGED.output("diy, b")),
    ]
    alone = [outputs_of(grammar, [tokens]).log_probabilities(logits_NV[:1])[0] for grammar, tokens in rows]
    assert alone[3].isfinite().nonzero().tolist() == [[MERGED.special.eos]]

    together = Outputs()
    for grammar, _ in rows:
        together.join(grammar)
    for place in range(max(len(tokens) for _, tokens in rows)):
        is_there = np.array([place < len(tokens) for _, tokens in rows])
        together.advance(np.array([[*tokens, *[0] * 99][place] for _, tokens in rows]), is_there)
    for order in ([0, 1, 2, 3], [3, 1, 0], [1, 0]):
        together.keep(np.array(order))
        alone = [alone[row] for row in order]
        found_NV = together.log_probabilities(logits_NV[:1].expand(len(order), -1))
        for found_V, expected_V in zip(found_NV, alone, strict=True):
            torch.testing.assert_close(found_V, expected_V)
