"""The immutable part of an index: flat, or IVF-PQ with an exact re-rank.

Legend: N queries, M rows, D dimension, K hits. A search answers ``scores_NK`` (cosines, best first) and
``rows_NK``; a cell without a hit has score -inf.
"""

import math
import mmap
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.low_priority import rest, run_low_priority
from indexer.recipes import FLAT, SAMPLE_PER_LIST, IndexRecipe
from indexer.rows.bitmap import Bits, flags

# The stubs that come with FAISS know neither keyword parameters nor arrays as arguments.
_faiss: Any = faiss

# FAISS asks Python after every block of a product whether Ctrl-C was pressed, and takes Python's lock for it: thousands
# of times in a training, from searches that then waited for a thread that gives way to everybody.
_faiss.InterruptCallback.clear_instance()
# Products of so many rows at once stay in the cache: vectors find their lists a tenth faster than with FAISS' 4,096.
_faiss.cvar.distance_compute_blas_query_bs = 1024

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Ranked = tuple[Floats, Ints]
Codes = NDArray[np.uint8]

CHUNK = 16_384
PIECE = 2_048
# So many rows are scored one by one about as fast as the lists are probed that would hold k of them.
SCORED_ONE_BY_ONE = 8_192
# How many times k there must be before it is faster to part the best from the others and sort them alone.
WORTH_PARTING = 4
SCRATCH_PREFIX = "scratch-"


class Choice(NamedTuple):
    """Which rows of a base may be found: ``size`` of them, those whose bit is 1; without bits, all.

    ``rows`` are their numbers, where they are at hand.
    """

    size: int
    bits: Bits | None = None
    rows: Ints | None = None


