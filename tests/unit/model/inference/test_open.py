from pathlib import Path

import pytest
import torch
from support.checkpoint import tiny_checkpoint

from model.inference import open as opening
from model.inference.hf import HfBackend
from model.inference.open import Runtime, open_backend, precision
from model.inference.openvino import CompiledNetwork
from model.network.checkpoint import CheckpointError
from model.network.notellm import NoteLLM


@pytest.mark.parametrize(
    ("asked", "saved", "has", "expected"),
    [
        ("auto", "float32", "avx512_bf16", "float32"),
        ("auto", "float16", "avx512_bf16", "float32"),
        ("auto", "bfloat16", "avx512_bf16", "bfloat16"),
        ("auto", "bfloat16", "amx_bf16", "bfloat16"),
        ("auto", "bfloat16", "avx512_f", "float32"),
        ("float32", "bfloat16", "amx_bf16", "float32"),
        ("bfloat16", "float32", "avx512_f", "bfloat16"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_can_and_the_weights_are_so(monkeypatch, asked, saved, has, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False} | {has: True})
    assert precision(asked, saved) == expected


def test_a_gpu_always_does(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision("auto", "float32") == "bfloat16"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Of two architectures."""
    folders = {shape: tmp_path_factory.mktemp(shape) for shape in ("opt", "bert")}
    for shape, folder in folders.items():
        tiny_checkpoint(folder, shape=shape)
    return folders


def network_of(name: str, checkpoint: Path, dtype: str = "auto") -> type:
    backend = open_backend(name, checkpoint, Runtime(dtype))
    assert isinstance(backend, HfBackend)
    return type(backend._network)


def test_on_a_cpu_a_network_is_compiled_where_openvino_is_installed_and_knows_it(checkpoints, monkeypatch):
    assert network_of("auto", checkpoints["opt"]) is CompiledNetwork
    assert network_of("auto", checkpoints["bert"]) is NoteLLM
    assert network_of("auto", checkpoints["opt"], "bfloat16") is NoteLLM
    assert network_of("hf", checkpoints["opt"]) is NoteLLM
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    assert network_of("auto", checkpoints["opt"]) is NoteLLM


def test_nothing_else_runs_where_openvino_was_asked_for(checkpoints):
    with pytest.raises(CheckpointError, match=r"OpenVINO was not tried with a bert, but with llama, .*; use hf"):
        open_backend("openvino", checkpoints["bert"])
    with pytest.raises(CheckpointError, match="computes in float32 or bfloat16 on a CPU, not in float16"):
        open_backend("openvino", checkpoints["opt"], Runtime("float16"))
