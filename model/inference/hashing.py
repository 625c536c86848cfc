"""A `Backend` without a network: vectors come from a hash of the text. For tests of the service around a model."""

import hashlib
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model.backend import Prediction, Prompt, Scored
from model.note import Note

DIM = 16
BAD = "\x07"  # a note with this in its text cannot be predicted


def text_vector(text: str) -> NDArray[np.float32]:
    """The unit vector of a text, shape (DIM,)."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


class HashingBackend:
    """Deterministic, and fast. A prompt is the characters of the title or, without one, of the content; hashtags are
    their words.

    ``batches`` keeps the texts of every forward pass; ``before`` runs ahead of each, on the model's thread.
    """

    dim = DIM
    dtype = "float32"
    timings = None

    def __init__(self, fingerprint: str = "hashing-a", before: Callable[[], object] = lambda: None) -> None:
        self.fingerprint = fingerprint
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self._before = before

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """See `Backend`."""
        return [Prompt(note, tuple(map(ord, _text(note)))) for note in notes]

    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """See `Backend`."""
        return np.stack([prediction.vector for prediction in self.predict(prompts, 0)])

    def predict(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Prediction]:
        """See `Backend`. Raises RuntimeError when a text holds `BAD`."""
        self._before()
        self.threads.add(threading.current_thread().name)
        texts = [_text(prompt.note) for prompt in prompts]
        self.batches.append(texts)
        if any(BAD in text for text in texts):
            raise RuntimeError(f"cannot read {BAD!r}")
        return [self._prediction(text, max_hashtags) for text in texts]

    def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """See `Backend`."""
        return ["Travel" if len(prompt.note.title) % 2 else "Travels" for prompt in prompts]

    def _prediction(self, text: str, max_hashtags: int) -> Prediction:
        words = text.split()[:max_hashtags]
        tags = tuple(Scored(word, 0.9 / place) for place, word in enumerate(words, start=1))
        return Prediction(text_vector(self.fingerprint + text), tags, Scored("Travel", 0.8))


def _text(note: Note) -> str:
    return note.title or note.content
