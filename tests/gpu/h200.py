"""One look at everything of the model that only a GPU can show, in under eight minutes and without a network.

    python tests/gpu/h200.py [--shape 7b|0.5b|tiny] [--only STAGE ...]

Needs torch, transformers, tokenizers, safetensors, numpy and tqdm, and of this project `model` alone. Each stage prints
one JSON object as it ends, a stage that fails prints its error, and the last line holds all of them.

``peak``       training's share of a bare matrix product, 0.5B and the shape
``moved``      share of the layers' weights that 20 steps of the recipe `paper` move, and the loss before and after
``backend``    transformers in bfloat16 beside float32: cosines, and the same nearest neighbors
``grammar``    milliseconds that the grammar of hashtags adds to a decode step of 256 rows
``head``       the head in bfloat16 beside float32, on states as wide as the shape's, with a large common part
``ranks``      seconds to rank the truths of 5,000 pairs among 258,000 notes
``fsdp``       the recipe `paper` under torchrun and FSDP2: the losses of ten steps beside those without

`--shape tiny` runs anywhere, to see that the script works.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import training_peak
from support.llamas import SHAPES, long_notes, random_checkpoint, random_llama
from support.outputs import written

from model.evaluation.baselines import Embeddings
from model.evaluation.retrieval import truth_ranks
from model.inference.hf import HfBackend
from model.network.notellm import NoteLLM
from model.recipes import Recipe, paper
from model.text.grammar import Grammars
from model.text.prompt import TEMPLATES, PromptBuilder
from model.training.distributed import Ranks, clip, spread
from model.training.examples import Sampling, TrainingSet
from model.training.loop import parameter_groups
from model.training.step import Step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LARGE = DEVICE.type == "cuda"
PAIRS = 64 if LARGE else 4
ROWS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b" if LARGE else "tiny")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--losses-of", help=argparse.SUPPRESS)  # the run inside torchrun
    arguments = parser.parse_args()
    if arguments.losses_of:
        print(json.dumps(losses(arguments.losses_of, "fsdp")))
        return
    found: dict[str, object] = {"device": torch.cuda.get_device_name() if LARGE else "cpu", "shape": arguments.shape}
    for name in arguments.only:
        started = time.perf_counter()
        try:
            answer = STAGES[name](arguments.shape)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        found[name] = answer | {"seconds": round(time.perf_counter() - started, 1)}
        print(json.dumps({name: found[name]}), flush=True)
        if LARGE:
            torch.cuda.empty_cache()
    print(json.dumps(found))


def peak(shape: str) -> dict[str, object]:
    shapes = dict.fromkeys(["0.5b" if LARGE else "tiny", shape])
    steps = 8 if LARGE else 2
    options = [argparse.Namespace(shape=one, steps=steps, pairs=PAIRS, chunk_notes=PAIRS) for one in shapes]
    return {one.shape: training_peak.measure(one, DEVICE) for one in options}


def moved(shape: str) -> dict[str, object]:
    """Of the layers: a row of the vocabulary that no note uses stays as it is. On 0.5B weights, because those of 7B
    with their optimizer's state and a copy outgrow one GPU."""
    network, run = training("0.5b" if LARGE else shape, Ranks(0, 1, DEVICE), "ddp")
    layers = network.backbone.model.layers
    before = [weight.detach().clone() for weight in layers.parameters()]
    history = [run(number) for number in range(20)]
    changed = sum(int((old != new).sum()) for old, new in zip(before, layers.parameters(), strict=True))
    return {
        "share_of_weights": round(changed / sum(weight.numel() for weight in before), 4),
        "loss_before": round(history[0], 4),
        "loss_after": round(history[-1], 4),
    }


def backend(shape: str) -> dict[str, object]:
    notes = long_notes(512 if LARGE else 32)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder), "0.5b" if LARGE else shape)
        exact, rounded = (embedded(checkpoint, dtype, notes) for dtype in ("float32", "bfloat16"))
    return compared(exact, rounded)


def grammar(_: str) -> dict[str, object]:
    """Beside a log-softmax of the same logits, which every decoder does."""
    _, tokenizer, special = random_llama("tiny", torch.device("cpu"))
    builder = PromptBuilder(tokenizer, special, TEMPLATES["shared"], 20, 80)
    tags = Grammars(builder, ["Travel"]).tags(5)
    outputs = written(tags, [builder.output("tea, city walk, ramen")[: row % 5] for row in range(ROWS)])
    logits_NV = torch.randn(ROWS, len(builder.token_bytes), device=DEVICE, dtype=torch.bfloat16)
    plain = median_ms(lambda: torch.log_softmax(logits_NV.float(), dim=-1))
    masked = median_ms(lambda: outputs.log_probabilities(logits_NV))
    return {"rows": ROWS, "log_softmax_ms": round(plain, 3), "with_grammar_ms": round(masked, 3)}


