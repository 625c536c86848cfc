"""The contract of every backend: its predictions are those of the trained network."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.checkpoint import CATEGORIES, tiny_checkpoint
from support.hostile import hostile_notes
from support.tiny import NOTES

from model.backend import Backend
from model.inference import golden
from model.inference.hf import HfBackend
from model.inference.open import Runtime
from model.inference.open import open_backend as open_any
from model.network.checkpoint import load, load_manifest
from model.text.hashtags import clean_tag

# vLLM has an environment of its own: `make vllm-test` runs this file there.
BACKENDS = ["hf", "openvino", *(["vllm"] if find_spec("vllm") else [])]
# Four notes at once, 64 tokens a step, and a cache of 576: prompts are cut, run with others that are being written,
# and have to make room for each other.
TIGHT = {"max_num_batched_tokens": 64, "max_num_seqs": 4, "num_gpu_blocks_override": 18}
CASES = [
    pytest.param(("llama", "shared", {}), id="llama"),
    pytest.param(("llama", "paper", TIGHT), id="llama-paper-tight"),
    pytest.param(("mistral", "shared", {}), id="mistral"),
    pytest.param(("qwen2", "shared", TIGHT), id="qwen2-tied-tight"),
    pytest.param(("qwen3", "shared", {}), id="qwen3-tied"),
    pytest.param(("opt", "shared", {}), id="opt"),
]


def open_backend(name: str, checkpoint: Path, work: Path, options: dict[str, Any]) -> Backend:
    if name != "vllm":
        return open_any(name, checkpoint, Runtime("float32", threads=1))
    from support.engine import open_vllm

    return open_vllm(checkpoint, work, options)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    shape, template, options = request.param
    folder = tmp_path_factory.mktemp(f"{shape}-{template}")
    tiny_checkpoint(folder, seed=3, shape=shape, template=template)
    return folder, options


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, case, tmp_path_factory) -> Iterator[Backend]:
    folder, options = case
    opened = open_backend(request.param, folder, tmp_path_factory.mktemp("serving"), options)
    yield opened
    if request.param == "vllm":
        opened.close()


def same(one, other) -> None:
    np.testing.assert_allclose(one.vector, other.vector, atol=1e-3)
    assert one.category.name == other.category.name
    assert one.category.score == pytest.approx(other.category.score, abs=1e-3)
    assert [tag.name for tag in one.hashtags] == [tag.name for tag in other.hashtags]
    assert [tag.score for tag in one.hashtags] == pytest.approx([tag.score for tag in other.hashtags], abs=1e-3)


def test_the_vector_is_the_training_forwards(backend, case):
    network, _, _ = load(case[0])
    for prompt, prediction in zip(backend.tokenize(NOTES), backend.predict(backend.tokenize(NOTES), 3), strict=True):
        state = network.hidden(torch.tensor([prompt.token_ids]))[:, -2]
        expected = F.normalize(network.embedding(state), dim=-1)[0].detach().numpy()
        assert prediction.vector.dtype == np.float32
        np.testing.assert_allclose(prediction.vector, expected, atol=1e-3)


def test_it_predicts_as_plain_transformers_does(backend, case):
    plain = HfBackend.open(case[0])
    for found, expected in zip(
        backend.predict(backend.tokenize(NOTES), 3), plain.predict(plain.tokenize(NOTES), 3), strict=True
    ):
        same(found, expected)


def test_a_note_is_predicted_the_same_alone_in_a_batch_and_again(backend):
    many = [*NOTES, *reversed(NOTES)]
    together = backend.predict(backend.tokenize(many), 3)
    for note, among_others in zip(many, together, strict=True):
        [alone] = backend.predict(backend.tokenize([note]), 3)
        same(alone, among_others)


def test_embedding_alone_gives_the_vectors_of_predictions(backend):
    prompts = backend.tokenize(NOTES)
    vectors = backend.embed(prompts)
    np.testing.assert_allclose(vectors, [prediction.vector for prediction in backend.predict(prompts, 1)], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_free_categories_are_those_of_plain_transformers(backend, case):
    plain = HfBackend.open(case[0])
    written = backend.write_categories(backend.tokenize(NOTES))
    assert written == plain.write_categories(plain.tokenize(NOTES))


def test_no_more_hashtags_than_asked_for(backend):
    for count in (1, 4):
        for prediction in backend.predict(backend.tokenize(NOTES), count):
            assert len(prediction.hashtags) <= count


def test_nothing_in_nothing_out(backend):
    assert backend.embed([]).shape == (0, backend.dim)
    assert backend.predict([], 5) == []
    assert backend.write_categories([]) == []


def test_its_predictions_of_the_canaries_are_the_golden_answers(backend, case):
    golden.check(backend, load_manifest(case[0]))


def test_hostile_notes_are_predicted_like_any_other(backend):
    """Special tokens, fragments of prompts, very long and empty texts."""
    prompts = backend.tokenize(hostile_notes(24, long=20))
    for prediction in backend.predict(prompts, 5):
        assert prediction.category.name in CATEGORIES
        assert np.isfinite(prediction.vector).all()
        assert all(clean_tag(tag.name) == tag.name for tag in prediction.hashtags)
