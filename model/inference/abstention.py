"""Abstention: what is said of a note of which the tokenizer knows no word.

Emoji alone, or a script that a tokenizer lacks, reach the network as unknown tokens, and all such notes look alike to
it: their vectors are the same, and their category is always the same one, with confidence. So the network is not asked.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend, Prediction, Prompt, Timings
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


class AbstainingBackend:
    """A `Backend` over another one that abstains from notes of which the tokenizer ``reads`` nothing.

    Such a note has the vector of an `abstention`, no hashtags and no category.
    """

    def __init__(self, backend: Backend, reads: Callable[[Note], bool]) -> None:
        self.fingerprint, self.dim, self.dtype = backend.fingerprint, backend.dim, backend.dtype
        self.timings: Timings | None = None
        self._backend = backend
        self._reads = reads

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """See `Backend`."""
        return [replace(prompt, is_read=self._reads(prompt.note)) for prompt in self._backend.tokenize(notes)]

    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """See `Backend`."""
        vectors_ND = np.array([abstention(prompt.note, self.dim) for prompt in prompts], np.float32)
        vectors_ND = vectors_ND.reshape(len(prompts), self.dim)
        read_N = np.array([prompt.is_read for prompt in prompts], bool)
        if read_N.any():
            vectors_ND[read_N] = self._backend.embed([prompt for prompt in prompts if prompt.is_read])
        return vectors_ND

    def predict(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Prediction]:
        """See `Backend`."""
        read = [prompt for prompt in prompts if prompt.is_read]
        predictions = iter(self._backend.predict(read, max_hashtags) if read else ())
        self.timings = self._backend.timings if read else None
        return [
            next(predictions) if prompt.is_read else Prediction(abstention(prompt.note, self.dim), (), None)
            for prompt in prompts
        ]

    def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """See `Backend`. It never abstains: this measures the network."""
        return self._backend.write_categories(prompts)
