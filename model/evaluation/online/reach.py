"""How far lists reach into the catalog: coverage, inequality, and hubs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HUB_DEVIATIONS = 2.0


@dataclass(frozen=True, slots=True)
class Reach:
    """Figures of how often each note of a catalog stands in lists.

    ``coverage`` is the share of the notes that stand in any. ``gini`` is 0 where all stand in as many, and near 1 where
    few stand in all. ``hubs`` counts the notes that stand in too many: more than two standard deviations above the mean
    (Radovanovic, Nanopoulos and Ivanovic, "Hubs in Space", JMLR 2010); ``hub_share`` is their share of all places.
    """

    notes: int
    coverage: float
    gini: float
    hubs: int
    hub_share: float


def reach(times_M: NDArray[np.int64], notes: int) -> Reach | None:
    """Of a catalog of so many notes, of which M stand in lists, each so often, shape (M,); None without any."""
    listed_M = np.sort(times_M[times_M > 0]).astype(np.float64)
    notes = max(notes, len(listed_M))
    if not len(listed_M):
        return None
    total = float(listed_M.sum())  # a plain number, for JSON
    # Notes that stand in none come first, with nothing: only their number matters to the ranks.
    ranks_M = np.arange(notes - len(listed_M) + 1, notes + 1)
    gini = 2 * float(ranks_M @ listed_M) / (notes * total) - (notes + 1) / notes
    mean = total / notes
    variance = float((listed_M**2).sum()) / notes - mean**2
    is_hub_M = listed_M > mean + _HUB_DEVIATIONS * np.sqrt(max(0.0, variance))
    return Reach(notes, len(listed_M) / notes, gini, int(is_hub_M.sum()), float(listed_M[is_hub_M].sum() / total))
