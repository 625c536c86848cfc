"""The backend on plain transformers: one prefill of a prompt, whose key-value cache serves category and hashtags.

Shapes: N prompts or sequences, L tokens, H hidden, V vocabulary, D embedding. Padding stands on the left, so that the
last column is the last token of every sequence.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from model.backend import Backend, Prediction, Prompt, Request, Timings
from model.inference.rows import Lengths, Network, Rows, padded_left
from model.network.checkpoint import load
from model.note import Note
from model.text.grammar import Grammar, Grammars
from model.text.outputs import Outputs, Written, prediction
from model.text.prompt import PromptBuilder, Task

# What a step takes in: on a CPU three notes or so, for which a draft waits as long as for a few tokens of its own.
_JOIN_TOKENS = {"cpu": 512, "cuda": 8192}


class HfBackend(Backend):
    """`Backend` on transformers. Deterministic: greedy decoding, and the same prediction alone and among others.

    A note under way has a row for each output, so that category and hashtags are written at the same time.
    """

    def __init__(self, network: Network, builder: PromptBuilder, categories: tuple[str, ...], fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.dim = network.dim
        self.dtype = str(network.dtype).removeprefix("torch.")
        self.join_tokens = _JOIN_TOKENS[network.device.type]
        self.builder = builder
        self.timings: Timings | None = None
        self._network = network
        self._grammars = Grammars(builder, categories)
        self._joining: dict[int, Request] = {}
        self._notes: dict[int, _Note] = {}
        self._rows = Rows(network)
        self._outputs = Outputs()
        self._texts: list[_Text] = []  # of each row

    @classmethod
    def open(cls, folder: Path, dtype: str = "float32") -> Self:
        """Open a checkpoint, on the GPU if there is one. Raises CheckpointError when it cannot be used."""
        network, builder, manifest = load(folder, dtype)
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network, builder, manifest.categories, manifest.fingerprint)

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """One prompt a note, in order."""
        ids = self.builder.prompts(notes, "category")
        return [Prompt(note, tuple(token_ids)) for note, token_ids in zip(notes, ids, strict=True)]

    def add(self, key: int, request: Request) -> None:
        """See `Backend`."""
        self._joining[key] = request

    @torch.inference_mode()
    def step(self) -> dict[int, Prediction]:
        """See `Backend`."""
        started = time.perf_counter()
        logits = []
        if self._texts:
            last_R = torch.tensor([text.tokens[-1] for text in self._texts], device=self._network.device)
            logits.append(self._network.logits(self._rows.feed(last_R[:, None])))
        decoded = time.perf_counter()
        for notes in self._joined():
            logits += self._begin(notes)
        if logits:
            self._extend(torch.cat(logits))
        self.timings = Timings(time.perf_counter() - decoded, decoded - started)
        complete = {key: note for key, note in self._notes.items() if not note.unfinished}
        self.drop(complete)
        return {
            key: prediction(self._grammars, note.request, note.vector, note.written) for key, note in complete.items()
        }

    @torch.inference_mode()
    def drop(self, keys: Collection[int]) -> None:
        """See `Backend`."""
        for key in keys:
            self._joining.pop(key, None)
            if note := self._notes.pop(key, None):
                note.is_gone = True
        self._keep(np.array([not text.note.is_gone for text in self._texts], bool))

    def _joined(self) -> list[list["_Note"]]:
        """Notes that join, those together of which the same is asked: the network's words to it have one length."""
        joining, self._joining = self._joining, {}
        alike: dict[object, list[_Note]] = {}
        for key, request in joining.items():
            note = self._notes[key] = _Note(request)
            alike.setdefault((request.max_hashtags, request.is_free, len(self._tasks(request))), []).append(note)
        return list(alike.values())

    def _tasks(self, request: Request) -> list["_Task"]:
        """The outputs to be written, those left out for which the network has no more positions."""
        count = request.max_hashtags or 1
        wanted: list[tuple[Task, Grammar]] = []
        if request.is_free:
            wanted = [("category", self._grammars.free)]
        elif request.max_hashtags is not None:
            wanted = [("category", self._grammars.category), ("topics", self._grammars.tags(count))]
        tasks = [_Task(name, count, grammar, self.builder.guidance(name, count)) for name, grammar in wanted]
        return [
            task
            for task in tasks
            if task.grammar.goes_on(task.grammar.start[None])[0]
            and request.tokens + len(task.guidance) < self._network.positions
        ]

    def _begin(self, notes: Sequence["_Note"]) -> list[Tensor]:
        """Prefill notes, and give each of their outputs a row; the logits of the first token of each."""
        prompts = [list(note.request.prompt.token_ids) for note in notes]
        if any(ids[-1] != self.builder.special.emb for ids in prompts):
            raise ValueError("a prompt does not end in [EMB]")
        tasks = self._tasks(notes[0].request)
        if not tasks:
            states_NLH, _ = self._forward(prompts, None)
            self._give_vectors(notes, states_NLH[:, -2])
        logits: list[Tensor] = []
        cache, lengths_N = DynamicCache(), np.zeros(len(notes), np.int64)
        guidance: list[int] = []
        for task in tasks:
            if logits and self.builder.template.shares_prefix:
                # The keys and values of the prompt serve the next task, too.
                cache.crop(-len(guidance))
                states_NLH, lengths_N = self._forward([task.guidance] * len(notes), cache, lengths_N - len(guidance))
            else:
                if logits:
                    task_notes = [note.request.prompt.note for note in notes]
                    prompts, cache = self.builder.prompts(task_notes, task.name, task.count), DynamicCache()
                states_NLH, lengths_N = self._forward([ids + task.guidance for ids in prompts], cache)
            if not logits:
                self._give_vectors(notes, states_NLH[:, -2 - len(task.guidance)])
            guidance = task.guidance
            self._rows.join(cache, lengths_N)
            self._outputs.join(task.grammar, len(notes))
            for note, length in zip(notes, lengths_N.tolist(), strict=True):
                self._texts.append(note.begin(task, self._network.positions - length))
            logits.append(self._network.logits(states_NLH[:, -1]))
        return logits

    def _forward(
        self, sequences: Sequence[list[int]], cache: DynamicCache | None, before_N: Lengths | int = 0
    ) -> tuple[Tensor, Lengths]:
        """States of sequences, or of what follows ``before_N`` tokens in a cache; and the length of each with it."""
        longest = max(map(len, sequences))
        pad = self.builder.special.pad
        ids_NL = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in sequences], device=self._network.device)
        lengths_N: Lengths = np.array([len(ids) for ids in sequences], np.int64) + before_N
        lengths_N1 = torch.from_numpy(lengths_N).to(self._network.device)[:, None]
        columns = longest + (cache.get_seq_length() if cache else 0)
        positions_L = torch.arange(columns - longest, columns, device=self._network.device)
        states_NLH = self._network.extend(
            ids_NL,
            padded_left(lengths_N1, columns),
            # Column -1 holds the last token of each; padding has no position.
            (positions_L + lengths_N1 - columns).clamp(min=0),
            cache,
        )
        return states_NLH, lengths_N

    def _give_vectors(self, notes: Sequence["_Note"], states_NH: Tensor) -> None:
        """From the states before [EMB], which are the notes' (section 4.3)."""
        vectors_ND = F.normalize(self._network.embedding(states_NH), dim=-1).cpu().numpy()
        for note, vector in zip(notes, vectors_ND, strict=True):
            note.vector = vector

    def _extend(self, logits_RV: Tensor) -> None:
        """Append the likeliest next token to every output; those that are complete leave."""
        best = self._outputs.log_probabilities(logits_RV).max(dim=-1)
        tokens_R = best.indices.cpu().numpy()
        self._outputs.advance(tokens_R)
        for text, token, score in zip(self._texts, tokens_R.tolist(), best.values.tolist(), strict=True):
            text.tokens.append(token)
            text.log_probabilities.append(score)
        has_room_R = np.array([text.has_room for text in self._texts])
        self._keep(self._outputs.goes_on & has_room_R)

    def _keep(self, going_R: NDArray[np.bool_]) -> None:
        if going_R.all():
            return
        for row in np.flatnonzero(~going_R):
            self._texts[row].note.unfinished -= 1
        order_R = self._rows.keep(going_R)
        self._outputs.keep(order_R)
        self._texts = [self._texts[row] for row in order_R]


@dataclass(frozen=True, slots=True)
class _Task:
    """An output to be written: its grammar, and the network's words before it."""

    name: Task
    count: int
    grammar: Grammar
    guidance: list[int]


@dataclass(eq=False, slots=True)
class _Text:
    """One output of a note, of at most ``room`` tokens."""

    note: "_Note"
    room: int
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return len(self.tokens) < self.room


@dataclass(eq=False, slots=True)
class _Note:
    """A note under way; complete when none of its outputs is ``unfinished``."""

    request: Request
    vector: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    texts: dict[Task, _Text] = field(default_factory=dict)
    unfinished: int = 0
    is_gone: bool = False

    def begin(self, task: _Task, positions: int) -> _Text:
        """One more output, for which the network has so many positions left."""
        self.unfinished += 1
        self.texts[task.name] = text = _Text(self, min(positions, task.grammar.max_tokens))
        return text

    @property
    def written(self) -> dict[Task, Written]:
        """What was written for each task."""
        return {task: (text.tokens, text.log_probabilities) for task, text in self.texts.items()}
