"""The state of an unfinished run: weights, optimizer and losses so far, in one file that replaces the one before.

Safetensors and JSON: nothing is unpickled. Batches are functions of the step, so no random generator is saved.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from model.note import Note
from model.recipes import Recipe
from model.training.distributed import Ranks, shared_like, whole
from model.training.step import Losses

RUN = "run"  # in the checkpoint's folder: the TensorBoard log, and the state of an unfinished run
FILE = "training.safetensors"
Pairs = Sequence[tuple[str, str]]


def run_identity(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> str:
    """16 hex digits that differ when recipe, notes or pairs do."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for part in (*notes, *pairs):
        digest.update(repr(part).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


class TrainingState:
    """Saves and restores one run in its folder.

    Args:
        identity: see `run_identity`; a state of another run is refused.
    """

    def __init__(self, folder: Path, identity: str, ranks: Ranks) -> None:
        self.folder = folder
        self._path = folder / FILE
        self._identity = identity
        self._ranks = ranks

    def save(self, network: nn.Module, optimizer: Optimizer, history: list[Losses]) -> None:
        """Write everything; a crash leaves the state before. Every rank must call it, the first one writes."""
        tensors = {}
        for name, weight in network.named_parameters():
            tensors[f"weight.{name}"] = whole(weight.detach())
            tensors |= {f"{key}.{name}": whole(value) for key, value in optimizer.state.get(weight, {}).items()}
        if self._ranks.first:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            staged = self._path.with_suffix(".staged")
            metadata = {"identity": self._identity, "history": json.dumps([asdict(losses) for losses in history])}
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, staged, metadata)
            staged.replace(self._path)
        self._ranks.wait()

    def restore(self, network: nn.Module, optimizer: Optimizer) -> list[Losses]:
        """Restore the saved state, if there is one, and return the losses so far.

        Raises:
            ValueError: if it is of another run.
        """
        if not self._path.exists():
            return []
        with safe_open(self._path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["identity"] != self._identity:
                raise ValueError(
                    f"{self._path} is the state of a run with other settings or data; "
                    "finish that run, or delete the file to start this one"
                )
            for name, weight in network.named_parameters():
                _restore_weight(file, name, weight, optimizer)
        return [Losses(**losses) for losses in json.loads(metadata["history"])]

    def delete(self) -> None:
        """Delete the state of the finished run."""
        if self._ranks.first:
            self._path.unlink(missing_ok=True)


@torch.no_grad()
def _restore_weight(file: Any, name: str, weight: Tensor, optimizer: Optimizer) -> None:
    weight.copy_(shared_like(file.get_tensor(f"weight.{name}"), weight))
    saved = set(file.keys())
    for key in ("step", "exp_avg", "exp_avg_sq"):
        if f"{key}.{name}" in saved:
            value = file.get_tensor(f"{key}.{name}")
            optimizer.state[weight][key] = value if key == "step" else shared_like(value, weight)
