"""`notellm serve` with an adapter as its model."""

import shutil
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
    log = service.state / "logs" / "worker-0.log"
    assert "adapter_folded_in" in log.read_text()
    with running(service):
        assert service.ready()
    assert "adapter_folded_in" not in log.read_text()


def test_a_base_model_that_is_gone_ends_it_with_the_reason(checkpoint, tmp_path):
    service = Service(tmp_path, checkpoint / "adapter")
    (checkpoint.parent / "base.gguf").rename(tmp_path / "elsewhere.gguf")
    try:
        ended = subprocess.run([*NOTELLM, "serve"], env=service.environment, capture_output=True, text=True, timeout=60)
    finally:
        (tmp_path / "elsewhere.gguf").rename(checkpoint.parent / "base.gguf")
    assert ended.returncode == 2
    assert "cannot open the base model" in ended.stderr
    assert "no checkpoint can be made of the adapter in" in ended.stderr
    assert "(NOTELLM_CHECKPOINT)" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_no_adapter_any_more_is_one_line_before_anything_starts(checkpoint, tmp_path):
    adapter = shutil.copytree(checkpoint / "adapter", tmp_path / "adapter")
    (adapter / "adapter.json").write_text('{"base": "0"}')
    service = Service(tmp_path, adapter)
    ended = subprocess.run([*NOTELLM, "serve"], env=service.environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "adapter.json is damaged: it has no manifest; NOTELLM_CHECKPOINT names" in ended.stderr
    assert "Traceback" not in ended.stderr
