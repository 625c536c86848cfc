"""Recall of a base and how it is tuned."""

import numpy as np
import pytest

from indexer.base import FlatBase, IvfBase, build_base
from indexer.recall import Probe, tune
from indexer.recipes import IndexRecipe, recipe_for
from indexer.rows.bitmap import packed

ROWS = 12_000


def unit_rows(dim: int) -> np.ndarray:
    vectors = np.random.default_rng(5).normal(size=(ROWS, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def narrow() -> IvfBase:
    """A base that probes one list. Tests must not change it but for its recipe."""
    recipe = IndexRecipe("IVF256,PQ4x4fsr", ROWS, 256, nprobe=1, rerank=8, min_candidates=200)
    base = build_base(recipe, unit_rows(8))
    assert isinstance(base, IvfBase)
    return base


class Misses(IvfBase):
    """Misses the two farthest of the rows that a search should find."""

    def search(self, queries_ND, k, selection):
        scores_NK, rows_NK = self.search_exact(queries_ND, k, selection)
        rows_NK[:, -2:] = -1
        return scores_NK, rows_NK


def test_recall_is_one_minus_the_share_of_neighbors_that_a_search_misses(narrow):
    """A search for 11 finds the row itself and 8 of its 10 neighbors."""
    misses = Misses(narrow.recipe, narrow.ivf, narrow.store)

    assert Probe(misses).recall() == pytest.approx(0.8)
    assert Probe(misses).recall(100) == pytest.approx(0.98)


def test_an_exact_search_has_full_recall_also_over_some_rows():
    vectors = unit_rows(8)
    base = FlatBase(recipe_for(100, 8), vectors)

    assert Probe(base).recall() == 1.0
    assert Probe(base, packed(np.isin(np.arange(ROWS), np.arange(0, ROWS, 7)))).recall() == 1.0


@pytest.mark.parametrize("rows", [0, 1])
def test_without_neighbors_recall_is_full(rows):
    assert Probe(FlatBase(recipe_for(rows, 8), unit_rows(8)[:rows])).recall() == 1.0


def test_lists_are_added_to_the_search_until_its_recall_is_enough(narrow):
    """Without clusters, neighbors lie in many lists."""
    probe = Probe(narrow)

    assert probe.recall() < 0.96
    assert tune(narrow).sufficiency() >= 1.0
    assert narrow.recipe.nprobe > 1
    assert narrow.recipe.nprobe.bit_count() == narrow.recipe.rerank.bit_count() == 1  # doubled
    assert probe.recall() >= 0.96
    assert probe.recall(100) >= 0.99
