"""The immutable part of an index: flat, or IVF-PQ with an exact re-rank.

Legend: N queries, M rows, D dimension, K hits.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.low_priority import run_low_priority
from indexer.recipes import FLAT, SAMPLE_PER_LIST, IndexRecipe
from indexer.rows.bitmap import Flags, flags, live_rows, packed
from indexer.rows.liveness import EXACT_UP_TO, Selection
from indexer.rows.store import Bytes, build_store, empty_store
from indexer.types import Floats, Ints

# The stubs that come with FAISS know neither keyword parameters nor arrays as arguments.
_faiss: Any = faiss

# FAISS asks Python after every block of a product whether Ctrl-C was pressed, and takes the GIL for it: thousands
# of times in a training, while searches wait for a thread of the lowest priority.
_faiss.InterruptCallback.clear_instance()
# Products of so many rows at once stay in the cache: vectors find their lists a tenth faster than with FAISS' 4,096.
_faiss.cvar.distance_compute_blas_query_bs = 1024

# ``scores_NK`` (cosines, best first) and ``rows_NK`` of a search; a cell without a hit has score -inf.
Ranked = tuple[Floats, Ints]

CHUNK_ROWS = 16_384
# If up to this share of the rows is selected, only lists that hold some of them are probed, and at first at most so
# many times the lists of an unfiltered search.
LISTS_CHOSEN_UP_TO = 0.5
FILTERED_PROBES = 4
# Rows in more than this share of the lists that they would be in by chance are spread over them.
SPREAD = 0.8
# So many nearest rows an unfiltered search finds (`indexer.recall.FLOORS`).
SURE = 100
# So many rows a list leave few lists without any (e^-4 of them, by chance).
MANY = 4
COPIED_ROWS = 2_048
# With more columns than so many times k, it is faster to partition them first and to sort only the best.
PARTITION_ABOVE = 4


class Vectors(Protocol):
    """Unit vectors that may be too many for memory; an array of shape (M, D) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """These rows, a slice or ascending numbers, as a float32 matrix."""
        ...


class Base(Protocol):
    """Unit vectors that can be searched from many threads at once."""

    recipe: IndexRecipe

    def __len__(self) -> int: ...

    def search(self, queries_ND: Floats, k: int, selection: Selection) -> Ranked:
        """The k best of the selected rows; fewer columns than k only if the base has fewer rows."""
        ...

    def search_exact(self, queries_ND: Floats, k: int, selection: Selection) -> Ranked:
        """The same by scoring every row, to measure the recall of `search`."""
        ...

    def vectors(self, rows: Ints) -> Floats:
        """Stored vectors of these rows, shape (len(rows), D)."""
        ...

    def extended(self, vectors_MD: Floats, scratch: Path | None) -> "Base":
        """A copy with more rows after these, encoded alike. See `build_base`."""
        ...

    def imbalance(self) -> float:
        """How many times the rows that a search would scan if all lists had one length; 1.0 without lists."""
        ...


