"""Hashtags without generating: the opponents of NoteLLM's hashtags, and what neighbors add to them.

Shapes: Q notes asked about, N training notes, D embedding size.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.backends.base import Scored
from model.baselines import tfidf_vectorizer
from model.note import Note
from model.tags import clean_tags

NEIGHBORS = 10
_SCORES_PER_BLOCK = 2**24  # 64 MiB of float32


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
        voted = _in_blocks(
            lambda rows: (unit_QV[rows] @ self._unit_NV.T).toarray(), len(notes), self._carried, self._neighbors
        )
        return [sorted(votes, key=votes.__getitem__, reverse=True) for votes in voted]


def embedding_votes(
    query_QD: NDArray[np.float32],
    training_ND: NDArray[np.float32],
    carried: Sequence[Sequence[str]],
    neighbors: int = NEIGHBORS,
) -> list[dict[str, float]]:
    """`neighbor_votes` by the cosine of unit vectors; ``carried`` are the training notes' clean hashtags."""
    return _in_blocks(lambda rows: query_QD[rows] @ training_ND.T, len(query_QD), carried, neighbors)


def neighbor_votes(
    cosine_QN: NDArray[np.float32], carried: Sequence[Sequence[str]], neighbors: int = NEIGHBORS
) -> list[dict[str, float]]:
    """How strongly the nearest training notes speak for the hashtags they carry, in 0..1, closest note first.

    A hashtag's vote is the sum of the positive cosines of those of the ``neighbors`` nearest that carry it, over
    ``neighbors``: a lone distant neighbor says little. A hashtag without a positive vote is left out.
    """
    count = min(neighbors, cosine_QN.shape[1])
    nearest_QK = np.argpartition(-cosine_QN, count - 1, axis=1)[:, :count]
    voted = []
    for cosine_N, nearest_K in zip(cosine_QN, nearest_QK, strict=True):
        votes: dict[str, float] = {}
        for note in sorted(nearest_K.tolist(), key=lambda row: (-cosine_N[row], row)):
            if cosine_N[note] > 0:
                for tag in carried[note]:
                    votes[tag] = votes.get(tag, 0.0) + float(cosine_N[note]) / neighbors
        voted.append(votes)
    return voted


def merged(generated: Sequence[Scored], votes: Mapping[str, float]) -> list[str]:
    """Generated hashtags and the neighbors' in one list, best first, as the service merges them.

    The sources count as independent: the score is ``1 - (1 - p) * (1 - v)`` for the model's probability ``p`` and
    the vote ``v``, either 0 where absent. Ties keep the order of the model, then of the neighbors.
    """
    probability = {scored.name: scored.score for scored in generated}
    either = dict.fromkeys([*probability, *votes])
    return sorted(either, key=lambda tag: (1 - probability.get(tag, 0.0)) * (1 - votes.get(tag, 0.0)))


def _in_blocks(
    cosines: Callable[[slice], NDArray[np.float32]], num_queries: int, carried: Sequence[Sequence[str]], neighbors: int
) -> list[dict[str, float]]:
    step = max(1, _SCORES_PER_BLOCK // len(carried))
    blocks = [slice(start, start + step) for start in range(0, num_queries, step)]
    return [votes for rows in blocks for votes in neighbor_votes(cosines(rows), carried, neighbors)]


def _draft_text(note: Note) -> str:
    return f"{note.title} {note.content}"
