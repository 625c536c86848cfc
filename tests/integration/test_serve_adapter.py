"""`notellm serve` with an adapter as its model."""

import subprocess
from pathlib import Path

import pytest
from support.adapter import tiny_adapter
from support.service import NOTELLM, Service, running

from model.network.checkpoint import load_manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_adapter(tmp_path_factory.mktemp("lora"))


def test_its_checkpoint_is_made_once_and_serves(checkpoint, tmp_path):
    service = Service(tmp_path, checkpoint / "adapter")
    with running(service), service.client() as notellm:
        assert notellm.status().model == load_manifest(checkpoint).fingerprint
        notellm.put("a", {"title": "Night train to Lisbon"}, wait_s=10)
        assert notellm.status().notes.searchable == 1
    assert "it is folded into its base model" in (tmp_path / "log").read_text()
    (tmp_path / "log").unlink()
    with running(service):
        assert service.ready()
    assert "it is folded into its base model" not in (tmp_path / "log").read_text()


def test_a_base_model_that_is_gone_ends_it_with_the_reason(checkpoint, tmp_path):
    service = Service(tmp_path, checkpoint / "adapter")
    (checkpoint.parent / "base.gguf").rename(tmp_path / "elsewhere.gguf")
    try:
        ended = subprocess.run([*NOTELLM, "serve"], env=service.environment, capture_output=True, text=True, timeout=60)
    finally:
        (tmp_path / "elsewhere.gguf").rename(checkpoint.parent / "base.gguf")
    assert ended.returncode == 2
    assert "cannot open the base model" in ended.stderr
    assert "NOTELLM_CHECKPOINT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_alone_says_how_to_make_the_checkpoint(checkpoint, tmp_path):
    service = Service(tmp_path, checkpoint / "adapter")
    environment = service.environment | {"NOTELLM_REDIS_URL": "redis://127.0.0.1:1/0"}
    ended = subprocess.run([*NOTELLM, "worker"], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "holds an adapter: `notellm merge` makes a checkpoint of it" in ended.stderr
    assert "Traceback" not in ended.stderr
