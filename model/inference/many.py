"""A backend on many notes at once: batches by token budget, a progress bar, results in the caller's order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend, Prediction
from model.batching import batches
from model.note import Note
from model.progress import bar

MAX_BATCH_TOKENS = 8192
HASHTAGS = 5


def embed_all(backend: Backend, notes: Sequence[Note]) -> NDArray[np.float32]:
    """Unit vectors of any number of notes, shape (len(notes), dim), in order."""
    with bar("embed", len(notes), "note") as progress:
        return embed_part(backend, notes, progress)


def embed_part(backend: Backend, notes: Sequence[Note], progress: Any) -> NDArray[np.float32]:
    """The same for some of the notes of a progress bar."""
    prompts = backend.tokenize(notes)
    vectors_ND = np.zeros((len(notes), backend.dim), dtype=np.float32)
    for positions in batches([len(prompt.token_ids) for prompt in prompts], MAX_BATCH_TOKENS):
        vectors_ND[positions] = backend.embed([prompts[position] for position in positions])
        progress.update(len(positions))
    return vectors_ND


def predict_all(backend: Backend, notes: Sequence[Note]) -> list[Prediction]:
    """Predictions of any number of notes, with five hashtags at most, in order."""
    prompts = backend.tokenize(notes)
    predictions: dict[int, Prediction] = {}
    with bar("predict", len(notes), "note") as progress:
        for positions in batches([len(prompt.token_ids) for prompt in prompts], MAX_BATCH_TOKENS):
            batch = backend.predict([prompts[position] for position in positions], HASHTAGS)
            predictions.update(zip(positions, batch, strict=True))
            progress.update(len(positions))
    return [predictions[position] for position in range(len(notes))]


def write_all(backend: Backend, notes: Sequence[Note]) -> list[str]:
    """Freely written categories of any number of notes, in order."""
    return backend.write_categories(backend.tokenize(notes))
