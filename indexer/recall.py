"""Recall of a base's searches, measured against exact ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from indexer.base import Base, Ranked
from indexer.recipes import IndexRecipe
from indexer.rows.bitmap import Bits, live_rows
from indexer.rows.liveness import Selection
from indexer.types import Floats

SAMPLE = 32
FLOORS = {10: 0.96, 100: 0.99}
NOISE = 0.01
MOST_CANDIDATES = 64


class Probe:
    """Searches a base for the neighbors of a fixed sample of its rows, as requests for related notes do.

    A row is not its own neighbor.
    """

    def __init__(self, base: Base, alive: Bits | None = None) -> None:
        """Searches exactly, once, which scores every vector for each row of the sample."""
        live = live_rows(alive, len(base))
        self._rows_N = np.random.default_rng(0).choice(live, min(SAMPLE, len(live)), replace=False)
        self._base = base
        self._selection = Selection(len(live), alive)
        self._queries_ND = base.vectors(self._rows_N)
        self._nearest = self._neighbors(base.search_exact, max(FLOORS))

    def recall(self, k: int = 10) -> float:
        """Recall@k, for a k of `FLOORS`: the share of the nearest rows that a search finds; 1.0 if there are none."""
        nearest = [rows[:k] for rows in self._nearest]
        if not any(nearest):
            return 1.0
        found = self._neighbors(self._base.search, k)
        hits = sum(len(set(rows) & set(true)) for rows, true in zip(found, nearest, strict=True))
        return hits / sum(map(len, nearest))

    def sufficiency(self) -> float:
        """The lowest recall by its floor: 1.0 or more is enough."""
        return min(self.recall(k) / floor for k, floor in FLOORS.items())

    def _neighbors(self, search: Callable[[Floats, int, Selection], Ranked], k: int) -> list[list[int]]:
        if not len(self._rows_N):
            return []
        _, rows_NK = search(self._queries_ND, k + 1, self._selection)
        return [
            [row for row in rows_K if row not in (own, -1)][:k]
            for own, rows_K in zip(self._rows_N.tolist(), rows_NK.tolist(), strict=True)
        ]


def tune(base: Base) -> Probe:
    """Double a new base's probed lists or its re-ranked candidates, whichever helps more, until recall is enough.

    How many lists hold the neighbors, and how many candidates the codes confuse, depends on the data.
    """
    probe = Probe(base)

    def measured(recipe: IndexRecipe) -> float:
        base.recipe = recipe
        return probe.sufficiency()

    reached = probe.sufficiency()
    while reached < 1.0 and (wider := list(_wider(base.recipe))):
        sufficiencies = [measured(recipe) for recipe in wider]
        reached = max(sufficiencies)
        base.recipe = wider[sufficiencies.index(reached)]
    return probe


def _wider(recipe: IndexRecipe) -> Iterator[IndexRecipe]:
    if 0 < recipe.rerank < MOST_CANDIDATES:
        yield replace(recipe, rerank=2 * recipe.rerank, min_candidates=2 * recipe.min_candidates)
    if recipe.nprobe < recipe.nlist:
        yield replace(recipe, nprobe=2 * recipe.nprobe)
