"""The seam between the service and the engine that runs the network."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.note import Note

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
class Timings:
    """Seconds of a `Backend.predict`: the prefill of the prompts, and the decoding of category and hashtags."""

    prefill_s: float
    decode_s: float


class Backend(Protocol):
    """Runs NoteLLM on batches. Synchronous, never touches the network.

    All calls come from one thread, but for `tokenize`, which may run on others meanwhile. Where memory runs out a
    call raises MemoryError or torch's OutOfMemoryError, and may be tried again with less.

    ``fingerprint`` names weights, tokenizer, template, head and dimension: vectors of two fingerprints never meet.
    ``dtype`` is the precision that it computes in: float32, bfloat16 or float16. ``timings`` are those of the last
    `predict`, None before one or where they are not measured.
    """

    fingerprint: str
    dim: int
    dtype: str
    timings: Timings | None

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """One prompt a note, in order. Title and content are cut by tokens; never raises on any text."""
        ...

    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Unit vectors, shape (len(prompts), dim), in order."""
        ...

    def predict(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Prediction]:
        """Vector, hashtags and category of every prompt from one prefill each, in order."""
        ...

    def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """Freely written categories, which nothing holds to the closed set (section 5.5), in order."""
        ...
