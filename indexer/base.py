"""The immutable part of an index: flat, or IVF-PQ with an exact re-rank.

Legend: N queries, M rows, D dimension, K hits. A search answers ``scores_NK`` (cosines, best first) and
``rows_NK``; a cell without a hit has score -inf.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.bitmap import Bits, flags

# The stubs that come with FAISS know neither keyword parameters nor arrays as arguments.
_faiss: Any = faiss

Floats = NDArray[np.float32]
Hits = tuple[Floats, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class IndexRecipe:
    """How a base of one size is built and searched; see `indexer.factory` for the choice.

    ``name`` is ``flat`` or a string of `faiss.index_factory`. The best
    ``max(min_candidates, rerank * k)`` rows by PQ distance are scored again with their float16 vectors.
    """

    name: str
    nlist: int = 0
    nprobe: int = 0
    rerank: int = 0
    min_candidates: int = 0


class Base(Protocol):
    """Unit vectors that can be searched from many threads at once."""

    recipe: IndexRecipe
    store: NDArray[Any]

    def search(self, queries_ND: Floats, k: int, alive: Bits) -> Hits:
        """The k best rows that are alive; fewer columns than k only if the base has fewer rows."""
        ...

    def vectors(self, rows: NDArray[np.int64]) -> Floats:
        """Stored vectors of these rows, shape (len(rows), D)."""
        ...


def products(queries_ND: Floats, vectors_MD: Floats) -> Floats:
    """Inner products, shape (N, M). Both matrices must be contiguous.

    Not ``@``: NumPy's BLAS starts threads for anything larger than a few rows, and on busy cores waits until
    the scheduler runs them: 20,000 rows took 8 ms instead of 0.2 ms.
    """
    scores_NM = np.empty((len(queries_ND), len(vectors_MD)), dtype=np.float32)
    for query_D, scores_M in zip(queries_ND, scores_NM, strict=True):
        _faiss.fvec_inner_products_ny(
            faiss.swig_ptr(scores_M),
            faiss.swig_ptr(query_D),
            faiss.swig_ptr(vectors_MD),
            *vectors_MD.shape[::-1],
        )
    return scores_NM


def exact(queries_ND: Floats, vectors_MD: Floats, k: int, alive: Bits) -> Hits:
    """Score every row that is alive."""
    rows = len(vectors_MD)
    scores_NM = np.where(flags(alive, rows), products(queries_ND, vectors_MD), np.float32(-np.inf))
    return best(scores_NM, np.broadcast_to(np.arange(rows), scores_NM.shape), k)


def best(scores_NM: Floats, rows_NM: NDArray[np.int64], k: int) -> Hits:
    """The k best columns of each row, best first."""
    if k < scores_NM.shape[1]:
        top_NK = np.argpartition(scores_NM, -k, axis=1)[:, -k:]
        scores_NM = np.take_along_axis(scores_NM, top_NK, axis=1)
        rows_NM = np.take_along_axis(rows_NM, top_NK, axis=1)
    order_NK = np.argsort(-scores_NM, axis=1, kind="stable")
    return np.take_along_axis(scores_NM, order_NK, axis=1), np.take_along_axis(rows_NM, order_NK, axis=1)


class FlatBase:
    """Every vector in float32, every search over all of them."""

    def __init__(self, recipe: IndexRecipe, store_MD: Floats) -> None:
        self.recipe = recipe
        self.store = store_MD

    def search(self, queries_ND: Floats, k: int, alive: Bits) -> Hits:
        """Exact."""
        return exact(queries_ND, self.store, k, alive)

    def vectors(self, rows: NDArray[np.int64]) -> Floats:
        """As they were given."""
        vectors: Floats = self.store[rows]
        return vectors


class IvfBase:
    """A FAISS index that proposes candidates, and a float16 store that puts them in order."""

    def __init__(self, recipe: IndexRecipe, store_MD: NDArray[np.float16], ivf: Any) -> None:
        self.recipe = recipe
        self.store = store_MD
        self.ivf = ivf

    def search(self, queries_ND: Floats, k: int, alive: Bits) -> Hits:
        """Probes more lists, in the end all of them, while a query has fewer than k candidates."""
        candidates = min(max(self.recipe.min_candidates, self.recipe.rerank * k), len(self.store))
        nprobe = self.recipe.nprobe
        while True:
            rows_NC = self._candidates(queries_ND, candidates, nprobe, alive)
            if nprobe >= self.recipe.nlist or (rows_NC >= 0).sum(axis=1).min() >= k:
                break
            nprobe = min(4 * nprobe, self.recipe.nlist)
        reranked = [self._rerank(query_D, rows_C, k) for query_D, rows_C in zip(queries_ND, rows_NC, strict=True)]
        return np.concatenate([scores for scores, _ in reranked]), np.concatenate([rows for _, rows in reranked])

    def vectors(self, rows: NDArray[np.int64]) -> Floats:
        """Rounded to float16: a cosine is off by less than 1e-3."""
        return self.store[rows].astype(np.float32)

    def _candidates(self, queries_ND: Floats, count: int, nprobe: int, alive: Bits) -> NDArray[np.int64]:
        # Parameters travel with the call: `ivf.nprobe = ...` would change the searches of other threads.
        params = _faiss.SearchParametersIVF(nprobe=nprobe, sel=_faiss.IDSelectorBitmap(alive))
        rows_NC: NDArray[np.int64] = self.ivf.search(queries_ND, count, params=params)[1]
        return rows_NC

    def _rerank(self, query_D: Floats, rows_C: NDArray[np.int64], k: int) -> Hits:
        scores_C = np.where(rows_C >= 0, products(query_D[None], self.vectors(rows_C)), np.float32(-np.inf))
        return best(scores_C, rows_C[None], k)
