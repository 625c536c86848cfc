"""An index on an IVF base against an exhaustive search."""

import faiss
import numpy as np
import pytest
from support.index import neighbors

from indexer.base import Selection, build_base
from indexer.index import VectorIndex
from indexer.recipes import recipe_for
from indexer.types import Change

DIM = 64
ROWS = 20_000


def clustered(rows: int, seed: int) -> np.ndarray:
    """Unit vectors around 200 centers, which are the same for every seed."""
    centers = np.random.default_rng(0).normal(size=(200, DIM))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    vectors = centers[rng.integers(200, size=rows)] + 0.6 * rng.normal(size=(rows, DIM)) / np.sqrt(DIM)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS, seed=1)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(100, seed=2)


@pytest.fixture(scope="module")
def big(vectors) -> VectorIndex:
    """An index of 20,000 notes on an IVF base. Tests must not change it."""
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(vectors)])
    index.compact()
    return index


def exact_rows(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :k]


def test_the_lists_are_found_on_a_gpu_where_faiss_has_one(monkeypatch, vectors, queries):
    """There is none here: an index on the CPU takes its place."""
    recipe, asked = recipe_for(ROWS, DIM), []

    def moved(index):
        assert isinstance(index, faiss.IndexFlatL2)
        asked.append(index)
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", moved, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    build_base(recipe, vectors)
    assert not asked

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    base = build_base(recipe, vectors)

    [index] = asked
    assert index.ntotal == recipe.nlist  # the k-means left its centers there
    found = base.search(queries, 10, Selection(ROWS))[1]
    exact = exact_rows(queries, vectors, 10)
    assert np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, exact, strict=True)]) > 0.9


def test_the_same_vectors_build_the_same_base(vectors, queries):
    recipe = recipe_for(ROWS, DIM)
    first, second = build_base(recipe, vectors), build_base(recipe, vectors)

    np.testing.assert_array_equal(
        first.search(queries, 10, Selection(ROWS))[1], second.search(queries, 10, Selection(ROWS))[1]
    )


@pytest.mark.parametrize("k", [10, 100])
def test_recall_of_the_ivf_recipe_is_at_least_95_percent(big, vectors, queries, k):
    exact = exact_rows(queries, vectors, k)

    found = neighbors(big, queries, k)

    assert big.recipe.name.startswith("IVF")
    hits = sum(len({int(n.id) for n in own} & set(rows)) for own, rows in zip(found, exact.tolist(), strict=True))
    assert hits / exact.size >= 0.95


def test_scores_of_the_ivf_recipe_are_cosines_in_order(big, vectors, queries):
    for query, found in zip(queries, neighbors(big, queries, 20), strict=True):
        scores = [neighbor.score for neighbor in found]

        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([float(query @ vectors[int(n.id)]) for n in found], abs=1e-3)


def test_a_query_finds_all_k_though_its_whole_neighborhood_is_deleted(vectors, queries):
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(vectors)])
    index.compact()
    by_closeness = exact_rows(queries[:1], vectors, ROWS)[0]
    index.apply([Change("0-1", str(row), 2, "m", None) for row in by_closeness[:-50]])

    [found] = neighbors(index, queries[:1], 40)
    [all_that_is_left] = neighbors(index, queries[:1], 100)

    left = {str(row) for row in by_closeness[-50:]}
    assert len(found) == 40
    assert {neighbor.id for neighbor in all_that_is_left} == left


def test_more_lists_are_probed_until_k_rows_are_found(vectors, queries):
    """Sixteen of 512 lists hold some 600 of the 20,000 rows."""
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(vectors)])
    index.compact()
    index.apply([Change("0-1", str(row), 2, "m", None) for row in range(8_000)])
    alive = {str(row) for row in range(8_000, ROWS)}

    for k in (3_000, 16_000):
        [found] = neighbors(index, queries[:1], k)
        ids = {neighbor.id for neighbor in found}
        assert len(found) == len(ids) == min(k, len(alive))
        assert ids <= alive


def test_a_row_overwritten_in_an_ivf_base_is_found_once_and_with_its_new_vector(vectors, queries):
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(vectors)])
    index.compact()
    index.apply([Change("0-1", "7", 2, "m", queries[0])])

    [found] = neighbors(index, vectors[7][None], 100)
    [[nearest]] = neighbors(index, queries[:1], 1)

    assert found[0].id != "7"
    assert len({neighbor.id for neighbor in found}) == 100
    assert nearest.id == "7"
    assert nearest.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("excluded", [100, 1000])
def test_many_excluded_ids_leave_the_next_ones(big, vectors, queries, excluded):
    by_closeness = exact_rows(queries[:1], vectors, excluded + 100)[0]

    [found] = neighbors(big, queries[:1], 10, exclude=[str(row) for row in by_closeness[:excluded]])

    assert len(found) == 10
    assert {int(neighbor.id) for neighbor in found} <= set(by_closeness[excluded:].tolist())


def test_lookup_after_compaction_is_exact_to_half_precision(big, vectors):
    assert big.lookup("123").vector == pytest.approx(vectors[123], abs=1e-3)
