"""`Drafter` in memory: a bag of words instead of a model. Texts that share words are close."""

import asyncio
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.backend import Embedding, Prediction, Scored
from model.inference.abstention import abstention
from model.note import Note
from service.errors import WorkerUnavailable

FINGERPRINT = "bag-of-words"
DIM = 256


def bag_of_words(note: Note) -> NDArray[np.float32]:
    """Unit vector of a note's words, shape (DIM,): one random direction a word, the same in every run.

    Of a text without a letter it abstains.
    """
    if not _is_read(note):
        return abstention(note, DIM)
    total = np.full(DIM, 1e-3, dtype=np.float32)
    for word in _words(note):
        seed = int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big")
        total += np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return total / np.linalg.norm(total)


def _words(note: Note) -> list[str]:
    return f"{note.title} {note.content}".split()


def _is_read(note: Note) -> bool:
    return any(map(str.isalnum, f"{note.title} {note.content}"))


class WordDrafter:
    """`Drafter` over `bag_of_words`: a title's words are its hashtags, each half as likely as the last."""

    def __init__(self) -> None:
        self.down = False
        self.hangs = False
        self.category: Scored | None = Scored("Travel", 0.93)

    async def predict(self, note: Note, max_hashtags: int, *, timeout_s: float) -> Prediction:  # noqa: ARG002
        """See `Drafter`."""
        await self._available()
        if not _is_read(note):
            return Prediction(bag_of_words(note), (), None)
        words = note.title.split()[:max_hashtags]
        tags = tuple(Scored(word, 0.8 / 2**place) for place, word in enumerate(words))
        return Prediction(bag_of_words(note), tags, self.category)

    async def embed(self, notes: Sequence[Note], *, timeout_s: float) -> list[Embedding]:  # noqa: ARG002
        """See `Drafter`; a word is a token."""
        await self._available()
        return [Embedding(bag_of_words(note), len(_words(note))) for note in notes]

    async def ready(self, *, timeout_s: float) -> bool:  # noqa: ARG002
        """See `Drafter`."""
        return not self.down

    async def _available(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.down:
            raise WorkerUnavailable("no worker answered in time")
