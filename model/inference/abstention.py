"""Abstention: what is said of a note of which the tokenizer knows no word.

Emoji alone, or a script that a tokenizer lacks, reach the network as unknown tokens, and all such notes look alike to
it: their vectors are the same, and their category is always the same one, with confidence. So the network is not asked.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend, Prediction, Prompt, Request, Timings
from model.note import Note
from model.text.prompt import plain_text

# A float16, as an index may keep it, rounds equal numbers to equal ones; a mean or a sum of vectors has no equal ones.
_TOLERANCE = 1e-3


def abstention(note: Note, dim: int) -> NDArray[np.float32]:
    """The vector of a note that is not read, shape (dim,), unit norm: signs drawn from the text, of one magnitude.

    Notes of the same text have the same one. To all other vectors it is as near as chance has it: the cosine is 0 on
    average, with a standard deviation of ``1 / sqrt(dim)``. A network's vectors are never of one magnitude.
    """
    text = plain_text(" ".join([note.title, *note.hashtags, note.content]))
    drawn = hashlib.shake_128(text.encode()).digest(-(-dim // 8))
    signs_D = 2.0 * np.unpackbits(np.frombuffer(drawn, np.uint8), count=dim) - 1.0
    vector: NDArray[np.float32] = (signs_D / np.sqrt(dim)).astype(np.float32)
    return vector


def is_abstention(vector: NDArray[np.float32]) -> bool:
    """Whether a unit vector, maybe rounded by an index, is that of a note that was not read."""
    if (
        abs(abs(float(vector[0])) - abs(float(vector[-1]))) > _TOLERANCE
    ):  # as mostly, and a unit vector has none above 1
        return False
    magnitudes = np.abs(vector)
    return bool(np.ptp(magnitudes) <= _TOLERANCE * magnitudes.max())


class AbstainingBackend(Backend):
    """A `Backend` over another one that abstains from notes of which the tokenizer ``reads`` nothing.

    Such a note has the vector of an `abstention`, no hashtags and no category; a category that is written freely is
    asked of the network, which it measures.
    """

    def __init__(self, backend: Backend, reads: Callable[[Note], bool]) -> None:
        self.fingerprint, self.dim, self.dtype = backend.fingerprint, backend.dim, backend.dtype
        self.join_tokens = backend.join_tokens
        self.timings: Timings | None = None
        self._backend = backend
        self._reads = reads
        self._read: set[int] = set()
        self._abstained: dict[int, Prediction] = {}

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """See `Backend`."""
        return [replace(prompt, is_read=self._reads(prompt.note)) for prompt in self._backend.tokenize(notes)]

    def add(self, key: int, request: Request) -> None:
        """See `Backend`."""
        if request.prompt.is_read or request.is_free:
            self._read.add(key)
            self._backend.add(key, request)
        else:
            self._abstained[key] = Prediction(abstention(request.prompt.note, self.dim), (), None)

    def step(self) -> dict[int, Prediction]:
        """See `Backend`."""
        read = self._backend.step() if self._read else {}
        self.timings = self._backend.timings if self._read else None
        complete = read | self._abstained
        self._read -= read.keys()
        self._abstained.clear()
        return complete

    def drop(self, keys: Collection[int]) -> None:
        """See `Backend`."""
        self._backend.drop(self._read & set(keys))
        self._read -= set(keys)
        for key in keys:
            self._abstained.pop(key, None)