class Vectors(Protocol):
    """Unit vectors that may be too many to hold at once; an array of shape (M, D) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """These rows, a slice or rising numbers, as a float32 matrix."""
        ...


class Base(Protocol):
    """Unit vectors that can be searched from many threads at once."""

    recipe: IndexRecipe

    def __len__(self) -> int: ...

    def search(self, queries_ND: Floats, k: int, choice: Choice) -> Ranked:
        """The k best of the chosen rows; fewer columns than k only if the base has fewer rows."""
        ...

    def exact(self, queries_ND: Floats, k: int, choice: Choice) -> Ranked:
        """The same by scoring every row: what a search is measured against."""
        ...

    def vectors(self, rows: Ints) -> Floats:
        """Stored vectors of these rows, shape (len(rows), D)."""
        ...

    def extended(self, vectors_MD: Floats, scratch: Path | None) -> "Base":
        """A base with more rows behind those of this one, coded as these were. See `build_base`."""
        ...

    def imbalance(self) -> float:
        """How much more a search reads than if all lists had the same length; 1.0 without lists."""
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


def exact(queries_ND: Floats, vectors_MD: Floats, k: int, alive: NDArray[np.bool_] | None = None) -> Ranked:
    """Score every row that is alive; without flags, all are."""
    scores_NM = products(queries_ND, vectors_MD)
    if alive is not None:
        scores_NM[:, ~alive] = -np.inf
    return best(scores_NM, np.broadcast_to(np.arange(len(vectors_MD)), scores_NM.shape), k)


def best(scores_NM: Floats, rows_NM: Ints, k: int) -> Ranked:
    """The k best columns of each row, best first."""
    if scores_NM.shape[1] > WORTH_PARTING * k:
        top_NK = np.argpartition(scores_NM, -k, axis=1)[:, -k:]
        scores_NM = np.take_along_axis(scores_NM, top_NK, axis=1)
        rows_NM = np.take_along_axis(rows_NM, top_NK, axis=1)
    queries, columns = scores_NM.shape
    order_NK = np.argsort(-scores_NM, axis=1, kind="stable")[:, :k]
    order_NK += columns * np.arange(queries)[:, None]
    return scores_NM.take(order_NK), rows_NM.take(order_NK)


class FlatBase:
    """Every vector in float32, every search over all of them."""

    def __init__(self, recipe: IndexRecipe, store_MD: Floats) -> None:
        self.recipe = recipe
        self.store = store_MD

    def __len__(self) -> int:
        return len(self.store)

    def search(self, queries_ND: Floats, k: int, choice: Choice) -> Ranked:
        """Exact."""
        alive = None if choice.bits is None else flags(choice.bits, len(self))
        return exact(queries_ND, self.store, k, alive)

    exact = search

    def vectors(self, rows: Ints) -> Floats:
        """As they were given."""
        vectors: Floats = self.store[rows]
        return vectors

    def extended(self, vectors_MD: Floats, scratch: Path | None) -> "FlatBase":  # noqa: ARG002
        """Copied."""
        return FlatBase(self.recipe, np.concatenate([self.store, vectors_MD]))

    def imbalance(self) -> float:
        """Always even."""
        return 1.0


class IvfBase:
    """A FAISS index that proposes candidates, and a float16 store that puts them in order.

    The store may be mapped from a file, and must then never be added to: FAISS would end the process.
    """

    def __init__(self, recipe: IndexRecipe, ivf: Any, store: Any) -> None:
        self.recipe = recipe
        self.ivf = ivf
        self.store = store
        self._rows = int(ivf.ntotal)
        self._refined = _faiss.IndexRefine(ivf, store)
        self._parameters: tuple[tuple[int, int, int], Bits | None, Any] | None = None

    def __len__(self) -> int:
        return self._rows

    def search(self, queries_ND: Floats, k: int, choice: Choice) -> Ranked:
        """Probes as many more lists as fewer rows are chosen; few are scored one by one, which is exact."""
        if choice.size <= SCORED_ONE_BY_ONE:
            return self._scored(queries_ND, k, choice)
        nlist = self.recipe.nlist
        nprobe = min(math.ceil(self.recipe.nprobe * len(self) / choice.size), nlist)
        while True:
            scores_NK, rows_NK = self._search(queries_ND, k, self._params(k, nprobe, choice.bits))
            if min(rows_NK[:, -1].tolist()) >= 0:
                return scores_NK, rows_NK
            if nprobe == nlist:
                break
            nprobe = min(4 * nprobe, nlist)
        scores_NK[rows_NK < 0] = -np.inf
        return scores_NK, rows_NK

    def exact(self, queries_ND: Floats, k: int, choice: Choice) -> Ranked:
        """Over the float16 vectors."""
        params = None if choice.bits is None else _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(choice.bits))
        scores_NK, rows_NK = self.store.search(queries_ND, k, params=params)
        scores_NK[rows_NK < 0] = -np.inf
        return scores_NK, rows_NK

    def vectors(self, rows: Ints) -> Floats:
        """Rounded to float16: a cosine is off by less than 1e-3."""
        if not len(rows):
            return np.empty((0, self.store.d), dtype=np.float32)
        vectors: Floats = self.store.reconstruct_batch(rows)
        return vectors

    def extended(self, vectors_MD: Floats, scratch: Path | None) -> "IvfBase":
        """Index and store copied."""
        ivf = run_low_priority(_faiss.clone_index, self.ivf)
        run_low_priority(ivf.add, vectors_MD)
        codes_MB = faiss.rev_swig_ptr(self.store.codes.data(), self.store.codes.size()).reshape(len(self), -1)
        pieces = (codes_MB[start : start + PIECE] for start in range(0, len(self), PIECE))
        return IvfBase(self.recipe, ivf, stored(chain(pieces, [self.store.sa_encode(vectors_MD)]), scratch))

    def imbalance(self) -> float:
        """As FAISS defines it."""
        return float(self.ivf.invlists.imbalance_factor())

    def _search(self, queries_ND: Floats, k: int, params: Any) -> Ranked:
        """What FAISS' wrapper does, without the checks of what `VectorIndex.check` has checked."""
        scores_NK = np.empty((len(queries_ND), k), dtype=np.float32)
        rows_NK = np.empty((len(queries_ND), k), dtype=np.int64)
        self._refined.search_c(
            len(queries_ND), faiss.swig_ptr(queries_ND), k, faiss.swig_ptr(scores_NK), faiss.swig_ptr(rows_NK), params
        )
        return scores_NK, rows_NK

    def _scored(self, queries_ND: Floats, k: int, choice: Choice) -> Ranked:
        rows_M = choice.rows
        if rows_M is None:
            rows_M = live_rows(choice.bits, len(self))
        scores_NK, places_NK = exact(queries_ND, self.vectors(rows_M), k)
        return scores_NK, rows_M[places_NK]

    def _params(self, k: int, nprobe: int, bits: Bits | None) -> Any:
        """Parameters travel with the call: ``ivf.nprobe = ...`` would change the searches of other threads.

        Those of the last call are kept: making them takes a tenth of a search.
        """
        last, key = self._parameters, (k, nprobe, self.recipe.rerank)
        if last and last[0] == key and last[1] is bits:
            return last[2]
        selector = {} if bits is None else {"sel": _faiss.IDSelectorBitmap(bits)}
        params = _faiss.IndexRefineSearchParameters(
            k_factor=max(self.recipe.rerank, self.recipe.min_candidates / k),
            base_index_params=_faiss.SearchParametersIVF(nprobe=nprobe, **selector),
        )
        self._parameters = key, bits, params
        return params


