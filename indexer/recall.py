"""How good a base's answers are, measured against exact search."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from indexer.base import Base, Choice, live_rows
from indexer.bitmap import Bits
from indexer.factory import IndexRecipe

K = 10
SAMPLE = 32
FLOOR = 0.96
NOISE = 0.01
MOST_CANDIDATES = 64


class Probe:
    """Some rows of a base, always the same, that are asked for their nearest neighbors.

    That is what related notes are asked for, too. A row is not its own neighbor.
    """

    def __init__(self, base: Base, alive: Bits | None = None) -> None:
        """Searches exactly, once: the price of reading every vector for each row of the sample."""
        live = live_rows(alive, len(base))
        rows_N = np.random.default_rng(0).choice(live, min(SAMPLE, len(live)), replace=False)
        self._base = base
        self._choice = Choice(len(live), alive)
        self._queries_ND = base.vectors(rows_N)
        _, nearest_NK = base.exact(self._queries_ND, K + 1, self._choice) if len(live) else (None, np.empty((0, 0)))
        self._wanted = [
            set(nearest_K[nearest_K >= 0].tolist()) - {row} for row, nearest_K in zip(rows_N, nearest_NK, strict=True)
        ]

    def recall(self) -> float:
        """Recall@10: the share of the nearest rows that a search finds; 1.0 where there are none."""
        wanted = sum(map(len, self._wanted))
        if not wanted:
            return 1.0
        _, found_NK = self._base.search(self._queries_ND, K + 1, self._choice)
        return sum(len(set(row) & want) for row, want in zip(found_NK.tolist(), self._wanted, strict=True)) / wanted


def tune(base: Base) -> float:
    """Make searches of a new base do twice as much, of what helps more, until its recall is enough; returns that.

    How many lists hold the neighbors, and how many candidates the codes confuse, depends on the data, which
    no table knows.
    """
    probe = Probe(base)

    def measured(recipe: IndexRecipe) -> float:
        base.recipe = recipe
        return probe.recall()

    recall = probe.recall()
    while recall < FLOOR and (wider := list(_wider(base.recipe))):
        recalls = [measured(recipe) for recipe in wider]
        recall = max(recalls)
        base.recipe = wider[recalls.index(recall)]
    return recall


def _wider(recipe: IndexRecipe) -> Iterator[IndexRecipe]:
    if 0 < recipe.rerank < MOST_CANDIDATES:
        yield replace(recipe, rerank=2 * recipe.rerank, min_candidates=2 * recipe.min_candidates)
    if recipe.nprobe < recipe.nlist:
        yield replace(recipe, nprobe=2 * recipe.nprobe)