def products(queries_ND: Floats, vectors_MD: Floats) -> Floats:
    """Inner products, shape (N, M). Both matrices must be contiguous.

    Not ``@``: NumPy's BLAS starts threads for more than a few rows, and waits on busy cores until the scheduler runs
    them: 20,000 rows took 8 ms instead of 0.2 ms.
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


def search_exact(queries_ND: Floats, vectors_MD: Floats, k: int, alive: Flags | None = None) -> Ranked:
    """Scores every row that is alive; without flags, all are."""
    scores_NM = products(queries_ND, vectors_MD)
    if alive is not None:
        scores_NM[:, ~alive] = -np.inf
    return best(scores_NM, np.broadcast_to(np.arange(len(vectors_MD)), scores_NM.shape), k)


def best(scores_NM: Floats, rows_NM: Ints, k: int) -> Ranked:
    """The k best columns of each row, best first."""
    if scores_NM.shape[1] > PARTITION_ABOVE * k:
        top_NK = np.argpartition(scores_NM, -k, axis=1)[:, -k:]
        scores_NM = np.take_along_axis(scores_NM, top_NK, axis=1)
        rows_NM = np.take_along_axis(rows_NM, top_NK, axis=1)
    queries, columns = scores_NM.shape
    order_NK = np.argsort(-scores_NM, axis=1, kind="stable")[:, :k]
    order_NK += columns * np.arange(queries)[:, None]
    return scores_NM.take(order_NK), rows_NM.take(order_NK)


class FlatBase:
    """Every vector in float32; every search scores all of them."""

    def __init__(self, recipe: IndexRecipe, store_MD: Floats) -> None:
        self.recipe = recipe
        self.store = store_MD

    def __len__(self) -> int:
        return len(self.store)

    def search(self, queries_ND: Floats, k: int, selection: Selection) -> Ranked:
        """Exact."""
        alive = None if selection.bits is None else flags(selection.bits, len(self))
        return search_exact(queries_ND, self.store, k, alive)

    search_exact = search

    def vectors(self, rows: Ints) -> Floats:
        """Exact."""
        vectors: Floats = self.store[rows]
        return vectors

    def extended(self, vectors_MD: Floats, scratch: Path | None) -> "FlatBase":  # noqa: ARG002
        """All vectors are copied."""
        return FlatBase(self.recipe, np.concatenate([self.store, vectors_MD]))

    def imbalance(self) -> float:
        """Always even."""
        return 1.0


class IvfBase:
    """A FAISS index that proposes candidates, and a float16 store that re-ranks them.

    Never add to a store that is mapped from a file: FAISS would end the process.
    """

    def __init__(self, recipe: IndexRecipe, ivf: Any, store: Any) -> None:
        self.recipe = recipe
        self.ivf = ivf
        self.store = store
        self._rows = int(ivf.ntotal)
        self._refined = _faiss.IndexRefine(ivf, store)
        self._codes_MD = (
            faiss.rev_swig_ptr(store.codes.data(), store.codes.size()).view(np.float16).reshape(-1, store.d)
        )

    def __len__(self) -> int:
        return self._rows

    def search(self, queries_ND: Floats, k: int, selection: Selection) -> Ranked:
        """Probes more lists the fewer rows are selected; up to `EXACT_UP_TO` rows are all scored."""
        if selection.size <= EXACT_UP_TO:
            return self._search_selected(queries_ND, k, selection)
        nprobe, lists = self._probed(k, selection)
        while True:
            scores_NK, rows_NK = self._search(queries_ND, k, self._params(k, nprobe, selection))
            if min(rows_NK[:, -1].tolist()) >= 0:
                return scores_NK, rows_NK
            if nprobe == lists:
                break
            nprobe = min(4 * nprobe, lists)
        scores_NK[rows_NK < 0] = -np.inf
        return scores_NK, rows_NK

    def search_exact(self, queries_ND: Floats, k: int, selection: Selection) -> Ranked:
        """Over the float16 vectors."""
        bits = selection.bits
        params = None if bits is None else _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(bits))
        scores_NK, rows_NK = self.store.search(queries_ND, k, params=params)
        scores_NK[rows_NK < 0] = -np.inf
        return scores_NK, rows_NK

    def vectors(self, rows: Ints) -> Floats:
        """Rounded to float16: a cosine is off by less than 1e-3."""
        if not len(rows):
            return np.empty((0, self.store.d), dtype=np.float32)
        vectors: Floats = self._codes_MD[rows].astype(np.float32)  # in a third of the time of FAISS
        return vectors

    def extended(self, vectors_MD: Floats, scratch: Path | None) -> "IvfBase":
        """Index and store are copied."""
        ivf = run_low_priority(_faiss.clone_index, self.ivf)
        run_low_priority(ivf.add, vectors_MD)
        codes_MB = faiss.rev_swig_ptr(self.store.codes.data(), self.store.codes.size()).reshape(len(self), -1)
        pieces = (codes_MB[start : start + COPIED_ROWS] for start in range(0, len(self), COPIED_ROWS))
        return IvfBase(self.recipe, ivf, build_store(chain(pieces, [self.store.sa_encode(vectors_MD)]), scratch))

    def imbalance(self) -> float:
        """As FAISS defines it."""
        return float(self.ivf.invlists.imbalance_factor())

    def _search(self, queries_ND: Floats, k: int, params: Any) -> Ranked:
        """FAISS' Python wrapper, without checks: `VectorIndex.check` has done them."""
        scores_NK = np.empty((len(queries_ND), k), dtype=np.float32)
        rows_NK = np.empty((len(queries_ND), k), dtype=np.int64)
        self._refined.search_c(
            len(queries_ND), faiss.swig_ptr(queries_ND), k, faiss.swig_ptr(scores_NK), faiss.swig_ptr(rows_NK), params
        )
        return scores_NK, rows_NK

    def _search_selected(self, queries_ND: Floats, k: int, selection: Selection) -> Ranked:
        rows_M = selection.rows
        if rows_M is None:
            rows_M = live_rows(selection.bits, len(self))
        scores_NK, places_NK = search_exact(queries_ND, self.vectors(rows_M), k)
        return scores_NK, rows_M[places_NK]

    def _probed(self, k: int, selection: Selection) -> tuple[int, int]:
        """How many lists to probe at first, and how many can be.

        Of many rows, so many lists that they hold as many selected rows as an unfiltered search scans. Of fewer, a
        few times the lists of that search, among those that hold any: they find the nearest rows also where all of
        them lie far from the query. Rows that are spread over the lists as if by chance need less than that.
        """
        recipe, rows_per_selected = self.recipe, len(self) / selection.size
        if selection.size > LISTS_CHOSEN_UP_TO * len(self):
            return min(math.ceil(recipe.nprobe * rows_per_selected), recipe.nlist), recipe.nlist
        holding = self._lists(selection)
        lists = recipe.nlist if holding is None else int(holding.sum())
        wider = min(rows_per_selected, FILTERED_PROBES)
        if holding is None or lists > SPREAD * self._lists_by_chance(selection.size):
            wider = min(rows_per_selected**0.25, wider)
        if holding is None:
            wider = min(max(k * rows_per_selected / SURE, 1.0), wider)
        holding_enough = recipe.rerank * k * lists / selection.size
        return min(math.ceil(max(wider * recipe.nprobe, holding_enough)), lists), lists

    def _lists(self, selection: Selection) -> Flags | None:
        """Flags of the lists that hold selected rows, or rows among which these are; None where nearly all do."""
        if "lists" not in selection.memo:
            within = live_rows(selection.bits, len(self)) if selection.within is None else selection.within
            selection.memo["lists"] = None if self._is_everywhere(within) else self._holding(within)
        lists: Flags | None = selection.memo["lists"]
        return lists

    def _is_everywhere(self, rows: NDArray[Any]) -> bool:
        """Whether there are so many rows, spread over the lists, that few lists hold none; by some of the rows."""
        sample = rows[:: max(1, len(rows) // self.recipe.nlist)]
        found = int(self._holding(sample).sum())
        return len(rows) >= MANY * self.recipe.nlist and found > SPREAD * self._lists_by_chance(len(sample))

    def _lists_by_chance(self, rows: int) -> float:
        return self.recipe.nlist * (1 - math.exp(-rows / self.recipe.nlist))

    def _holding(self, rows: NDArray[Any]) -> Flags:
        lists = np.zeros(self.recipe.nlist, dtype=np.bool_)
        lists[self._list_of_row.take(rows)] = True
        return lists

    @cached_property
    def _list_of_row(self) -> NDArray[Any]:
        list_of_row = np.empty(len(self), dtype=np.min_scalar_type(self.recipe.nlist))
        inverted = self.ivf.invlists
        for number in range(self.recipe.nlist):
            if size := inverted.list_size(number):
                list_of_row[faiss.rev_swig_ptr(inverted.get_ids(number), size)] = number
        return list_of_row

    def _params(self, k: int, nprobe: int, selection: Selection) -> Any:
        """Parameters travel with the call: ``ivf.nprobe = ...`` would change the searches of other threads.

        They are kept with the selection: making them takes a tenth of a search.
        """
        key = k, nprobe, self.recipe.rerank
        params = selection.memo.get(key)
        if params is None:
            options = {} if selection.bits is None else {"sel": _faiss.IDSelectorBitmap(selection.bits)}
            holding = selection.memo.get("lists")
            if holding is not None:
                lists = _faiss.IDSelectorBitmap(packed(holding))
                options["quantizer_params"] = _faiss.SearchParameters(sel=lists)
            params = selection.memo[key] = _faiss.IndexRefineSearchParameters(
                k_factor=max(self.recipe.rerank, self.recipe.min_candidates / k),
                base_index_params=_faiss.SearchParametersIVF(nprobe=nprobe, **options),
            )
        return params


def build_base(recipe: IndexRecipe, vectors_MD: Vectors, scratch: Path | None = None) -> Base:
    """Train and fill a base from unit vectors. The same vectors give the same base, on a CPU.

    With a folder ``scratch``, the re-rank store is mapped from an unnamed file there.

    Raises:
        OSError: if that file cannot be written.
    """
    if recipe.name == FLAT:
        return FlatBase(recipe, vectors_MD[:])
    sample_MD = vectors_MD[_sample(len(vectors_MD), SAMPLE_PER_LIST * recipe.nlist)]
    ivf = _faiss.index_factory(sample_MD.shape[1], recipe.name, faiss.METRIC_INNER_PRODUCT)
    _cluster_on_gpu(ivf)
    run_low_priority(ivf.train, sample_MD)
    encoder = empty_store(sample_MD.shape[1])

    def added() -> Iterator[Bytes]:
        for start in range(0, len(vectors_MD), CHUNK_ROWS):
            chunk_MD = vectors_MD[start : start + CHUNK_ROWS]
            run_low_priority(ivf.add, chunk_MD)
            yield run_low_priority(encoder.sa_encode, chunk_MD)

    return IvfBase(recipe, ivf, build_store(added(), scratch))


def _cluster_on_gpu(ivf: Any) -> None:
    """Let GPUs find the lists, where FAISS was built for them and there is one: for a large shard the k-means is nearly
    all of the training. It gives other lists than a CPU's, as good."""
    if hasattr(_faiss, "StandardGpuResources") and _faiss.get_num_gpus():
        lists = _faiss.extract_index_ivf(ivf)
        lists.clustering_index = _faiss.index_cpu_to_all_gpus(_faiss.IndexFlatL2(lists.d))
        lists.referenced_objects = [lists.clustering_index]  # FAISS does not own it


def write_index(index: Any, write: Callable[[Any], Any]) -> None:
    """Serialize an index into ``write``, and raise what that raises: FAISS' own files may end early unseen."""
    failures: list[BaseException] = []

    def attempt(data: bytes) -> None:
        if not failures:
            try:
                write(data)
            except BaseException as error:
                # Raised while the last bytes are written, it would end the process.
                failures.append(error)

    writer = _faiss.PyCallbackIOWriter(attempt, 1 << 20)
    # The lists of an index are thousands of small writes, and each would take the GIL.
    buffered = _faiss.BufferedIOWriter(writer, 1 << 20)
    _faiss.write_index(index, buffered)
    del buffered  # writes the rest
    if failures:
        raise failures[0]


def _sample(rows: int, count: int) -> Any:
    if count >= rows:
        return slice(None)
    return np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
