"""What a note costs the worker: embedding, category and hashtags, together and apart, on transformers and on vLLM.

    python tests/bench/worker.py [--backends hf vllm] [--models llama mini] [--notes 128] [--rounds 1]

Models: a Llama of 100 million random weights, and the mini model. Notes are as long as the paper's limits let them be;
hashtags are 16 tokens a note and categories 4, whatever the network would write. Each case starts with an empty prefix
cache. In seconds a note, wall and CPU:

    embed        the embedding alone
    both_one     embedding and hashtags from one prefill                both_two     a prefill each
    all_one      embedding, category, hashtags from one prefill         all_three    a prefill each
    plain        `generate` of transformers and a separate forward pass for the embedding
    drafts_64, drafts_1    predictions of 64 drafts at once, and one by one

The last line is one JSON object. ``shared`` is all_one / all_three, ``batching`` the throughput of 64 drafts at once
over one by one. `tests/bench/drafts.py` measures drafts beside a backlog.
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

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.llamas import long_notes, random_checkpoint

from model.backend import Prompt
from model.text.grammar import STATE
from service.settings import MINI

HASHTAG_TOKENS, CATEGORY_TOKENS, DRAFTS = 16, 4, 64
CASES = ("embed", "both_one", "both_two", "all_one", "all_three", "plain", "drafts_64", "drafts_1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["hf", "vllm"], choices=["hf", "openvino", "vllm"])
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
        make = {"hf": Hf, "openvino": OpenVino, "vllm": Vllm}[name]
        cases = make(checkpoint, dtype, Path(folder) / "serving")
        prompts = cases.backend.tokenize(long_notes(arguments.notes))
        cases.all_one(prompts[:4])
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
        "shared": round(wall["all_one"] / wall["all_three"], 2),
        "batching": round(wall["drafts_1"] / wall["drafts_64"], 2),
    }


def timed(case: Callable[[Sequence[Prompt]], object], prompts: Sequence[Prompt]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    case(prompts)
    return (time.perf_counter() - wall) / len(prompts), (time.process_time() - cpu) / len(prompts)


class Fixed:
    """Any tokens, and exactly so many: a state counts them."""

    start = np.zeros(STATE, np.int64)

    def __init__(self, backend: Any, length: int) -> None:
        self.end = backend.builder.special.eos
        self.tokens = len(backend.builder.token_bytes)
        self.max_tokens = length

    def advance(self, states_NS: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
        return states_NS + 1

    def goes_on(self, states_NS: np.ndarray) -> np.ndarray:
        return states_NS[:, 0] < self.max_tokens

    def refused(self, states_NS: np.ndarray, device: torch.device) -> torch.Tensor:
        return torch.zeros((len(states_NS), self.tokens), dtype=torch.bool, device=device)

    def parse(self, *_: object) -> Any:
        return ""


class FixedGrammars:
    """``with_category``: whether there is one to write."""

    def __init__(self, backend: Any) -> None:
        self.with_category = True
        self._category, self._nothing = Fixed(backend, CATEGORY_TOKENS), Fixed(backend, 0)
        self._tags = Fixed(backend, HASHTAG_TOKENS)
        self.free = self._category

    @property
    def category(self) -> Fixed:
        return self._category if self.with_category else self._nothing

    def tags(self, count: int) -> Fixed:
        return self._tags


class Cases:
    """Both backends have these; outputs have a fixed length, whatever the network would write."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.backend._grammars = FixedGrammars(backend)

    def reset(self) -> None:
        """Forget every prefix."""

    def embed(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        self.backend.embed(prompts)

    def both_one(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        self.backend._grammars.with_category = False
        self.backend.predict(prompts, 5)
        self.backend._grammars.with_category = True

    def both_two(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        self.both_one(prompts)

    def all_one(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        self.backend.predict(prompts, 5)

    def all_three(self, prompts: Sequence[Prompt]) -> None:
        self.embed(prompts)
        self.reset()
        self.backend.write_categories(prompts)
        self.both_one(prompts)

    drafts_64 = all_one

    def drafts_1(self, prompts: Sequence[Prompt]) -> None:
        self.reset()
        for prompt in prompts:
            self.backend.predict([prompt], 5)


class Hf(Cases):
    def __init__(self, checkpoint: Path, dtype: str, _: Path) -> None:
        from model.inference.hf import HfBackend

        super().__init__(HfBackend.open(checkpoint, dtype))

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


class OpenVino(Cases):
    def __init__(self, checkpoint: Path, dtype: str, _: Path) -> None:
        from model.inference.open import Runtime, open_backend

        super().__init__(open_backend("openvino", checkpoint, Runtime(dtype)))


class Vllm(Cases):
    def __init__(self, checkpoint: Path, dtype: str, serving: Path) -> None:
        from model.inference.vllm import VllmBackend
        from model.inference.vllm_checkpoint import write_serving

        write_serving(checkpoint, serving)
        super().__init__(VllmBackend.open(serving, dtype, enforce_eager=not torch.cuda.is_available()))
        writing = self.backend._writing

        def fixed(grammar: Fixed, _: object) -> Any:
            params = writing(grammar, {"notellm_grammar": "free"})
            params.stop_token_ids = []
            return params

        self.backend._writing = fixed

    def reset(self) -> None:
        assert self.backend._engine.reset_prefix_cache()


if __name__ == "__main__":
    main()
