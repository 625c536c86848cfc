"""The seam between the service and the engine that runs the network."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.batching import admits
from model.note import Note

# Of a closed run, `Backend.run`.
RUN_TOKENS = 8192
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def is_fingerprint(text: str) -> bool:
    """Whether a text is a model's fingerprint, 16 hex digits: ask before it names a folder."""
    return _FINGERPRINT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A note as the network sees it: token ids up to and including ``[EMB]``.

    It keeps the note, for the second prompt of templates that name the task before the note. Where the tokenizer knows
    no word of the note it is not to be read: `model.inference.abstention`.
    """

    note: Note
    token_ids: tuple[int, ...]
    is_read: bool = True


@dataclass(frozen=True, slots=True)
class Scored:
    """A hashtag or a category with the model's probability for it, in 0..1."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The network's outputs for one note, from one prefill.

    ``vector`` is unit norm, float32, shape (dim,). ``hashtags`` stand most likely first and are clean as the
    HTTP contract demands. ``category`` is None for a model that was trained without categories, and for a note that was
    not read (`model.inference.abstention`).
    """

    vector: NDArray[np.float32]
    hashtags: tuple[Scored, ...]
    category: Scored | None


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text's vector alone, as in `Prediction`; ``tokens`` are those of its prompt, the model's own words included."""

    vector: NDArray[np.float32]
    tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """A note for the network, and what it is to say of it: the vector alone where ``max_hashtags`` is None.

    ``is_free``: a category that nothing holds to the closed set (section 5.5), and no hashtags.
    """

    prompt: Prompt
    max_hashtags: int | None = None
    is_free: bool = False

    @property
    def tokens(self) -> int:
        """Those of its prompt."""
        return len(self.prompt.token_ids)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of a `Backend.step`: the prefill of the prompts that joined, and one token more of every output."""

    prefill_s: float
    decode_s: float


class Backend(Protocol):
    """Runs NoteLLM on notes that come and go: each joins between two steps, and leaves when it is complete.

    Synchronous, never touches the network. All calls come from one thread, but for `tokenize`, which may run on others
    meanwhile. Where memory runs out `step` raises MemoryError or torch's OutOfMemoryError.

    ``fingerprint`` names weights, tokenizer, template, head and dimension: vectors of two fingerprints never meet.
    ``dtype`` is the precision that it computes in: float32, bfloat16 or float16. ``join_tokens``: prompt tokens that
    may join at one step without keeping the other notes waiting for long. ``timings`` are those of the last `step`,
    None before one or where they are not measured.
    """

    fingerprint: str
    dim: int
    dtype: str
    join_tokens: int
    timings: Timings | None

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """One prompt a note, in order. Title and content are cut by tokens; never raises on any text."""
        ...

    def add(self, key: int, request: Request) -> None:
        """Let a note join at the next step. Keys of notes under way are unique."""
        ...

    def step(self) -> dict[int, Prediction]:
        """Prefill what joined, and write one token more of every output; the predictions that are complete, by key.

        After an error the notes under way are lost, and have to be dropped.
        """
        ...

    def drop(self, keys: Collection[int]) -> None:
        """Forget notes, under way or about to join. Unknown keys are ignored."""
        ...

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Prediction]]:
        """The prediction of each request with its position, when it is complete; nothing else may be under way.

        Notes of like length join together, as many as `RUN_TOKENS` padded tokens hold.
        """
        waiting = sorted(range(len(requests)), key=lambda position: requests[position].tokens, reverse=True)
        under_way: set[int] = set()
        try:
            while waiting or under_way:
                lengths = [requests[position].tokens for position in waiting]
                for _ in range(admits(lengths, RUN_TOKENS, [requests[position].tokens for position in under_way])):
                    under_way.add(position := waiting.pop(0))
                    self.add(position, requests[position])
                complete = self.step()
                under_way -= complete.keys()
                yield from complete.items()
        finally:
            self.drop(under_way)

    def predict(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Prediction]:
        """Vector, hashtags and category of every prompt from one prefill each, in order; see `run`."""
        return self._in_order([Request(prompt, max_hashtags) for prompt in prompts])

    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Unit vectors, shape (len(prompts), dim), in order; see `run`."""
        vectors = [prediction.vector for prediction in self._in_order([Request(prompt) for prompt in prompts])]
        return np.array(vectors, np.float32).reshape(len(prompts), self.dim)

    def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """Freely written categories, in order; see `run`."""
        written = self._in_order([Request(prompt, is_free=True) for prompt in prompts])
        return [prediction.category.name if prediction.category else "" for prediction in written]

    def _in_order(self, requests: Sequence[Request]) -> list[Prediction]:
        predictions = dict(self.run(requests))
        return [predictions[position] for position in range(len(requests))]