def head(shape: str) -> dict[str, object]:
    """States share most of their length, as those of language models do."""
    hidden = SHAPES[shape][0]
    torch.manual_seed(0)
    states_NH = torch.randn(4096 if LARGE else 256, hidden, device=DEVICE) + 8 * torch.randn(hidden, device=DEVICE)
    projection = torch.nn.Linear(hidden, 128, device=DEVICE)
    with torch.inference_mode():
        exact_ND = F.normalize(projection(states_NH), dim=-1)
        rounded_ND = F.normalize(projection.to(torch.bfloat16)(states_NH.to(torch.bfloat16)).float(), dim=-1)
    return compared(exact_ND.cpu().numpy(), rounded_ND.cpu().numpy())


def ranks(_: str) -> dict[str, object]:
    notes, pairs = (258_000, 5_000) if LARGE else (5_000, 100)
    rng = np.random.default_rng(0)
    vectors_ND = rng.standard_normal((notes, 128), dtype=np.float32)
    targets, truths = rng.integers(notes, size=(2, pairs))
    ranker = Embeddings("random", vectors_ND)
    started = time.perf_counter()
    found = truth_ranks(ranker, targets, truths, notes)
    return {
        "notes": notes,
        "pairs": pairs,
        "rank_s": round(time.perf_counter() - started, 2),
        "median": int(np.median(found)),
    }


def fsdp(shape: str) -> dict[str, object]:
    shape = "0.5b" if LARGE else shape
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", __file__]
    done = subprocess.run([*command, "--losses-of", shape], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    shared, alone = json.loads(done.stdout.splitlines()[-1]), losses(shape, "ddp")
    return {
        "fsdp": shared,
        "alone": alone,
        "worst": round(max(abs(a - b) for a, b in zip(shared, alone, strict=True)), 5),
    }


def losses(shape: str, strategy: str) -> list[float]:
    """Of ten steps."""
    with Ranks.join() as joined:
        _, run = training(shape, joined, strategy)
        return [round(run(number), 5) for number in range(10)]


def training(shape: str, joined: Ranks, strategy: str) -> tuple[NoteLLM, Callable[[int], float]]:
    """A network with random weights, and what takes one step of the recipe `paper` and returns the loss."""
    recipe = replace(paper(), pairs_per_batch=PAIRS, chunk_notes=PAIRS)
    network, tokenizer, special = random_llama(shape, DEVICE, torch.float32)
    training_set = examples(tokenizer, special, recipe)
    step = Step(spread(network, joined, strategy, recipe.compute_dtype), recipe, joined)
    optimizer = torch.optim.AdamW(parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    sampling = Sampling(recipe.pairs_per_batch, recipe.hashtag_share, recipe.chunk_notes, recipe.seed)

    def run(number: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        found = step.backward(training_set.batch(number, sampling, joined.rank, joined.world), network.log_scale, 0.0)
        clip(network.parameters(), recipe.max_grad_norm)
        optimizer.step()
        return found.total

    return network, run


def examples(tokenizer: object, special: object, recipe: Recipe) -> TrainingSet:
    notes = long_notes(512)
    pairs = [(notes[place].id, notes[place + 1].id) for place in range(0, len(notes), 2)]
    builder = PromptBuilder(tokenizer, special, TEMPLATES[recipe.template], recipe.title_tokens, recipe.content_tokens)
    return TrainingSet(notes, pairs, builder)


def embedded(checkpoint: Path, dtype: str, notes: list[object]) -> np.ndarray:
    opened = HfBackend.open(checkpoint, dtype)
    return opened.embed(opened.tokenize(notes))


def compared(exact_ND: np.ndarray, rounded_ND: np.ndarray) -> dict[str, object]:
    cosines_N = (exact_ND * rounded_ND).sum(axis=1)
    nearest = [(found @ found.T - 2 * np.eye(len(found))).argmax(axis=1) for found in (exact_ND, rounded_ND)]
    return {
        "notes": len(exact_ND),
        "mean_cosine": round(float(cosines_N.mean()), 6),
        "worst_cosine": round(float(cosines_N.min()), 6),
        "same_neighbor": round(float((nearest[0] == nearest[1]).mean()), 4),
    }


def median_ms(work: Callable[[], object]) -> float:
    """The median of 20, by CUDA's events where there is a GPU."""
    times = []
    for _ in range(25):
        if LARGE:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            started = time.perf_counter()
            work()
            times.append((time.perf_counter() - started) * 1000)
    return float(np.median(times[5:]))


STAGES: dict[str, Callable[[str], dict[str, object]]] = {
    "peak": peak,
    "moved": moved,
    "backend": backend,
    "grammar": grammar,
    "head": head,
    "ranks": ranks,
    "fsdp": fsdp,
}


if __name__ == "__main__":
    main()
