"""The order of related notes: popularity taken out, and notes that say the same spread apart. Pure functions."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.text.hashtags import clean_tags


def popularity(exposure: int, debias: float, weight: float) -> float:
    """What ``debias`` takes off a note's cosine: ``debias * weight * log(1 + exposure)`` (see `evaluation.debias`)."""
    return debias * weight * math.log1p(exposure)


def diverse(scores_N: Sequence[float], vectors_ND: NDArray[np.float32], k: int, diversity: float) -> list[int]:
    """Which k of N notes to take by maximal marginal relevance, in the order of their scores.

    One after the other, the note with the highest ``(1 - diversity) * score - diversity * likeness``, where likeness is
    its largest cosine to those taken before (Carbonell and Goldstein, 1998). The first is always that of the highest
    score.

    Args:
        scores_N: descending.
        vectors_ND: unit vectors; a row of zeros is like no other.
    """
    relevance_N = (1.0 - diversity) * np.asarray(scores_N)
    likeness_N = np.full(len(scores_N), -np.inf)
    taken: list[int] = []
    while len(taken) < min(k, len(scores_N)):
        if taken:
            likeness_N = np.maximum(likeness_N, vectors_ND @ vectors_ND[taken[-1]])
            marginal_N = relevance_N - diversity * likeness_N
            marginal_N[taken] = -np.inf
            taken.append(int(marginal_N.argmax()))
        else:
            taken.append(0)
    return sorted(taken)


def in_common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The clean hashtags that two notes share, in the order of the first."""
    theirs = set(clean_tags(list(other)))
    return [tag for tag in clean_tags(list(one)) if tag in theirs]
