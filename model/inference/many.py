"""A backend on any number of notes, with a progress bar and the results in the caller's order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend, Prediction, Request
from model.note import Note
from model.progress import bar

HASHTAGS = 5


def embed_all(backend: Backend, notes: Sequence[Note]) -> NDArray[np.float32]:
    """Unit vectors of any number of notes, shape (len(notes), dim), in order."""
    with bar("embed", len(notes), "note") as progress:
        return embed_part(backend, notes, progress)


def embed_part(backend: Backend, notes: Sequence[Note], progress: Any) -> NDArray[np.float32]:
    """The same for some of the notes of a progress bar."""
    vectors_ND = np.zeros((len(notes), backend.dim), dtype=np.float32)
    for position, prediction in backend.run([Request(prompt) for prompt in backend.tokenize(notes)]):
        vectors_ND[position] = prediction.vector
        progress.update()
    return vectors_ND


def predict_all(backend: Backend, notes: Sequence[Note]) -> list[Prediction]:
    """Predictions of any number of notes, with five hashtags at most, in order."""
    predictions: dict[int, Prediction] = {}
    with bar("predict", len(notes), "note") as progress:
        for position, prediction in backend.run([Request(prompt, HASHTAGS) for prompt in backend.tokenize(notes)]):
            predictions[position] = prediction
            progress.update()
    return [predictions[position] for position in range(len(notes))]


def write_all(backend: Backend, notes: Sequence[Note]) -> list[str]:
    """Freely written categories of any number of notes, in order."""
    return backend.write_categories(backend.tokenize(notes))
