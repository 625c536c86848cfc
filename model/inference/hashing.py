"""A `Backend` without a network: vectors come from a hash of the text. For tests of the service around a model."""

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend, Prediction, Prompt, Request, Scored
from model.note import Note

DIM = 16
BAD = "\x07"  # a note with this in its text cannot be predicted


def text_vector(text: str) -> NDArray[np.float32]:
    """The unit vector of a text, shape (DIM,)."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


class HashingBackend(Backend):
    """Deterministic, and fast. A prompt is the characters of the title or, without one, of the content; hashtags are
    their words.

    A note is complete after so many ``steps``. ``batches`` keeps the texts that joined at each step; ``before`` runs
    ahead of each step, on the model's thread.
    """

    dim = DIM
    dtype = "float32"
    join_tokens = 1 << 20
    timings = None

    def __init__(
        self, fingerprint: str = "hashing-a", before: Callable[[], object] = lambda: None, steps: int = 1
    ) -> None:
        self.fingerprint = fingerprint
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self._before = before
        self._steps = steps
        self._joining: dict[int, Request] = {}
        self._under_way: dict[int, tuple[Request, int]] = {}

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """See `Backend`."""
        return [Prompt(note, tuple(map(ord, _text(note)))) for note in notes]

    def add(self, key: int, request: Request) -> None:
        """See `Backend`."""
        self._joining[key] = request

    def step(self) -> dict[int, Prediction]:
        """See `Backend`. Raises RuntimeError when a text holds `BAD`."""
        self._before()
        self.threads.add(threading.current_thread().name)
        if self._joining:
            self.batches.append([_text(request.prompt.note) for request in self._joining.values()])
        self._under_way |= {key: (request, self._steps) for key, request in self._joining.items()}
        self._joining.clear()
        if any(BAD in _text(request.prompt.note) for request, _ in self._under_way.values()):
            raise RuntimeError(f"cannot read {BAD!r}")
        self._under_way = {key: (request, left - 1) for key, (request, left) in self._under_way.items()}
        complete = {key: self._prediction(request) for key, (request, left) in self._under_way.items() if not left}
        self.drop(complete)
        return complete

    def drop(self, keys: Collection[int]) -> None:
        """See `Backend`."""
        for key in keys:
            self._joining.pop(key, None)
            self._under_way.pop(key, None)

    def _prediction(self, request: Request) -> Prediction:
        text = _text(request.prompt.note)
        category = "Travels" if request.is_free and len(text) % 2 == 0 else "Travel"
        words = text.split()[: request.max_hashtags or 0]
        tags = tuple(Scored(word, 0.9 / place) for place, word in enumerate(words, start=1))
        return Prediction(text_vector(self.fingerprint + text), tags, Scored(category, 0.8))


def _text(note: Note) -> str:
    return note.title or note.content
