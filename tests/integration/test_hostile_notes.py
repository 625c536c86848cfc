"""A thousand hostile notes through the model that comes with the service: nothing in a note is ever a command."""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from support.hostile import LONG, hostile_notes

from model.backend import Backend, Prediction, Prompt
from model.inference.hf import HfBackend
from model.network.checkpoint import load_manifest
from model.note import Note
from model.text.prompt import EMB
from service.settings import MINI

NOTES = hostile_notes(1000)
HASHTAGS = 2


# vLLM has an environment of its own: `make vllm-test` runs this file there, too.
@pytest.fixture(scope="module", params=["vllm"] if find_spec("vllm") else ["hf"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    if request.param == "vllm":
        from support.engine import open_vllm

        opened = open_vllm(MINI, tmp_path_factory.mktemp("serving"), {})
        yield opened
        opened.close()
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield HfBackend.open(MINI)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prompts(backend: Backend) -> list[Prompt]:
    return backend.tokenize(NOTES)


@pytest.fixture(scope="module")
def predictions(backend: Backend, prompts: list[Prompt]) -> list[Prediction]:
    """In the order of the notes, read with others as a worker reads them."""
    return backend.predict(prompts, HASHTAGS)


def test_the_notes_are_as_many_as_hostile_and_as_long_as_they_should_be():
    texts = [f"{note.title}{note.content}{''.join(note.hashtags)}" for note in NOTES]
    assert len(NOTES) == 1000
    assert sum(EMB in text for text in texts) > 100
    assert sum('The compression word is: "' in text for text in texts) > 50
    assert sum(len(note.content) == LONG for note in NOTES) == 60


def test_no_prompt_holds_a_special_token_that_a_note_without_harm_would_not_hold(backend, prompts):
    special = load_manifest(MINI).special
    framing = _framing_ids()
    [harmless] = backend.tokenize([Note("", "A walk", "along the river")])
    frame = Counter(token for token in harmless.token_ids if token in framing)
    assert frame[special.emb] == 1
    for prompt in prompts:
        assert Counter(token for token in prompt.token_ids if token in framing) == frame
        assert prompt.token_ids[-1] == special.emb


def test_no_prompt_outgrows_the_positions_that_the_network_has(backend, prompts):
    written = 40
    assert max(len(prompt.token_ids) for prompt in prompts) + written < 512


def test_every_vector_is_finite_and_of_unit_norm(predictions):
    for prediction in predictions:
        assert prediction.vector.dtype == np.float32
        assert np.linalg.norm(prediction.vector) == pytest.approx(1.0, abs=1e-3)


def test_every_category_is_in_the_closed_set(predictions):
    categories = load_manifest(MINI).categories
    assert {prediction.category.name for prediction in predictions} <= set(categories)
    assert all(0.0 <= prediction.category.score <= 1.0 for prediction in predictions)


def test_every_hashtag_is_clean(predictions):
    for prediction in predictions:
        names = [tag.name for tag in prediction.hashtags]
        scores = [tag.score for tag in prediction.hashtags]
        assert len(names) == len({name.casefold() for name in names}) <= HASHTAGS
        assert scores == sorted(scores, reverse=True)
        assert all(0.0 <= score <= 1.0 and math.isfinite(score) for score in scores)
        for name in names:
            assert re.fullmatch(r"\w{1,40}", name)
            assert unicodedata.is_normalized("NFC", name)
            assert not any(unicodedata.category(character).startswith("C") for character in name)


def test_a_hostile_note_reads_the_same_alone_as_among_the_others(backend, prompts, predictions):
    for position in range(0, 1000, 100):
        [alone] = backend.predict([prompts[position]], HASHTAGS)
        assert float(alone.vector @ predictions[position].vector) > 0.9999
        assert alone.category.name == predictions[position].category.name


def _framing_ids() -> set[int]:
    """All special tokens but the one for characters that the vocabulary does not know."""
    added = json.loads((MINI / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return {token["id"] for token in added if token["special"] and token["content"] != "[UNK]"}
