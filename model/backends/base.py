"""The seam between the service and whatever runs the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.note import Note


@dataclass(frozen=True, slots=True)
class Prompt:
    """A note as the network sees it: token ids up to and including ``[EMB]``.

    The note stays beside them for templates that name the task before the note: those need a second prompt.
    """

    note: Note
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A hashtag or a category with the model's probability for it, in 0..1."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one prefill says about one note.

    ``vector`` is unit norm, float32, shape (dim,). ``hashtags`` stand most likely first and are clean as the
    HTTP contract demands. ``category`` is None only for a model that was trained without categories.
    """

    vector: NDArray[np.float32]
    hashtags: tuple[Scored, ...]
    category: Scored | None


class Backend(Protocol):
    """Runs NoteLLM on batches. Synchronous, single-threaded, never touches the network.

    ``fingerprint`` names weights, tokenizer, template, head and dimension: vectors of two fingerprints never meet.
    """

    fingerprint: str
    dim: int

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """One prompt a note, in order. Title and content are cut by tokens; never raises on any text."""
        ...

    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Unit vectors, shape (len(prompts), dim), in order."""
        ...

    def read(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Reading]:
        """Vector, hashtags and category of every prompt from one prefill each, in order."""
        ...
