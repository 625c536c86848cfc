"""The state of a run that is not finished: weights, optimizer and losses so far, in one file that replaces itself.

Safetensors and JSON: nothing is unpickled. Batches are functions of the step, so no generator has to be kept.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from model.training.distributed import Ranks, shared_like, whole
from model.training.step import CachedNegatives, Losses

FILE = "training.safetensors"


class TrainingState:
    """Saves and restores one run in its folder.

    Args:
        identity: what makes the run this one; a state of another run is refused.
    """

    def __init__(self, folder: Path, identity: str, ranks: Ranks) -> None:
        self._path = folder / FILE
        self._identity = identity
        self._ranks = ranks

    def save(self, network: nn.Module, optimizer: Optimizer, history: list[Losses], cached: CachedNegatives) -> None:
        """Write everything; a crash leaves the state before. Every rank must call it, the first one writes."""
        tensors = {}
        for name, weight in network.named_parameters():
            tensors[f"weight.{name}"] = whole(weight.detach())
            tensors |= {f"{key}.{name}": whole(value) for key, value in optimizer.state.get(weight, {}).items()}
        if cached.notes:
            tensors["cached.vectors"] = torch.stack(list(cached.vectors))
            tensors["cached.notes"] = torch.tensor(list(cached.notes))
        if self._ranks.first:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            staged = self._path.with_suffix(".staged")
            metadata = {"identity": self._identity, "history": json.dumps([asdict(losses) for losses in history])}
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, staged, metadata)
            staged.replace(self._path)
        self._ranks.wait()

    def restore(self, network: nn.Module, optimizer: Optimizer, cached: CachedNegatives) -> list[Losses]:
        """Take up a saved state, if there is one, and return the losses so far.

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
            if "cached.notes" in file.keys():  # noqa: SIM118
                notes = file.get_tensor("cached.notes").tolist()
                cached.add(tuple(notes), file.get_tensor("cached.vectors").to(self._ranks.device))
        return [Losses(**losses) for losses in json.loads(metadata["history"])]

    def delete(self) -> None:
        """The run is finished."""
        if self._ranks.first:
            self._path.unlink(missing_ok=True)


@torch.no_grad()
def _restore_weight(file: Any, name: str, weight: Tensor, optimizer: Optimizer) -> None:
    weight.copy_(shared_like(file.get_tensor(f"weight.{name}"), weight))
    held = set(file.keys())
    for key in ("step", "exp_avg", "exp_avg_sq"):
        if f"{key}.{name}" in held:
            value = file.get_tensor(f"{key}.{name}")
            optimizer.state[weight][key] = value if key == "step" else shared_like(value, weight)
