import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.network.checkpoint import special_ids
from model.text.grammar import TOKENS_PER_HASHTAG, CategoryGrammar, TagGrammar
from model.text.hashtags import clean_tag
from model.text.prompt import SHARED, PromptBuilder

_TOKENIZER = tiny_tokenizer()
BUILDER = PromptBuilder(_TOKENIZER, special_ids(_TOKENIZER, "<s>", "</s>", None), SHARED, 20, 80)
GRAMMAR = TagGrammar(BUILDER, 20)
SIZE = len(BUILDER.token_texts)


def _greedy(scores: torch.Tensor, steps: int) -> list[int]:
    """What a network that wants ``scores`` at every step may write."""
    written: list[int] = []
    while len(written) < steps and GRAMMAR.end not in written:
        written.append(int(GRAMMAR.log_probabilities(scores[None], [written])[0].argmax()))
    return written


@settings(max_examples=100)
@given(st.integers(0, 2**31))
def test_whatever_a_network_wants_it_writes_closed_hashtags_of_allowed_characters(seed):
    written = _greedy(torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)), 60)
    text = BUILDER.decode([token for token in written if token != GRAMMAR.end])
    assert all(letter.isalnum() or letter in "_, " for letter in text.replace("\ufffd", ""))
    runs = "".join("," if token in (GRAMMAR.comma, GRAMMAR.end) else "x" for token in written).split(",")
    assert max(len(run) for run in runs) <= TOKENS_PER_HASHTAG
    assert not any(a == b for a, b in itertools.pairwise(written))


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
    scores = torch.randn((60, len(builder.token_texts)), generator=torch.Generator().manual_seed(seed))
    tokens: list[int] = []
    while len(tokens) < len(scores) and grammar.goes_on(tokens):
        tokens.append(int(grammar.log_probabilities(scores[len(tokens)][None], [tokens])[0].argmax()))
    closed = builder.decode([token for token in tokens if token != grammar.end]).split(",")[:-1]
    for text in closed:
        # Underscores alone are a word to the tokenizer, and ## is how it decodes a word that begins in the middle.
        assert clean_tag(text) is not None or set(text) <= set("#_ ")


def test_hindi_is_written_with_its_vowels():
    builder = _hindi_builder()
    tokens = builder.output("हिन्दी, travel")
    grammar = TagGrammar(builder, 20)
    for place, token in enumerate(tokens):
        allowed_V = grammar.log_probabilities(torch.zeros(1, len(builder.token_texts)), [tokens[:place]])[0].isfinite()
        assert allowed_V[token]
    assert [tag.name for tag in grammar.parse(tokens, [0.0] * len(tokens))] == ["हिन्दी", "travel"]


def test_a_list_may_be_empty_but_no_hashtag_of_it():
    scores = torch.zeros(SIZE)
    scores[GRAMMAR.end] = 9.0
    assert _greedy(scores, 10) == [GRAMMAR.end]
    scores[GRAMMAR.comma] = 99.0
    assert _greedy(scores, 10)[0] == GRAMMAR.end
    after_comma = GRAMMAR.log_probabilities(scores[None], [[5, GRAMMAR.comma]])[0]
    assert after_comma[GRAMMAR.comma] == after_comma[GRAMMAR.end] == float("-inf")


def test_hashtags_stand_most_likely_first_with_their_mean_token_probability():
    tokens = BUILDER.output("travel, diy, travel")
    cut = [place for place, token in enumerate(tokens) if token == GRAMMAR.comma]
    probabilities = [0.5] * cut[0] + [1.0] + [0.9] * (cut[1] - cut[0] - 1) + [1.0]
    probabilities += [0.7] * (len(tokens) - 1 - len(probabilities)) + [1.0]
    found = GRAMMAR.parse(tokens, [math.log(p) for p in probabilities])
    assert [tag.name for tag in found] == ["diy", "travel"]
    assert found[0].score == pytest.approx(0.9)
    assert found[1].score == pytest.approx(0.7)


def test_a_hashtag_that_was_not_closed_is_dropped():
    tokens = BUILDER.output("travel, diy")[:-1]
    assert [tag.name for tag in GRAMMAR.parse(tokens, [0.0] * len(tokens))] == ["travel"]


def test_what_is_parsed_is_clean():
    tokens = BUILDER.output("slow _ travel, 3d")
    names = {tag.name for tag in GRAMMAR.parse(tokens, [0.0] * len(tokens))}
    assert names == {"slow_travel", "3d"}
    assert all(clean_tag(name) == name for name in names)


def test_a_list_ends_behind_its_last_hashtag():
    grammar = GRAMMAR.of(2)
    tokens = BUILDER.output("travel, diy, trains")
    commas = [place for place, token in enumerate(tokens) if token == grammar.comma]
    assert grammar.goes_on(tokens[: commas[1]])
    assert not grammar.goes_on(tokens[: commas[1] + 1])
    assert [tag.name for tag in GRAMMAR.of(1).parse(tokens, [-0.1] * len(tokens))] == ["travel"]


def test_the_probabilities_of_all_paths_through_the_closed_set_add_up_to_one():
    """Each step is renormalized over what the set allows, so the categories share out probability 1."""
    names = ["Home Decor", "Home Gym", "Baking", "Travel"]
    grammar = CategoryGrammar(BUILDER, names)
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))

    def leaves(tokens: list[int], log_probabilities: list[float]) -> dict[str, float]:
        if not grammar.goes_on(tokens):
            found = grammar.parse(tokens, log_probabilities)
            return {found.name: found.score}
        next_V = grammar.log_probabilities(logits[None], [tokens])[0]
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
    assert not grammar.goes_on(tokens[:1])
    assert grammar.parse(tokens, [-0.5, *[-9.0] * (len(tokens) - 1)]).score == pytest.approx(math.exp(-0.5))


def test_names_that_the_tokenizer_cannot_tell_apart_are_no_endless_path():
    grammar = CategoryGrammar(BUILDER, ["Travel", "Travel"])
    assert grammar.parse(BUILDER.output("Travel"), [0.0] * 20).name == "Travel"


def test_a_network_may_have_more_logits_than_the_tokenizer_has_tokens():
    logits = torch.zeros(1, SIZE + 7)
    logits[0, SIZE:] = 99.0
    for grammar in (GRAMMAR, CategoryGrammar(BUILDER, ["Baking", "Travel"])):
        assert grammar.log_probabilities(logits, [[]]).shape == (1, SIZE)
