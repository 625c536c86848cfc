"""Re-ranking of related notes: popularity debias and diversity. Pure functions."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.text.hashtags import clean_tags


def popularity(exposure: int, debias: float, weight: float) -> float:
    """The prior subtracted from a note's cosine: ``debias * weight * log(1 + exposure)`` (see `evaluation.debias`)."""
    return debias * weight * math.log1p(exposure)


def diverse(scores_N: Sequence[float], vectors_ND: NDArray[np.float32], k: int, diversity: float) -> list[int]:
    """Positions of k >= 1 of N >= 1 notes by maximal marginal relevance (Carbonell and Goldstein, 1998), ascending.

    The first note has the highest score; each next one the highest ``(1 - diversity) * score - diversity *
    similarity``, where the similarity is its largest cosine to the notes chosen before.

    Args:
        scores_N: descending.
        vectors_ND: unit vectors; a row of zeros is similar to no other.
    """
    relevance_N = (1.0 - diversity) * np.asarray(scores_N)
    similarity_N = np.full(len(scores_N), -np.inf)
    chosen = [0]
    while len(chosen) < min(k, len(scores_N)):
        similarity_N = np.maximum(similarity_N, vectors_ND @ vectors_ND[chosen[-1]])
        marginal_N = relevance_N - diversity * similarity_N
        marginal_N[chosen] = -np.inf
        chosen.append(int(marginal_N.argmax()))
    return sorted(chosen)


def in_common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The clean hashtags that two notes share, in the order of the first."""
    shared = set(clean_tags(list(other)))
    return [tag for tag in clean_tags(list(one)) if tag in shared]
