"""A vLLM engine for tests: on a CPU, without the minutes of compiling that only long runs pay back."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from model.inference.vllm import VllmBackend
from model.inference.vllm_checkpoint import write_serving


def open_vllm(checkpoint: Path, work: Path, options: dict[str, Any]) -> VllmBackend:
    """The backend on this checkpoint, in float32."""
    serving = write_serving(checkpoint, work / "serving")
    return VllmBackend.open(serving.folder, "float32", enforce_eager=True, max_model_len=512, **options)
