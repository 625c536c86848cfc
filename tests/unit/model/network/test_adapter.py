import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.adapter import tiny_adapter
from support.gguf_files import write_llama

from model.inference.golden import check
from model.inference.hf import HfBackend
from model.network.adapter import ADAPTER, AdapterError, merge
from model.network.base_models import open_base
from model.network.checkpoint import PREDICTIONS, CheckpointError, add_calibration, is_adapter, load_manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_adapter(tmp_path_factory.mktemp("lora"))


@pytest.fixture
def adapter(checkpoint, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NOTELLM_STATE_DIR", str(checkpoint.parent / "state"))
    return Path(shutil.copytree(checkpoint / "adapter", tmp_path / "adapter"))


def test_an_adapter_merged_again_is_the_checkpoint_that_was_trained(checkpoint, adapter, tmp_path):
    manifest = merge(adapter, tmp_path / "again")
    trained = load_manifest(checkpoint)
    assert manifest == trained  # with the digest of every file
    check(HfBackend.open(tmp_path / "again"), manifest)


def test_without_a_dtype_of_its_own_it_has_that_of_the_checkpoint(tmp_path):
    trained = tiny_adapter(tmp_path, lora_dtype=None, steps=1)
    weights = load_file(trained / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_it_learned_something_and_is_small(checkpoint, adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float8_e4m3fn}
    weights = {name: weight.float() for name, weight in weights.items()}
    assert all(weight.abs().sum() > 0 for name, weight in weights.items() if "lora_B" in name)
    size = sum(path.stat().st_size for path in adapter.iterdir())
    assert size < 0.5 * (checkpoint / "model.safetensors").stat().st_size


def test_peft_opens_it_over_the_same_base(checkpoint, adapter):
    base = open_base(str(checkpoint.parent / "base.gguf"), (), "bfloat16")
    ids = torch.tensor([base.tokenizer.encode("Night train").ids])
    ours = HfBackend.open(checkpoint, "bfloat16")._network.backbone
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base.backbone, adapter).merge_and_unload()
        states = [one.base_model(ids).last_hidden_state.float() for one in (theirs, ours)]
    assert torch.cosine_similarity(*states, dim=-1).min() > 0.999


def test_a_folder_is_an_adapter_or_a_checkpoint(checkpoint, adapter):
    assert is_adapter(adapter)
    assert not is_adapter(checkpoint)
    with pytest.raises(CheckpointError, match="holds an adapter: `notellm merge` makes a checkpoint of it"):
        load_manifest(adapter)


def test_a_calibration_of_the_checkpoint_is_the_adapters_too(checkpoint, tmp_path, adapter):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    calibrated = add_calibration(copy, {"category": [0.0, 1.0]})
    assert merge(copy / "adapter", tmp_path / "out") == calibrated
    assert load_manifest(checkpoint).calibration is None


def test_predictions_that_came_with_it_go_along(adapter, tmp_path):
    (adapter / PREDICTIONS).write_bytes(b"some")
    merge(adapter, tmp_path / "out")
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == b"some"


def test_over_another_base_than_its_own_it_is_refused(adapter, tmp_path, monkeypatch):
    other = tmp_path / "other.gguf"
    write_llama(other)
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    with pytest.raises(
        AdapterError, match=r"belongs to the base model [0-9a-f]{16} \(.*base\.gguf\); .*other\.gguf is "
    ):
        merge(adapter, tmp_path / "out", str(other))
    assert not (tmp_path / "out").exists()


def test_its_base_may_have_moved(checkpoint, adapter, tmp_path):
    moved = Path(shutil.copy(checkpoint.parent / "base.gguf", tmp_path / "moved.gguf"))
    assert merge(adapter, tmp_path / "out", str(moved)) == load_manifest(checkpoint)


def test_a_merged_checkpoint_stays(adapter, tmp_path):
    merge(adapter, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    merge(adapter, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
def test_a_file_that_is_missing_or_altered_is_named(adapter, tmp_path, name):
    weights = load_file(adapter / name)
    save_file({key: torch.zeros_like(weight) for key, weight in weights.items()}, adapter / name)
    with pytest.raises(AdapterError, match=rf"{name} is not the file that was saved"):
        merge(adapter, tmp_path / "out")
    (adapter / name).unlink()
    with pytest.raises(AdapterError, match=rf"{name} is missing"):
        merge(adapter, tmp_path / "out")


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:50], lambda raw: "[]", lambda raw: json.dumps({"base": "x"})],
    ids=["cut", "list", "part"],
)
def test_a_damaged_description_is_one_line(adapter, tmp_path, damage):
    path = adapter / ADAPTER
    path.write_text(damage(path.read_text()))
    with pytest.raises(AdapterError, match=r"adapter\.json is (damaged|not JSON): "):
        merge(adapter, tmp_path / "out")


def test_no_adapter_at_all_is_one_line(tmp_path):
    with pytest.raises(AdapterError, match=r"no adapter in .*: adapter\.json is missing"):
        merge(tmp_path, tmp_path / "out")
