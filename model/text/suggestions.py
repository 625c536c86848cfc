"""Suggested hashtags: the model's and those of a note's neighbors, in one list.

Serving, evaluation and calibration share it. Needs no torch and no numpy.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from model.text.hashtags import clean_tag, fold, spelling

VOTERS = 20
# By how much a neighbor has to be nearer, in cosine, for its vote to weigh e times as much.
CLOSER = 0.05

TaggedNeighbors = Sequence[tuple[float, Iterable[str]]]
"""A note's nearest notes, closest first: the cosine of each, and its hashtags as they were written."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A suggested hashtag, in a spelling that the contract allows.

    ``key`` is its `fold`. ``probability`` is the model's, in 0..1, or None if the model did not write it;
    ``vote`` is the neighbors', in 0..1, 0 if none of them carries it.
    """

    key: str
    tag: str
    probability: float | None
    vote: float


class Scores(Protocol):
    """How likely suggestions are to be right, in 0..1."""

    def suggestion(self, candidate: Candidate) -> float:
        """A hashtag, by the model's probability and the neighbors' vote."""
        ...

    def alone(self, probability: float) -> float:
        """A hashtag that the model wrote, when the neighbors are unknown."""
        ...

    def category(self, probability: float) -> float:
        """The category that the model predicted."""
        ...


class Uncalibrated:
    """The model's own probabilities; with the neighbors' votes as if the two were independent."""

    def suggestion(self, candidate: Candidate) -> float:
        """``1 - (1 - p) * (1 - v)``, for the model's probability ``p``, 0 where absent, and the vote ``v``."""
        return 1.0 - (1.0 - (candidate.probability or 0.0)) * (1.0 - candidate.vote)

    def alone(self, probability: float) -> float:
        """The probability itself."""
        return probability

    def category(self, probability: float) -> float:
        """The probability itself."""
        return probability


def candidates(generated: Iterable[tuple[str, float]], neighbors: TaggedNeighbors = ()) -> list[Candidate]:
    """One candidate for each hashtag: the model's in its order, then the neighbors', closest first.

    Where the model wrote two spellings of one hashtag, the likelier one counts. A hashtag's vote is the sum of
    `vote_weights` of the neighbors that carry it; none votes twice for the same. Text that is no hashtag is left out.
    """
    written: dict[str, tuple[float, str]] = {}
    for text, probability in generated:
        if tag := clean_tag(text):
            key = fold(tag)
            written[key] = max(written.get(key, (0.0, "")), (min(max(probability, 0.0), 1.0), tag))
    votes: dict[str, float] = {}
    spellings: dict[str, str] = {}
    weights = vote_weights([cosine for cosine, _ in neighbors])
    for weight, (_, hashtags) in zip(weights, neighbors, strict=True):
        for key, tag in spelled(hashtags).items() if weight else ():
            votes[key] = votes.get(key, 0.0) + weight
            spellings.setdefault(key, tag)
    return [
        Candidate(
            key,
            written[key][1] if key in written else spellings[key],
            written[key][0] if key in written else None,
            min(votes.get(key, 0.0), 1.0),
        )
        for key in dict.fromkeys([*written, *votes])
    ]


def vote_weights(cosines: Sequence[float]) -> list[float]:
    """The weight of each neighbor's vote, at most 1 together: its cosine times a softmax over the neighbors.

    The softmax favors the nearest: ``exp(cosine / CLOSER)`` over the sum of all. Neighbors that are missing from
    `VOTERS` count as near as the farthest and carry nothing, so one neighbor alone counts little. A negative cosine
    weighs nothing.
    """
    if not cosines:
        return []
    nearest, farthest = max(cosines), min(cosines)
    odds = [math.exp((cosine - nearest) / CLOSER) for cosine in cosines]
    silent = max(0, VOTERS - len(cosines)) * math.exp((farthest - nearest) / CLOSER)
    total = sum(odds) + silent
    return [max(cosine, 0.0) * share / total for cosine, share in zip(cosines, odds, strict=True)]


def spelled(hashtags: Iterable[str]) -> dict[str, str]:
    """The distinct hashtags of a note by their keys, each as it was first written; other text is left out."""
    first: dict[str, str] = {}
    for text in hashtags:
        if tag := spelling(text):
            first.setdefault(fold(tag), tag)
    return first


def usual_spellings(carried: Iterable[Iterable[str]]) -> dict[str, str]:
    """By key, the most frequent spelling of a hashtag among its notes; a tie goes to the last by code points."""
    counts: dict[str, Counter[str]] = {}
    for hashtags in carried:
        for key, tag in spelled(hashtags).items():
            counts.setdefault(key, Counter())[tag] += 1
    return {key: max(count, key=lambda tag: (count[tag], tag)) for key, count in counts.items()}
