"""Memory of a training run: what saving costs each rank, measured, and what fits on which GPU, by arithmetic.

    python tests/bench/training_memory.py [--shape 100m|0.5b] [--ranks 2]

A Llama with random weights takes one step on the ranks' CPUs with FSDP2; then its state is saved, and its weights are
gathered and saved as a checkpoint. Peaks are of a rank's resident memory above what it held before. The last line is
one JSON object.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.llamas import SHAPES, random_llama

from model.network.checkpoint import save
from model.recipes import mini
from model.training.distributed import Ranks, gather_weights, spread
from model.training.loop import parameter_groups
from model.training.state import History, TrainingState

MIB, GB = 2**20, 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        mp.spawn(_rank, (arguments.ranks, port, arguments.shape, folder), nprocs=arguments.ranks)
        found = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(arguments.ranks)]
    print(json.dumps({"shape": arguments.shape, "ranks": found, "gpu_gb": table()}))


@dataclass(frozen=True)
class Size:
    """Weights of a base model: of a layer, and of the matrices of its vocabulary (one of them if it is tied)."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    layer: int
    vocabulary: int

    @property
    def adapters(self) -> int:
        """Weights of LoRA with rank 16, about: 4 matrices of the hidden size and 3 of the intermediate one a layer."""
        return 16 * self.layers * (4 * 2 * self.hidden + 3 * (self.hidden + self.intermediate))

    @property
    def all(self) -> int:
        return self.layers * self.layer + self.vocabulary


LLAMA_7B = Size("Llama 2 7B", 4096, 11008, 32, 4 * 4096**2 + 3 * 4096 * 11008, 2 * 32_000 * 4096)
QWEN_HALF_B = Size("Qwen2.5 0.5B", 896, 4864, 24, 2 * 896 * 1024 + 3 * 896 * 4864, 151_936 * 896)
TOKENS = 16 * 160  # of a chunk of 16 notes: title 20, content 80, the words around them, outputs


def gpu_gb(size: Size, ranks: int, strategy: str, lora: bool) -> float:
    """GB a GPU at the peak of a step, with recompute and gradient checkpointing and without the allocator's losses.

    What learns has 16 bytes a weight (float32: itself, its gradient, two moments), what is frozen has 2. Products take
    bfloat16 copies: of everything under autocast, of two layers and the vocabulary at a time with FSDP2, which also
    holds the gradients of those in bfloat16 and in float32 until they are exchanged.
    """
    learning = size.adapters if lora else size.all
    held = 16 * learning + (2 * size.all if lora else 0)
    copies = 0 if lora else 2 * size.all
    if strategy == "fsdp":
        held /= ranks
        gathered = 2 * size.layer + size.vocabulary
        copies = 2 * gathered + (0 if lora else 6 * (size.layer + size.vocabulary))
    borders = size.layers * TOKENS * size.hidden * 4
    inside = TOKENS * (12 * size.hidden + 4 * size.intermediate) * 2
    return (held + copies + borders + inside) / GB


def table() -> dict[str, float]:
    return {
        f"{size.name}, {'LoRA' if lora else 'full'}, {ranks} x {strategy}": round(
            gpu_gb(size, ranks, strategy, lora), 1
        )
        for size in (LLAMA_7B, QWEN_HALF_B)
        for lora in (False, True)
        for ranks, strategy in ((1, "ddp"), (2, "fsdp"), (4, "fsdp"), (8, "fsdp"))
    }


def _rank(rank: int, world: int, port: int, shape: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device("cpu")
    with Ranks.join() as ranks:
        network, tokenizer, special = random_llama(shape, device)
        weights = sum(weight.numel() for weight in network.parameters())
        network.float()
        run = spread(network, ranks, "fsdp", "bfloat16")
        optimizer = torch.optim.AdamW(parameter_groups(network, 0.001), lr=1e-5, fused=True)
        for weight in run.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad()
        state = TrainingState(Path(folder, "run"), {}, ranks)
        saving = peak_of(partial(state.save, network, optimizer, History()))
        del optimizer, run
        recipe = replace(mini(), saved_dtype="bfloat16")

        def checkpoint() -> None:
            gather_weights(network.backbone, ranks, torch.bfloat16)
            gather_weights(network, ranks)
            if ranks.first:
                save(Path(folder, "checkpoint"), network, tokenizer, special, recipe, (), {})

        found = {"weights": weights, "state_mib": saving, "checkpoint_mib": peak_of(checkpoint)}
        Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))


def peak_of(work) -> int:
    """MiB of resident memory that the work took at its peak, above what the process held before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and kept would hide the peak
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) // MIB


def resident(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


if __name__ == "__main__":
    main()
