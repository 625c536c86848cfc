"""What LoRA trained on a tiny model of a GGUF file, in the real format."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import write_llama
from support.tiny import NOTES

from model.recipes import smollm2
from model.training.train import train

PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6"), ("n3", "n6")]


def tiny_adapter(folder: Path, **settings: Any) -> Path:
    """The checkpoint, in a folder with ``base.gguf`` and ``state``; its adapter (8 bits a weight) is in ``adapter``."""
    write_llama(folder / "base.gguf")
    recipe = replace(smollm2(), base_model=str(folder / "base.gguf"), steps=6, pairs_per_batch=3, dim=16, lora_rank=4)
    recipe = replace(recipe, **{"lora_dtype": "float8_e4m3fn", **settings})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTELLM_STATE_DIR", str(folder / "state"))
        train(replace(recipe, learning_rate=3e-3), NOTES, PAIRS, folder / "checkpoint")
    return folder / "checkpoint"
