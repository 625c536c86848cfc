"""What a model does with the held-out notes, note by note, so that two models can be compared in pairs.

Shapes: P gold pairs, H notes with hashtags, C notes with a category, R rounds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.data.pairs import Pairs
from model.evaluation.baselines import Embeddings
from model.evaluation.hashtags import (
    JudgedHashtags,
    Predict,
    Write,
    has_hashtags,
    judge_categories,
    sample_notes,
)
from model.evaluation.retrieval import Embed, places_of, truth_ranks
from model.note import Note

# Notes of one round, which both models embed in turns.
_TIMED, _ROUNDS = 64, 7


@dataclass(frozen=True, slots=True)
class Contender:
    """A model in the contest: what it answers, and its closed set of categories."""

    name: str
    embed: Embed
    predict: Predict
    write: Write
    categories: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The figures of one model, a value each pair or note.

    ``hit_P``: whether the truth is among the first k. ``f1_H``: F1 of its own five hashtags. ``right_C`` and
    ``illegal_C``: of its categories, the first held to its closed set, the second written freely and outside of it.
    """

    hit_P: NDArray[np.float64]
    f1_H: NDArray[np.float64]
    right_C: NDArray[np.float64]
    illegal_C: NDArray[np.float64]


def measure(model: Contender, pool: Sequence[Note], gold: Pairs, k: int, limit: int) -> Measured:
    """The figures of a model on a pool and its related pairs; ``limit`` notes are predicted at most of each kind.

    Raises:
        ValueError: if the model gives a score that is not finite.
    """
    targets, truths = places_of(pool, gold)
    ranks_P = truth_ranks(Embeddings(model.name, model.embed(pool)), targets, truths, len(pool))
    tagged = sample_notes([note for note in pool if has_hashtags(note)], limit)
    f1_H = np.empty(0)
    if tagged:
        predictions = model.predict([replace(note, hashtags=(), category=None) for note in tagged])
        named = [[tag.name for tag in prediction.hashtags] for prediction in predictions]
        f1_H = JudgedHashtags(model.name, named, [note.hashtags for note in tagged]).of_each["f1"]
    sorted_in = sample_notes([note for note in pool if note.category], limit)
    right_C = illegal_C = np.empty(0)
    if sorted_in:
        drafts, truth = (
            [replace(note, category=None) for note in sorted_in],
            [note.category or "" for note in sorted_in],
        )
        predicted = [one.category.name if one.category else None for one in model.predict(drafts)]
        right_C = judge_categories(predicted, truth, model.categories)["accuracy"]
        illegal_C = judge_categories(model.write(drafts), truth, model.categories)["illegal"]
    return Measured((ranks_P < k).astype(np.float64), f1_H, right_C, illegal_C)


def seconds_in_turns(first: Contender, second: Contender, pool: Sequence[Note]) -> NDArray[np.float64]:
    """Seconds a note to embed some of the pool, in turns, shape (R, 2): a machine that slows down slows down both."""
    notes = sample_notes(pool, _TIMED)
    seconds_R2 = np.empty((_ROUNDS, 2))
    for model in (first, second):
        model.embed(notes)  # what a first call costs is not counted
    for row in range(_ROUNDS):
        for column, model in enumerate((first, second)):
            started = time.perf_counter()
            model.embed(notes)
            seconds_R2[row, column] = (time.perf_counter() - started) / len(notes)
    return seconds_R2
