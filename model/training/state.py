"""The state of an unfinished run: weights, optimizer and figures so far. Each rank writes its own share.

::

    state-STEP/    safetensors files (torch.distributed.checkpoint) and run.json; nothing is unpickled
    best-STEP/     the weights that validation liked best

A folder gets its name when all of it is on disk, so a crash leaves the one before. Weights that LoRA freezes are not in
it, and no random generator is: batches are functions of the step.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from model.files import publish, write_json
from model.note import Note
from model.recipes import COMPUTATION, Recipe
from model.training.distributed import Ranks
from model.training.step import Losses

RUN = "run"  # in the checkpoint's folder: the TensorBoard log, and the state of an unfinished run
Pairs = Sequence[tuple[str, str]]
# Of one rank: a file is put together in main memory before it is written.
_FILE_BYTES = 2**27
_ABOUT = "run.json"


@dataclass(slots=True)
class History:
    """What a run has measured: the losses of every step, and validation's recall by the steps done before it."""

    losses: list[Losses] = field(default_factory=list)
    recalls: dict[int, float] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """Steps before the best recall, the first of equals."""
        return max(self.recalls, key=lambda step: (self.recalls[step], -step))

    def is_over(self, patience: int) -> bool:
        """Whether the last ``patience`` recalls, if it is not 0, were no better than one before."""
        return 0 < patience <= sum(step > self.best for step in self.recalls)


def run_identity(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> dict[str, Any]:
    """The settings that decide what a run learns, and a digest of its notes and pairs."""
    digest = hashlib.sha256()
    for part in (*notes, *pairs):
        digest.update(repr(part).encode("utf-8", "replace"))
    settings = {name: value for name, value in asdict(recipe).items() if name not in COMPUTATION}
    return {**settings, "notes and pairs": digest.hexdigest()[:16]}


class TrainingState:
    """Saves and restores one run in its folder, which all ranks share.

    Args:
        identity: see `run_identity`; a state of another run is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], ranks: Ranks) -> None:
        self.folder = folder
        self._identity = identity
        self._ranks = ranks

    def save(self, network: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Write everything; a crash leaves the state before. Every rank must call it."""
        losses = [asdict(each) for each in history.losses]
        about = {"identity": self._identity, "losses": losses, "recalls": list(history.recalls.items())}
        self._write(f"state-{len(losses)}", _trained(network) | _moments(network, optimizer), about)
        if self._ranks.first:
            needed = {f"state-{len(losses)}", f"best-{history.best}" if history.recalls else ""}
            self._delete(path for path in self._folders() if path.name not in needed)

    def restore(self, network: nn.Module, optimizer: Optimizer) -> History:
        """Restore the saved state, if there is one, and return the history so far.

        Raises:
            ValueError: if it is of another run; the message names the settings that differ.
        """
        steps = [int(path.name.removeprefix("state-")) for path in self.folder.glob("state-*")]
        if not steps:
            return History()
        folder = self.folder / f"state-{max(steps)}"
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        self._refuse_another_run(folder, about["identity"])
        for weight in network.parameters():
            if weight.requires_grad:
                step = torch.tensor(float(max(steps)), device=weight.device)
                moments = {name: torch.zeros_like(weight.detach()) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {"step": step, **moments}
        self._read(folder, _trained(network) | _moments(network, optimizer))
        return History([Losses(**losses) for losses in about["losses"]], dict(about["recalls"]))

    def keep_best(self, network: nn.Module, step: int) -> None:
        """Write the weights alone. Every rank must call it."""
        self._write(f"best-{step}", _trained(network))

    def restore_best(self, network: nn.Module, step: int) -> None:
        """Go back to weights that were kept."""
        self._read(self.folder / f"best-{step}", _trained(network))

    def delete(self) -> None:
        """Delete the state of the finished run."""
        self._delete(self._folders())

    def _folders(self) -> list[Path]:
        """Everything here, unfinished folders too."""
        return [path for name in ("state-*", "best-*", ".state-*", ".best-*") for path in self.folder.glob(name)]

    def _delete(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder)

    def _refuse_another_run(self, folder: Path, saved: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self._identity))
        differing = [name for name in saved | now if saved.get(name) != now.get(name)]
        if differing:
            there = ", ".join(f"{name} was {saved.get(name)}" for name in differing)
            raise ValueError(
                f"{folder} is the state of a run with other settings or data: {there}; finish that run, or delete "
                f"{self.folder} to start this one"
            )

    def _write(self, name: str, tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
        staged = self.folder / f".{name}"
        if self._ranks.first:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
        self._ranks.wait()
        writer = HuggingFaceStorageWriter(str(staged), _files(tensors), save_distributed=True)
        with _one_rank_is_no_mistake():
            save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
        if self._ranks.first:
            if about is not None:
                write_json(staged / _ABOUT, about)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            publish(staged, self.folder / name)
        self._ranks.wait()

    def _read(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Into the tensors, whichever share of them this rank has, and whoever wrote which."""
        with _one_rank_is_no_mistake():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not dist.is_initialized())


def _trained(network: nn.Module) -> dict[str, Tensor]:
    """The weights that learn. Safetensors cannot cut a single number out of a file, so tau is one of one."""
    weights = {name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad}
    return {f"weight.{name}": weight if weight.dim() else weight.view(1) for name, weight in weights.items()}


def _moments(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{moment}.{name}": value if value.dim() else value.view(1)
        for name, weight in network.named_parameters()
        for moment, value in optimizer.state.get(weight, {}).items()
        if moment != "step"
    }


def _files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The number of each tensor's file."""
    written, numbers = 0, {}
    for name, tensor in tensors.items():
        numbers[name] = written // _FILE_BYTES + 1
        written += tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes
    return numbers


def _one_rank_is_no_mistake() -> "warnings.catch_warnings[None]":
    """Without torchrun there is no process group, of which `torch.distributed.checkpoint` warns."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
