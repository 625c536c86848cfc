import pytest
import torch

from model.inference.open import precision


@pytest.mark.parametrize(
    ("asked", "for_cpu", "has", "expected"),
    [
        ("auto", True, "avx512_bf16", "bfloat16"),
        ("auto", True, "amx_bf16", "bfloat16"),
        ("auto", True, "avx512_f", "float32"),
        ("auto", False, "avx512_bf16", "float32"),
        ("float32", True, "amx_bf16", "float32"),
        ("bfloat16", False, "avx512_f", "bfloat16"),
    ],
)
def test_a_cpu_computes_a_network_in_bfloat16_where_it_can(monkeypatch, asked, for_cpu, has, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False} | {has: True})
    assert precision(asked, for_cpu=for_cpu) == expected


def test_a_gpu_always_does(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision("auto") == "bfloat16"
