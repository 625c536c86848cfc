import subprocess
import sys

import numpy as np
import torch
from support.checkpoint import tiny_checkpoint
from support.tiny import NOTES, tiny_base
from transformers import DynamicCache

from model.inference.open import Runtime, open_backend
from model.inference.openvino import CompiledNetwork
from model.network.notellm import NoteLLM


@torch.inference_mode()
def test_states_logits_embeddings_and_cache_are_those_of_the_network_whatever_the_padding():
    torch.manual_seed(0)
    network = NoteLLM(tiny_base("mistral", seed=3).backbone, dim=8).eval()
    compiled = CompiledNetwork(network, "float32", threads=1)
    ids = torch.randint(3, 300, (2, 9))
    mask = torch.tensor([[1] * 9, [0] * 6 + [1] * 3])  # the second is padded on the left
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found, expected = DynamicCache(), DynamicCache()
    for part in (slice(0, 7), slice(7, 9)):  # at once, and behind others
        now = (ids[:, part], mask[:, : part.stop], positions[:, part])
        states = compiled.extend(*now, found)
        real = mask[:, part].bool()
        torch.testing.assert_close(states[real], network.extend(*now, expected)[real], atol=1e-5, rtol=1e-5)
        assert states.isfinite().all()  # of padding, too
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        real = mask.bool()
        torch.testing.assert_close(mine.keys.mT.movedim(3, 1)[real], theirs.keys.mT.movedim(3, 1)[real])
        torch.testing.assert_close(mine.values.mT.movedim(3, 1)[real], theirs.values.mT.movedim(3, 1)[real])
    torch.testing.assert_close(
        compiled.extend(ids, mask, positions, None)[0], network.hidden(ids)[0], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(compiled.logits(states[:, -1]), network.logits(states[:, -1]), atol=1e-5, rtol=1e-5)
    assert torch.equal(compiled.embedding(states[:, -1]), network.embedding(states[:, -1]))


def test_a_vector_does_not_depend_on_its_batch(tmp_path):
    """As clients are promised: to 1e-5, of its cosine."""
    tiny_checkpoint(tmp_path)
    backend = open_backend("openvino", tmp_path, Runtime("float32", threads=1))
    prompts = backend.tokenize(NOTES)
    alone = np.concatenate([backend.embed([prompt]) for prompt in prompts])
    np.testing.assert_allclose(alone, backend.embed(prompts), atol=2e-6)


def test_results_stay_when_it_runs_again():
    network = NoteLLM(tiny_base("opt", seed=3).backbone, dim=8).eval()
    compiled = CompiledNetwork(network, "float32", threads=1)
    first = compiled.logits(torch.ones(2, 64))
    kept = first.clone()
    compiled.logits(torch.zeros(2, 64))
    assert torch.equal(first, kept)


def test_it_computes_in_the_precision_asked_for():
    network = NoteLLM(tiny_base("opt", seed=3).backbone, dim=8).eval()
    logits = [CompiledNetwork(network, dtype, threads=1).logits(torch.ones(2, 64)) for dtype in ("float32", "bfloat16")]
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        assert not torch.equal(*logits)
    torch.testing.assert_close(*logits, atol=0.05, rtol=0)


def test_openvino_tells_nobody_that_it_is_used():
    script = (
        "import model.inference.openvino; from openvino.tools.ovc import telemetry_utils as it; print(it.tm.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
