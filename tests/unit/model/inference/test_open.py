import pytest
import torch

from model.inference.open import precision


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
