"""Hashtags without generation: the opponents of NoteLLM's hashtags, and the neighbors that add to them.

Shapes: Q query notes, N training notes, D embedding size.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.evaluation.baselines import tfidf_vectorizer
from model.note import Note
from model.text.hashtags import clean_tags
from model.text.suggestions import VOTERS, TaggedNeighbors

NEIGHBORS = 10
_SCORES_PER_BLOCK = 2**24  # 64 MiB of float32

Result = TypeVar("Result")


class TagBaseline(Protocol):
    """Suggests hashtags for notes that have none yet."""

    name: str

    def tags(self, notes: Sequence[Note]) -> list[list[str]]:
        """Clean hashtags of each note, best first, from its title and content alone."""
        ...


class MostFrequentTags:
    """The hashtags that most training notes carry, the same for every note; ties by name."""

    name = "most frequent hashtags"

    def __init__(self, training: Sequence[Note]) -> None:
        count = Counter(tag for note in training for tag in clean_tags(list(note.hashtags)))
        self._tags = sorted(count, key=lambda tag: (-count[tag], tag))

    def tags(self, notes: Sequence[Note]) -> list[list[str]]:
        """All hashtags by frequency, for every note."""
        return [self._tags] * len(notes)


class NeighborTags:
    """The hashtags of the training notes whose title and content are nearest by TF-IDF; see `neighbor_votes`.

    Raises:
        ValueError: if no training note has a word.
    """

    name = "hashtags of TF-IDF neighbors"

    def __init__(self, training: Sequence[Note], neighbors: int = NEIGHBORS) -> None:
        self._carried = [clean_tags(list(note.hashtags)) for note in training]
        self._neighbors = neighbors
        self._vectorizer: Any = tfidf_vectorizer()
        self._unit_NV: Any = self._vectorizer.fit_transform([_draft_text(note) for note in training])

    def tags(self, notes: Sequence[Note]) -> list[list[str]]:
        """Hashtags with any vote, strongest first."""
        unit_QV: Any = self._vectorizer.transform([_draft_text(note) for note in notes])

        def votes_of(rows: slice) -> list[dict[str, float]]:
            return neighbor_votes((unit_QV[rows] @ self._unit_NV.T).toarray(), self._carried, self._neighbors)

        voted = _in_blocks(votes_of, len(notes), len(self._carried))
        return [sorted(votes, key=votes.__getitem__, reverse=True) for votes in voted]


def nearest_notes(
    query_QD: NDArray[np.float32], training_ND: NDArray[np.float32], carried: Sequence[Sequence[str]]
) -> list[TaggedNeighbors]:
    """The `VOTERS` training notes nearest to each query by the cosine of unit vectors, as the service searches.

    ``carried`` are the training notes' hashtags as they were written.
    """

    def nearest(rows: slice) -> list[TaggedNeighbors]:
        return [_nearest(cosine_N, carried, VOTERS) for cosine_N in query_QD[rows] @ training_ND.T]

    return _in_blocks(nearest, len(query_QD), len(carried))


def neighbor_votes(
    cosine_QN: NDArray[np.float32], carried: Sequence[Sequence[str]], neighbors: int = NEIGHBORS
) -> list[dict[str, float]]:
    """The votes of the nearest training notes for the hashtags they carry, in 0..1, closest note first.

    A hashtag's vote is the sum of the positive cosines of its carriers among the ``neighbors`` nearest, over
    ``neighbors``: a lone distant neighbor counts little. A hashtag without a positive vote is left out.
    """
    voted = []
    for cosine_N in cosine_QN:
        votes: dict[str, float] = {}
        for cosine, tags in _nearest(cosine_N, carried, neighbors):
            if cosine > 0:
                for tag in tags:
                    votes[tag] = votes.get(tag, 0.0) + cosine / neighbors
        voted.append(votes)
    return voted


def _nearest(cosine_N: NDArray[np.float32], carried: Sequence[Sequence[str]], count: int) -> TaggedNeighbors:
    count = min(count, len(cosine_N))
    nearest = np.argpartition(-cosine_N, count - 1)[:count].tolist()
    return [(float(cosine_N[row]), carried[row]) for row in sorted(nearest, key=lambda row: (-cosine_N[row], row))]


def _in_blocks(work: Callable[[slice], list[Result]], num_queries: int, num_notes: int) -> list[Result]:
    """``work`` on blocks of queries, whose cosines to all notes fit the limit."""
    step = max(1, _SCORES_PER_BLOCK // num_notes)
    blocks = [slice(start, start + step) for start in range(0, num_queries, step)]
    return [result for rows in blocks for result in work(rows)]


def _draft_text(note: Note) -> str:
    return f"{note.title} {note.content}"
