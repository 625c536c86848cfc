"""SmolLM2 with the demo's adapter: what transformers computes from the merged checkpoint, vLLM computes too."""

from pathlib import Path

import numpy as np
import pytest

from model.data.samples.generate import sample_notes
from model.inference.golden import check
from model.inference.many import predict_all
from model.inference.open import Runtime, open_backend
from model.network.adapter import merge
from model.network.checkpoint import load_manifest
from service.settings import MINI


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTELLM_STATE_DIR", str(folder / "state"))
        merge(MINI.with_name("smollm2"), folder / "checkpoint")
    return folder / "checkpoint"


@pytest.mark.timeout(900)
def test_it_passes_the_golden_gate_as_a_worker_opens_it(checkpoint, tmp_path):
    check(open_backend("vllm", checkpoint, Runtime(serving_dir=tmp_path)), load_manifest(checkpoint))


@pytest.mark.timeout(900)
def test_vectors_categories_and_hashtags_are_those_of_transformers(checkpoint, tmp_path):
    """In float32: in bfloat16 one hashtag in twelve differs, where two tokens are nearly as likely."""
    notes = sample_notes()[::40]
    vllm = open_backend("vllm", checkpoint, Runtime("float32", serving_dir=tmp_path))
    found = predict_all(vllm, notes)
    expected = predict_all(open_backend("hf", checkpoint, Runtime("float32")), notes)
    cosines = [float(one.vector @ other.vector) for one, other in zip(found, expected, strict=True)]
    assert min(cosines) > 0.999
    same = [one.category.name == other.category.name for one, other in zip(found, expected, strict=True)]
    assert np.mean(same) > 0.95
    alike = [_overlap(one.hashtags, other.hashtags) for one, other in zip(found, expected, strict=True)]
    assert np.mean(alike) > 0.95


def _overlap(one, other) -> float:
    """Of two lists of hashtags, the share that stands in both."""
    names, others = {tag.name for tag in one}, {tag.name for tag in other}
    return len(names & others) / max(1, len(names | others))
