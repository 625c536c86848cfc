"""The backend on vLLM: one engine and one copy of the weights for the embedding, the category and the hashtags.

A prompt is prefilled once, up to the token before [EMB], for the logits of the reserved tokens: those are its
embedding (`model.inference.vllm_checkpoint`). Category and hashtags are requests of their own, whose prompts begin with
the same tokens: vLLM finds their keys and values in its prefix cache.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend, Prediction, Prompt, Request
from model.inference.vllm_checkpoint import ServingCheckpoint, open_serving
from model.network.checkpoint import prompt_builder
from model.note import Note
from model.text.grammar import Grammar, Grammars
from model.text.outputs import Written, prediction
from model.text.prompt import Task

# The worker is a process of its own already, with a thread for the model.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# The second model runner, which GPUs take by default, has another interface for logits processors.
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
# GiB. On a CPU vLLM would take nine tenths of the machine's memory for its cache, without regard to other processes.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import EngineArgs, LLMEngine, RequestOutput, SamplingParams  # the environment is read at the import
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext

from model.inference.vllm_grammar import COUNT, GRAMMAR, GrammarProcessor

# A block of the prefix cache is reused only if it is full: with small blocks little is computed twice.
BLOCK_TOKENS = 32


class VllmBackend(Backend):
    """`Backend` on vLLM. Greedy decoding under the same grammars as every other backend.

    A note is a few requests to the engine: first one for its vector, then one for each output.
    """

    timings = None  # prompts and tokens share a step

    def __init__(self, engine: LLMEngine, serving: ServingCheckpoint) -> None:
        self.fingerprint = serving.manifest.fingerprint
        self.dim = serving.manifest.dim
        self.dtype = str(engine.model_config.dtype).removeprefix("torch.")
        self.join_tokens: int = engine.vllm_config.scheduler_config.max_num_batched_tokens
        self.builder = prompt_builder(serving.folder, serving.manifest)
        self._engine = engine
        self._bias_D = np.array(serving.bias, dtype=np.float32)
        self._grammars = Grammars(self.builder, serving.manifest.categories)
        self._reserved = list(range(serving.first, serving.first + self.dim))
        self._notes: dict[int, _Note] = {}
        self._note_of: dict[str, tuple[int, Task | None]] = {}  # of a request, and its output; None is the vector

    @classmethod
    def open(cls, folder: Path, dtype: str = "auto", **options: Any) -> Self:
        """Start an engine on a serving checkpoint. ``options`` are those of `vllm.EngineArgs`.

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
            "disable_log_stats": True,
        }
        arguments = EngineArgs(model=str(folder), dtype=dtype, **(settings | options))
        return cls(LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS), serving)

    def close(self) -> None:
        """Give the engine's memory back, so that another one can start in this process."""
        self._engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """One prompt a note, in order."""
        ids = self.builder.prompts(notes, "category")
        return [Prompt(note, tuple(token_ids)) for note, token_ids in zip(notes, ids, strict=True)]

    def add(self, key: int, request: Request) -> None:
        """See `Backend`."""
        self._notes[key] = _Note(request)
        # The state before [EMB] is the note's (section 4.3), so [EMB] itself is left out.
        self._ask(key, None, list(request.prompt.token_ids[:-1]), self._embedding())

    def step(self) -> dict[int, Prediction]:
        """See `Backend`."""
        complete = {}
        for answer in self._engine.step():
            if not answer.finished:
                continue
            key, task = self._note_of.pop(answer.request_id)
            note = self._notes[key]
            note.unfinished -= 1
            if task is None:
                note.vector = self._vector(answer)
                self._ask_for_outputs(key, note.request)
            else:
                output = answer.outputs[0]
                note.written[task] = (list(output.token_ids), list(output.logprobs.logprobs))
            if not note.unfinished:
                complete[key] = prediction(self._grammars, note.request, note.vector, note.written)
                del self._notes[key]
        return complete

    def drop(self, keys: Collection[int]) -> None:
        """See `Backend`."""
        gone = [request for request, (key, _) in self._note_of.items() if key in keys]
        self._engine.abort_request(gone)
        for request in gone:
            del self._note_of[request]
        for key in keys:
            self._notes.pop(key, None)

    def _ask(self, key: int, task: Task | None, token_ids: list[int], params: SamplingParams) -> None:
        self._notes[key].unfinished += 1
        request = f"{key}-{task}"
        self._note_of[request] = (key, task)
        self._engine.add_request(request, tokens_input(token_ids), params)

    def _ask_for_outputs(self, key: int, request: Request) -> None:
        """Prompts that begin as the first one did, whose keys and values are cached."""
        ids, category = list(request.prompt.token_ids), self._grammars.category
        guidance = self.builder.guidance
        if request.is_free:
            self._ask(
                key, "category", ids + guidance("category"), self._writing(self._grammars.free, {GRAMMAR: "free"})
            )
        if request.max_hashtags is None:
            return
        if category.goes_on(category.start[None])[0]:
            self._ask(key, "category", ids + guidance("category"), self._writing(category, {GRAMMAR: "category"}))
        count = request.max_hashtags
        if not self.builder.template.shares_prefix:
            [ids] = self.builder.prompts([request.prompt.note], "topics", count)
        params = self._writing(self._grammars.tags(count), {GRAMMAR: "topics", COUNT: count})
        self._ask(key, "topics", ids + guidance("topics", count), params)

    def _embedding(self) -> SamplingParams:
        return SamplingParams(
            temperature=0,
            max_tokens=1,
            logprob_token_ids=self._reserved,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _writing(self, grammar: Grammar, asked: Mapping[str, Any]) -> SamplingParams:
        return SamplingParams(
            temperature=0,
            max_tokens=grammar.max_tokens,
            logprobs=0,
            flat_logprobs=True,
            stop_token_ids=[grammar.end],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=dict(asked),
        )

    def _vector(self, answer: RequestOutput) -> NDArray[np.float32]:
        logprobs = answer.outputs[0].logprobs
        by_token = dict(zip(logprobs.token_ids, logprobs.logprobs, strict=True))
        vector_D = np.array([by_token[token] for token in self._reserved], dtype=np.float32) + self._bias_D
        unit_D: NDArray[np.float32] = vector_D / np.linalg.norm(vector_D)
        return unit_D


@dataclass(eq=False, slots=True)
class _Note:
    """A note under way; complete when none of its requests is ``unfinished``."""

    request: Request
    vector: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    written: dict[Task, Written] = field(default_factory=dict)
    unfinished: int = 0
