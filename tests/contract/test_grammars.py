"""The contract of the grammars on every backend and tokenizer: what training teaches can be written in serving.

A network that has learned its lists by heart is played by logits that want the next token that training teaches.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from support.scripts import EMOJI, hashtags, lists
from support.vocabularies import VOCABULARIES, builder

from model.text.grammar import Grammars
from model.text.hashtags import clean_tag
from model.text.outputs import Outputs
from model.text.prompt import PromptBuilder

CATEGORIES = ("Baking", "Home Decor", "Home Gym", "美食", "美妆")
# vLLM has an environment of its own: `make vllm-test` runs this file there.
BACKENDS = ["hf", "vllm"] if find_spec("vllm") else ["hf"]

Written = list[list[int]]
Wants = Callable[[int, Sequence[int]], int]  # of a row, after the tokens that it has written, the next one


def _logits(wanted: list[int], vocabulary: PromptBuilder) -> torch.Tensor:
    """Logits that want one token in each row, of a network with more logits than there are tokens."""
    logits_NV = torch.zeros(len(wanted), len(vocabulary.token_bytes) + 3)
    logits_NV[range(len(wanted)), wanted] = 9.0
    return logits_NV


def write_on_hf(vocabulary: PromptBuilder, name: str, count: int, rows: int, wants: Wants) -> Written:
    """As `HfBackend` does, which lets an output go when it is complete."""
    grammars = Grammars(vocabulary, CATEGORIES)
    grammar = grammars.category if name == "category" else grammars.tags(count)
    written: Written = [[] for _ in range(rows)]
    places, outputs = np.arange(rows), Outputs()
    outputs.join(grammar, rows)
    while places.size:
        logits_NV = _logits([wants(place, written[place]) for place in places], vocabulary)
        best_N = outputs.log_probabilities(logits_NV).argmax(dim=1).numpy()
        outputs.advance(best_N)
        for place, token in zip(places, best_N.tolist(), strict=True):
            written[place].append(token)
        left = np.flatnonzero(outputs.goes_on)
        outputs.keep(left)
        places = places[left]
    return written


def write_on_vllm(vocabulary: PromptBuilder, name: str, count: int, rows: int, wants: Wants) -> Written:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from model.inference.vllm_grammar import COUNT, GRAMMAR, GrammarProcessor

    processor = object.__new__(GrammarProcessor)  # which would open a checkpoint
    processor._begin(Grammars(vocabulary, CATEGORIES))
    written: Written = [[] for _ in range(rows)]
    params = SamplingParams(extra_args={GRAMMAR: name, COUNT: count})
    added = [(row, params, None, tokens) for row, tokens in enumerate(written)]
    processor.update_state(BatchUpdate(batch_size=rows, removed=[], added=added, moved=[]))
    while not all(vocabulary.special.eos in tokens for tokens in written):
        wanted = [wants(row, tokens) for row, tokens in enumerate(written)]
        for tokens, token in zip(written, processor.apply(_logits(wanted, vocabulary)).argmax(dim=1), strict=True):
            tokens.append(int(token))
    # It answers with the end token wherever an output is complete.
    return [tokens[: tokens.index(vocabulary.special.eos) + 1] for tokens in written]


WRITE = {"hf": write_on_hf, "vllm": write_on_vllm}


def by_heart(taught: Written) -> Wants:
    return lambda row, written: taught[row][min(len(written), len(taught[row]) - 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_lists_of_five_in_every_script_are_written_as_training_teaches_them(name, backend):
    vocabulary = builder(name)
    known = {script: [tag for tag in tags if vocabulary.knows(tag)] for script, tags in hashtags().items()}
    if "WordPiece" not in name:
        assert known == hashtags()
    texts = [", ".join(tags) for script in known.values() if script for tags in lists(script)[::4]]
    taught = [vocabulary.output(text) for text in texts]
    # The sixth is never begun, so the list ends in its end token.
    written = WRITE[backend](vocabulary, "topics", 6, len(taught), by_heart(taught))
    assert written == taught
    grammar = Grammars(vocabulary, CATEGORIES).tags(5)
    for text, tokens in zip(texts, written, strict=True):
        found = {tag.name for tag in grammar.parse(tokens, [0.0] * len(tokens))}
        if "WordPiece" in name:  # which has no case, accents and Hangul's syllables
            found_text = clean_tag(vocabulary.decode(tokens).split(",")[0])
            assert found_text in found
        else:
            assert found == set(text.split(", "))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_who_wants_emoji_writes_words(name, backend):
    vocabulary = builder(name)
    taught = [vocabulary.output(f"{emoji}, {emoji}") for emoji in EMOJI]
    for tokens in WRITE[backend](vocabulary, "topics", 2, len(taught), by_heart(taught)):
        text = b"".join(vocabulary.token_bytes[token] for token in tokens).decode()
        assert not set(text) & set("".join(EMOJI)) - set("1")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in VOCABULARIES if "WordPiece" not in name])
def test_categories_in_every_script_are_written_to_the_end(name, backend):
    vocabulary = builder(name)
    taught = [vocabulary.output(category) for category in CATEGORIES]
    grammar = Grammars(vocabulary, CATEGORIES).category
    for category, tokens in zip(
        CATEGORIES, WRITE[backend](vocabulary, "category", 1, len(taught), by_heart(taught)), strict=True
    ):
        assert grammar.parse(tokens, [0.0] * len(tokens)).name == category
