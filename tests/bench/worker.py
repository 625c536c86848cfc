"""What a note costs the worker: embedding, category and hashtags, together and apart, on transformers and on vLLM.

    python tests/bench/worker.py [--backends hf vllm] [--models llama mini] [--notes 128] [--rounds 1]

Models: a Llama of 100 million random weights, and the mini model. Notes are as long as the paper's limits let them be;
hashtags are 16 tokens a note and categories 4, whatever the network would write. Each case starts with an empty prefix
cache. In seconds a note, wall and CPU:

    embed        the embedding alone             generate     hashtags alone
    both_one     both from one prefill           both_two     both, a prefill each
    all_one      embedding, category, hashtags from one prefill         all_three    a prefill each
    plain        `generate` of transformers and a separate forward pass for the embedding
    drafts_64, drafts_1    predictions of 64 drafts at once, and one by one

The last line is one JSON object. ``beside`` is both_one / generate, ``shared`` is all_one / all_three, ``batching`` the
throughput of 64 drafts at once over one by one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.llamas import long_notes, random_checkpoint

from model.backend import Backend, Prompt
from service.settings import MINI

HASHTAG_TOKENS, CATEGORY_TOKENS, DRAFTS = 16, 4, 64
CASES = ("embed", "generate", "both_one", "both_two", "all_one", "all_three", "plain", "drafts_64", "drafts_1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["hf", "vllm"], choices=["hf", "vllm"])
    parser.add_argument("--models", nargs="+", default=["llama", "mini"], choices=["llama", "mini"])
    parser.add_argument("--notes", type=int, default=128, help="notes at once")
    parser.add_argument("--rounds", type=int, default=1, help="how often each case has its turn; the best counts")
    parser.add_argument("--dtype", default="auto", help="auto is bfloat16 for llama and float32 for mini")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "BACKEND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments)))
        return
    report = {}
    for model in arguments.models:
        report[model] = {backend: in_own_process(model, backend, arguments) for backend in arguments.backends}
    print(json.dumps(report))


def in_own_process(model: str, backend: str, arguments: argparse.Namespace) -> dict[str, object]:
    command = [sys.executable, __file__, "--one", model, backend, "--notes", str(arguments.notes)]
    command += ["--rounds", str(arguments.rounds), "--dtype", arguments.dtype]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(answer.stdout.splitlines()[-1])
    print(model, backend, json.dumps(figures), flush=True)
    return figures


def measure(model: str, name: str, arguments: argparse.Namespace) -> dict[str, object]:
    dtype = arguments.dtype if arguments.dtype != "auto" else {"llama": "bfloat16", "mini": "float32"}[model]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = MINI if model == "mini" else random_checkpoint(Path(folder) / "llama", "100m")
        cases = Hf(checkpoint, dtype) if name == "hf" else Vllm(checkpoint, Path(folder) / "serving", dtype)
        prompts = cases.backend.tokenize(long_notes(arguments.notes))
        cases.backend.predict(prompts[:4], 5)
        seconds = {case: [] for case in CASES if hasattr(cases, case)}
        turns = [case for _ in range(arguments.rounds) for case in seconds]
        for case in tqdm(turns, desc=f"{model} {name}", unit="case"):
            notes = prompts[:DRAFTS] if case.startswith("drafts") else prompts
            seconds[case].append(timed(getattr(cases, case), notes))
    best = {case: min(found) for case, found in seconds.items()}
    wall = {case: found[0] for case, found in best.items()}
    return {
        "tokens_a_prompt": round(sum(len(prompt.token_ids) for prompt in prompts) / len(prompts)),
        "wall": {case: round(found[0], 4) for case, found in best.items()},
        "cpu": {case: round(found[1], 4) for case, found in best.items()},
        "beside": round(wall["both_one"] / wall["generate"], 2),
        "shared": round(wall["all_one"] / wall["all_three"], 2),
        "batching": round(wall["drafts_1"] / wall["drafts_64"], 2),
    }


def timed(case: Callable[[Sequence[Prompt]], object], prompts: Sequence[Prompt]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    case(prompts)
    return (time.perf_counter() - wall) / len(prompts), (time.process_time() - cpu) / len(prompts)


class Cases:
    """Both backends have these."""

    backend: Backend

    def reset(self) -> None:
        """Forget every prefix."""

    def embed(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        self.backend.embed(prompts)

    def drafts_64(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        self.backend.predict(prompts, 5)

    def drafts_1(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        for prompt in prompts:
            self.backend.predict([prompt], 5)


class Fixed:
    """Any tokens, and exactly so many: a state counts them."""

    end, start = -1, 0

    def __init__(self, length: int) -> None:
        self.max_tokens = length

    def advance(self, state: int, token: int) -> int:
        return state + 1

    def goes_on(self, state: int) -> bool:
        return state < self.max_tokens

    def log_probabilities(self, logits_NV: torch.Tensor, states: Sequence[int]) -> torch.Tensor:
        return torch.log_softmax(logits_NV.float(), dim=-1)


class Hf(Cases):
    def __init__(self, checkpoint: Path, dtype: str) -> None:
        from model.inference.hf import HfBackend

        self.backend = HfBackend.open(checkpoint, dtype)

    def prefill(self, prompts: Sequence[Prompt]):
        return self.backend._prefill([prompt.token_ids for prompt in prompts])

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> None:
        self.backend._write(self.prefill(prompts), "topics", Fixed(HASHTAG_TOKENS), 5)

    both_one = generate  # the vector is a product of the prefill

    def both_two(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        self.generate(prompts)

    @torch.inference_mode()
    def all_one(self, prompts: Sequence[Prompt]) -> None:
        prefix = self.prefill(prompts)
        self.backend._write(prefix, "category", Fixed(CATEGORY_TOKENS), last=False)
        self.backend._write(prefix, "topics", Fixed(HASHTAG_TOKENS), 5)

    @torch.inference_mode()
    def all_three(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        self.backend._write(self.prefill(prompts), "category", Fixed(CATEGORY_TOKENS))
        self.generate(prompts)

    @torch.inference_mode()
    def plain(self, prompts: Sequence[Prompt]) -> None:
        """As anybody would write it with transformers, without this project."""
        backbone, builder = self.backend._network.backbone, self.backend.builder
        length = max(len(prompt.token_ids) for prompt in prompts)
        pads = [length - len(prompt.token_ids) for prompt in prompts]
        guidance = builder.guidance("topics", 5)
        ids = torch.tensor(
            [[builder.special.pad] * pad + list(prompt.token_ids) for pad, prompt in zip(pads, prompts, strict=True)]
        )
        mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads])
        backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        ids = torch.cat([ids, torch.tensor([guidance] * len(ids))], dim=1)
        mask = torch.cat([mask, torch.ones(len(mask), len(guidance), dtype=torch.long)], dim=1)
        tokens = {"min_new_tokens": HASHTAG_TOKENS, "max_new_tokens": HASHTAG_TOKENS}
        backbone.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **tokens)


class Vllm(Cases):
    def __init__(self, checkpoint: Path, serving: Path, dtype: str) -> None:
        from model.inference.vllm import VllmBackend
        from model.inference.vllm_checkpoint import write_serving

        write_serving(checkpoint, serving)
        self.backend = VllmBackend.open(serving, dtype, enforce_eager=not torch.cuda.is_available())

    def reset(self) -> None:
        assert self.backend._engine.reset_prefix_cache()

    def requests(self, prompts: Sequence[Prompt], task: str, length: int) -> list[tuple[list[int], Any]]:
        params = self.backend._writing(Fixed(length), {"notellm_grammar": "free"})
        params.stop_token_ids = []
        guidance = self.backend.builder.guidance(task, 5)
        return [([*prompt.token_ids, *guidance], params) for prompt in prompts]

    def write(self, prompts: Sequence[Prompt], task: str, length: int) -> None:
        self.backend._run(self.requests(prompts, task, length))

    def generate(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        self.write(prompts, "topics", HASHTAG_TOKENS)

    def both_one(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        self.write(prompts, "topics", HASHTAG_TOKENS)

    def both_two(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        self.generate(prompts)

    def all_one(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        category = self.requests(prompts, "category", CATEGORY_TOKENS)
        self.backend._run(category + self.requests(prompts, "topics", HASHTAG_TOKENS))

    def all_three(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        self.reset()
        self.write(prompts, "category", CATEGORY_TOKENS)
        self.generate(prompts)


if __name__ == "__main__":
    main()