def live_rows(bits: Bits | None, rows: int) -> Ints:
    """Numbers of the rows whose bit is 1; without bits, of all."""
    return np.arange(rows) if bits is None else np.flatnonzero(flags(bits, rows))


def build_base(recipe: IndexRecipe, vectors_MD: Vectors, scratch: Path | None = None) -> Base:
    """Train and fill a base from unit vectors. The same vectors give the same base.

    The re-rank store is then mapped from a file without a name in the folder ``scratch``, if there is one.

    Raises:
        OSError: if that file cannot be written.
    """
    if recipe.name == FLAT:
        return FlatBase(recipe, vectors_MD[:])
    sample_MD = vectors_MD[_sample(len(vectors_MD), SAMPLE_PER_LIST * recipe.nlist)]
    ivf = _faiss.index_factory(sample_MD.shape[1], recipe.name, faiss.METRIC_INNER_PRODUCT)
    run_low_priority(ivf.train, sample_MD)
    coder = _store(sample_MD.shape[1])

    def added() -> Iterator[Codes]:
        for start in range(0, len(vectors_MD), CHUNK):
            chunk_MD = vectors_MD[start : start + CHUNK]
            run_low_priority(ivf.add, chunk_MD)
            yield run_low_priority(coder.sa_encode, chunk_MD)

    return IvfBase(recipe, ivf, stored(added(), scratch))


def stored(pieces: Iterable[Codes], folder: Path | None) -> Any:
    """A store of vectors in float16, of which each piece holds some as bytes, shape (rows, 2 D).

    With a folder, it is mapped from a file there that vanishes with the process: the system may drop its pages. It is
    Python that maps: FAISS unmaps hundreds of MB with Python's lock held, 10 ms in which no search goes on.
    """
    if folder is None:
        return _viewed(np.concatenate(list(pieces)))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=SCRATCH_PREFIX) as file:
        for codes_MB in pieces:
            start_s = time.perf_counter()
            file.write(codes_MB.data)
            rest(start_s)
        file.flush()
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _viewed(np.frombuffer(mapping, dtype=np.uint8).reshape(-1, codes_MB.shape[1]))


def _viewed(codes_MB: Codes) -> Any:
    """A store that reads its vectors where they lie."""
    store = _store(codes_MB.shape[1] // 2)
    nobody = _faiss.MaybeOwnedVectorUInt8().owner
    store.codes = _faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(codes_MB), codes_MB.size, nobody)
    store.ntotal = len(codes_MB)
    store.referenced_objects = [codes_MB]
    return store


def mapped(path: Path) -> Any:
    """A store read from a file that stays where it is."""
    return _faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def write_index(index: Any, write: Callable[[Any], Any]) -> None:
    """Serialize an index into ``write``. What that raises is raised: FAISS' own files may end early unseen."""
    failures: list[BaseException] = []

    def attempt(data: bytes) -> None:
        if not failures:
            try:
                write(data)
            except BaseException as error:
                # Raised while the last bytes are written, it would end the process.
                failures.append(error)

    writer = _faiss.PyCallbackIOWriter(attempt, 1 << 20)
    # Its lists are thousands of small writes, and each would take Python's lock.
    gathered = _faiss.BufferedIOWriter(writer, 1 << 20)
    _faiss.write_index(index, gathered)
    del gathered  # writes the rest
    if failures:
        raise failures[0]


def _store(dim: int) -> Any:
    return _faiss.IndexScalarQuantizer(dim, _faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _sample(rows: int, count: int) -> Any:
    if count >= rows:
        return slice(None)
    return np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
