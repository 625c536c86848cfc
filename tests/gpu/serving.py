"""The worker on vLLM and a GPU: notes a second, what a draft waits, share of the peak, parity with transformers.

    python tests/gpu/serving.py --shape 0.5b|7b|100m|tiny [--notes 2048]

A Llama with random weights, notes as long as the paper's limits let them be, an embedding, a category and five hashtags
each. Operations are counted as two for each weight of the layers and token of a prompt. The last line is one JSON
object; `gpu_hours_per_million` is for the three outputs together.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from support.llamas import SHAPES, long_notes, random_checkpoint
from training_peak import matrix_peak

from model.backend import Backend, Prompt
from model.inference.open import Runtime, open_backend

HASHTAGS = 5
ROUNDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--notes", type=int, default=2048)
    parser.add_argument("--parity-notes", type=int, default=256, help="compared with transformers on the same device")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matrix_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder) / "checkpoint", arguments.shape)
        expected = vectors(checkpoint, arguments.parity_notes)
        runtime = Runtime("bfloat16", serving_dir=Path(folder) / "serving")
        print(json.dumps(measure(open_backend("vllm", checkpoint, runtime), arguments, expected, peak)))


def vectors(checkpoint: Path, notes: int) -> np.ndarray:
    """What transformers says in bfloat16; its memory is free again behind this."""
    backend = open_backend("hf", checkpoint, Runtime("bfloat16"))
    found = backend.embed(backend.tokenize(long_notes(notes)))
    del backend
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def measure(backend: Backend, arguments: argparse.Namespace, expected: np.ndarray, peak: float) -> dict[str, object]:
    hidden, intermediate, layers, _ = SHAPES[arguments.shape]
    weights = layers * (4 * hidden**2 + 3 * hidden * intermediate)
    prompts = backend.tokenize(long_notes(arguments.notes + arguments.parity_notes))
    compared, prompts = prompts[: arguments.parity_notes], prompts[arguments.parity_notes :]
    found = backend.embed(compared)
    same = (found @ found.T - 2 * np.eye(len(found))).argmax(1) == (
        expected @ expected.T - 2 * np.eye(len(found))
    ).argmax(1)
    prefill_s = seconds(lambda: backend.embed(prompts))
    # Prompts that the prefix cache has not seen.
    fresh = backend.tokenize(long_notes(2 * arguments.notes + arguments.parity_notes))[-arguments.notes :]
    read_s = seconds(lambda: backend.predict(fresh, HASHTAGS))
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    return {
        "shape": arguments.shape,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "tokens_a_prompt": round(tokens / len(prompts)),
        "worst_cosine_to_hf": round(float((found * expected).sum(1).min()), 4),
        "same_neighbors_as_hf": round(float(same.mean()), 3),
        "notes_per_second": round(len(fresh) / read_s, 1),
        "embeddings_per_second": round(len(prompts) / prefill_s, 1),
        "gpu_hours_per_million": round(1e6 * read_s / len(fresh) / 3600, 2),
        "matrix_peak_tflops": round(peak / 1e12, 1),
        "prefill_share_of_peak": round(2 * weights * tokens / prefill_s / peak, 3),
        "draft_seconds": {str(count): waits(backend, count) for count in (1, 16, 64)},
    }


def waits(backend: Backend, concurrent: int) -> dict[str, float]:
    """What a draft waits when so many come at once and are read together, as the worker does it."""
    drafts: list[list[Prompt]] = [
        backend.tokenize(long_notes(100_000 + (number + 1) * concurrent)[-concurrent:]) for number in range(ROUNDS)
    ]
    found = [seconds(lambda batch=batch: backend.predict(batch, HASHTAGS)) for batch in tqdm(drafts, unit="batch")]
    return {"p50": round(float(np.median(found)), 4), "p99": round(float(np.quantile(found, 0.99)), 4)}


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
