import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.checkpoint import tiny_checkpoint
from support.tiny import NOTES

from model.inference.hf import HfBackend
from model.inference.vllm_checkpoint import SERVING, open_serving, write_serving
from model.network.checkpoint import CheckpointError, load
from model.network.notellm import open_backbone


@pytest.mark.parametrize("shape", ["llama", "mistral", "qwen2", "qwen3", "opt"])
def test_the_reserved_tokens_logits_are_the_embedding_and_the_others_are_what_they_were(shape, tmp_path):
    """Plain transformers opens the folder as the stock architecture that it is; tied matrices were separated."""
    tiny_checkpoint(tmp_path / "checkpoint", shape=shape)
    serving = write_serving(tmp_path / "checkpoint", tmp_path / "serving")
    backend = HfBackend.open(tmp_path / "checkpoint")
    network, _, _ = load(tmp_path / "checkpoint")
    [prompt] = backend.tokenize(NOTES[:1])
    ids = torch.tensor([prompt.token_ids[:-1]])
    with torch.inference_mode():
        before = network.logits(network.hidden(ids)[0, -1])
        after = open_backbone(serving.folder)(input_ids=ids).logits[0, -1]
    assert serving.first % 64 == 0
    torch.testing.assert_close(after[: len(before)], before)
    assert len(after) == serving.first + 16
    vector = F.normalize(after[serving.first :] + torch.tensor(serving.bias), dim=0)
    # The projection is rounded to the precision of the output matrix, here float16.
    torch.testing.assert_close(vector, torch.tensor(backend.embed([prompt])[0]), atol=5e-4, rtol=1e-4)


def test_what_is_complete_is_left_alone_and_what_is_not_is_written_again(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint")
    folder = write_serving(tmp_path / "checkpoint", tmp_path / "serving").folder
    written = (folder / SERVING).stat().st_mtime_ns
    write_serving(tmp_path / "checkpoint", folder)
    assert (folder / SERVING).stat().st_mtime_ns == written
    (folder / SERVING).write_text("{")
    with pytest.raises(CheckpointError, match="is not a serving checkpoint"):
        open_serving(folder)
    assert write_serving(tmp_path / "checkpoint", folder) == open_serving(folder)


def test_another_model_takes_the_place_of_the_one_before(tmp_path):
    for seed in (0, 1):
        manifest = tiny_checkpoint(tmp_path / f"checkpoint-{seed}", seed)
        serving = write_serving(tmp_path / f"checkpoint-{seed}", tmp_path / "serving")
        assert serving.manifest.fingerprint == manifest.fingerprint


def test_workers_that_start_together_find_one_whole_folder(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint")
    # Processes, as workers are: transformers cannot open models on several threads.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        folders = [tmp_path / "checkpoint"] * 2, [tmp_path / "serving"] * 2
        first, second = workers.map(write_serving, *folders)
    assert first == second == open_serving(tmp_path / "serving")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_bert_is_refused_in_one_line(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint", shape="bert")
    with pytest.raises(CheckpointError, match="it is a bert; use one of llama, mistral, opt, qwen2, qwen3, or hf"):
        write_serving(tmp_path / "checkpoint", tmp_path / "serving")


def test_weights_lie_alone_in_the_folder(tmp_path):
    """vLLM takes every safetensors file for weights of the network."""
    tiny_checkpoint(tmp_path / "checkpoint")
    folder: Path = write_serving(tmp_path / "checkpoint", tmp_path / "serving").folder
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
