"""How much of the hardware training uses: floating-point operations of our loop beside a bare matrix product's.

    python tests/bench/training_peak.py --shape 0.5b|7b|tiny [--steps 8]

A Llama with random weights trains on the sample notes, 128 to a batch, in chunks. Operations are counted as six for
each weight of the layers and token that is no padding, and the same for the output matrix and each output token;
attention, recomputation and padding count as nothing. The last line is one JSON object.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.llamas import SHAPES, random_llama

from model.data.samples.generate import sample_notes
from model.network.notellm import NoteLLM
from model.recipes import small
from model.text.prompt import SHARED, PromptBuilder
from model.training.distributed import Ranks, clip
from model.training.examples import Sampling, TrainingSet
from model.training.step import Step

WARM_STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=64, help="B; a batch holds 2B notes")
    parser.add_argument("--chunk-notes", type=int, default=64)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure(arguments, device)))


def measure(arguments: argparse.Namespace, device: torch.device) -> dict[str, object]:
    peak = matrix_peak(device)
    recipe = replace(small(), pairs_per_batch=arguments.pairs, chunk_notes=arguments.chunk_notes)
    # Seven billion weights leave no room for activations of a whole batch beside their optimizer's state.
    recipe = replace(recipe, recompute=arguments.shape == "7b", gradient_checkpointing=False)
    network, training_set = prepared(arguments.shape, device)
    layers = sum(weight.numel() for weight in network.backbone.model.layers.parameters())
    output = network.backbone.get_output_embeddings().weight.numel()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=device.type == "cuda")
    step = Step(network, recipe, Ranks(0, 1, device))
    sampling = Sampling(recipe.pairs_per_batch, recipe.hashtag_share, recipe.chunk_notes, 0)
    tokens = operations = 0
    started = 0.0
    for number in range(WARM_STEPS + arguments.steps):
        batch = training_set.batch(number, sampling)
        if number == WARM_STEPS:
            started, tokens, operations = now(device), 0, 0
        optimizer.zero_grad(set_to_none=True)
        step.backward(batch, network.log_scale, 0.0)
        clip(network.parameters(), 1.0)
        optimizer.step()
        seen = sum(int((chunk.ids_CL != 0).sum()) for chunk in batch.chunks)
        tokens += seen
        operations += 6 * (layers * seen + output * batch.num_output_tokens)
    seconds = now(device) - started
    return {
        "shape": arguments.shape,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "weights": sum(weight.numel() for weight in network.parameters()),
        "tokens_per_second": round(tokens / seconds),
        "matrix_peak_tflops": round(peak / 1e12, 2),
        "share_of_peak": round(operations / seconds / peak, 3),
    }


def prepared(shape: str, device: torch.device) -> tuple[NoteLLM, TrainingSet]:
    network, tokenizer, special = random_llama(shape, device)
    notes = list(sample_notes())
    pairs = [(notes[place].id, notes[place + 1].id) for place in range(0, len(notes) - 1, 2)]
    training_set = TrainingSet(notes, pairs, PromptBuilder(tokenizer, special, SHARED, 20, 80))
    return network, training_set


def matrix_peak(device: torch.device) -> float:
    """Operations a second of one large bfloat16 product, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = now(device)
        left @ right
        best = min(best, now(device) - started)
    return 2 * size**3 / best


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
