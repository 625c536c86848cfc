"""The backend on vLLM: one engine and one copy of the weights for the embedding, the category and the hashtags.

A prompt is prefilled once, up to the token before [EMB], for the logits of the reserved tokens: those are its
embedding (`model.inference.vllm_checkpoint`). Category and hashtags are requests of their own, whose prompts begin with
the same tokens: vLLM finds their keys and values in its prefix cache.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.backend import Prediction, Prompt, Timings
from model.inference.vllm_checkpoint import ServingCheckpoint, open_serving
from model.network.checkpoint import prompt_builder
from model.note import Note
from model.text.grammar import Grammar, Grammars
from model.text.prompt import Task

# The worker is a process of its own already, with a thread for the model.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# The second model runner, which GPUs take by default, has another interface for logits processors.
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
# GiB. On a CPU vLLM would take nine tenths of the machine's memory for its cache, without regard to other processes.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, RequestOutput, SamplingParams  # the environment is read at the import
from vllm.distributed import cleanup_dist_env_and_memory

from model.inference.vllm_grammar import COUNT, GRAMMAR, GrammarProcessor

Request = tuple[list[int], SamplingParams]
# A block of the prefix cache is reused only if it is full: with small blocks little is computed twice.
BLOCK_TOKENS = 32


class VllmBackend:
    """`Backend` on vLLM. Greedy decoding under the same grammars as every other backend."""

    def __init__(self, engine: LLM, serving: ServingCheckpoint) -> None:
        self.fingerprint = serving.manifest.fingerprint
        self.dim = serving.manifest.dim
        self.dtype = str(engine.llm_engine.model_config.dtype).removeprefix("torch.")
        self.builder = prompt_builder(serving.folder, serving.manifest)
        self.timings: Timings | None = None
        self._engine = engine
        self._bias_D = np.array(serving.bias, dtype=np.float32)
        self._grammars = Grammars(self.builder, serving.manifest.categories)
        self._reserved = list(range(serving.first, serving.first + self.dim))

    @classmethod
    def open(cls, folder: Path, dtype: str = "auto", **options: Any) -> Self:
        """Start an engine on a serving checkpoint. ``options`` are those of `vllm.LLM`.

        Raises:
            CheckpointError: if the folder is no serving checkpoint.
        """
        serving = open_serving(folder)
        settings = {
            "trust_remote_code": False,
            "load_format": "safetensors",
            "skip_tokenizer_init": True,
            "enable_prefix_caching": True,
            "block_size": BLOCK_TOKENS,
            "logits_processors": [GrammarProcessor],
            # Rows that `GrammarProcessor` leaves alone keep their logits, the others become log-probabilities.
            "logprobs_mode": "processed_logits",
            "max_logprobs": serving.manifest.dim,
            # A grammar has to see each token before the next one is drawn.
            "async_scheduling": False,
        }
        return cls(LLM(model=str(folder), dtype=dtype, **(settings | options)), serving)

    def close(self) -> None:
        """Give the engine's memory back, so that another one can start in this process."""
        self._engine.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """One prompt a note, in order."""
        ids = self.builder.prompts(notes, "category")
        return [Prompt(note, tuple(token_ids)) for note, token_ids in zip(notes, ids, strict=True)]

    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Unit vectors, shape (N, D), in order."""
        if not prompts:
            return np.zeros((0, self.dim), dtype=np.float32)
        params = SamplingParams(
            temperature=0, max_tokens=1, logprob_token_ids=self._reserved, flat_logprobs=True, detokenize=False
        )
        # The state before [EMB] is the note's (section 4.3), so [EMB] itself is left out.
        answers = self._run([(list(prompt.token_ids[:-1]), params) for prompt in prompts])
        vectors_ND = np.array([self._logits(answer) for answer in answers], dtype=np.float32) + self._bias_D
        unit_ND: NDArray[np.float32] = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return unit_ND

    def predict(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Prediction]:
        """Vector, category and hashtags of one batch, in order."""
        started = time.perf_counter()
        vectors_ND = self.embed(prompts)
        prefilled = time.perf_counter()
        category, tags = self._grammars.category, self._grammars.tags(max_hashtags)
        asked = self._category_requests(prompts, "category", category) if category.goes_on(category.start) else []
        written = self._written(asked + self._topics_requests(prompts, max_hashtags))
        self.timings = Timings(prefilled - started, time.perf_counter() - prefilled)
        categories = written[: len(asked)] or [([], [])] * len(prompts)
        return [
            Prediction(vector, tuple(tags.parse(*topics)), category.parse(*name))
            for vector, name, topics in zip(vectors_ND, categories, written[len(asked) :], strict=True)
        ]

    def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """Freely written categories, which nothing holds to the closed set, in order."""
        free = self._grammars.free
        return [free.parse(*written) for written in self._written(self._category_requests(prompts, "free", free))]

    def _category_requests(self, prompts: Sequence[Prompt], name: str, grammar: Grammar) -> list[Request]:
        params = self._writing(grammar, {GRAMMAR: name})
        return [([*prompt.token_ids, *self.builder.guidance("category")], params) for prompt in prompts]

    def _topics_requests(self, prompts: Sequence[Prompt], count: int) -> list[Request]:
        params = self._writing(self._grammars.tags(count), {GRAMMAR: "topics", COUNT: count})
        task: Task = "topics"
        ids = [list(prompt.token_ids) for prompt in prompts]
        if not self.builder.template.shares_prefix:
            ids = self.builder.prompts([prompt.note for prompt in prompts], task, count)
        return [([*token_ids, *self.builder.guidance(task, count)], params) for token_ids in ids]

    def _writing(self, grammar: Grammar, asked: dict[str, Any]) -> SamplingParams:
        return SamplingParams(
            temperature=0,
            max_tokens=grammar.max_tokens,
            logprobs=0,
            flat_logprobs=True,
            stop_token_ids=[grammar.end],
            ignore_eos=True,
            detokenize=False,
            extra_args=asked,
        )

    def _written(self, requests: Sequence[Request]) -> list[tuple[list[int], list[float]]]:
        """Tokens and their log-probabilities, of each request."""
        outputs = [answer.outputs[0] for answer in self._run(requests)]
        return [(list(output.token_ids), list(output.logprobs.logprobs)) for output in outputs]

    def _run(self, requests: Sequence[Request]) -> list[RequestOutput]:
        if not requests:
            return []
        prompts = [{"prompt_token_ids": ids} for ids, _ in requests]
        answers: list[RequestOutput] = self._engine.generate(
            prompts, [params for _, params in requests], use_tqdm=False
        )
        return answers

    def _logits(self, answer: RequestOutput) -> list[float]:
        logprobs = answer.outputs[0].logprobs
        by_token = dict(zip(logprobs.token_ids, logprobs.logprobs, strict=True))
        return [by_token[token] for token in self._reserved]
