"""One shard's index in memory: an immutable base, a small exact delta, and tombstones.

Readers take one reference to an immutable `State` and never wait. The writer appends a row to the delta and then
publishes a new state: what `lookup` has seen, a later search finds. Compaction builds a new base beside the old
one and swaps the reference; most often it appends the delta to a copy, and when the base has grown or died enough
it trains anew.
"""

import logging
import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.base import Base, FlatBase, Floats, Ints, build_base
from indexer.low_priority import run_low_priority
from indexer.recall import FLOORS, NOISE, Probe, tune
from indexer.recipes import FLAT, IndexRecipe, recipe_for
from indexer.rows.bitmap import Bits, all_alive, flags, packed
from indexer.rows.rows import Entries, Rows
from indexer.rows.tombstones import Tombstones
from indexer.state import State
from indexer.types import Change, Hits, IndexedVector, Neighbor, Query, Tally

log = logging.getLogger(__name__)

NORM_TOLERANCE = 1e-3
LARGEST_K = 16_384
GROWTH = 2


def due(base: int, delta: int, dead: int) -> bool:
    """Whether to compact, given rows of the base, rows of the delta, and dead rows of both.

    Every search reads the whole delta (4,000 rows of 128 floats are 2 MB), and folding it in copies the base: one
    in 250 of its rows, within 1,024 and 8,192. Dead rows only take room: a fifth.
    """
    return delta >= min(max(base // 250, 1024), 8192) or dead >= max(base // 5, 1024)


def outgrown(recipe: IndexRecipe, rows: int, dead: int) -> bool:
    """Whether a base of so many rows, of which some are dead, is to be built and trained anew.

    Appending fits its lists and codes ever less, and keeps the dead: twice the rows they were trained for, or
    a fifth of them dead. A flat base has nothing to train, and one list more than it needs would cost its readers.
    """
    return recipe.name == FLAT or rows - dead >= GROWTH * recipe.notes or dead >= max(rows // 5, 1024)


def fault(vector: NDArray[np.float32], dim: int) -> str | None:
    """Why FAISS must not see this vector (it would accept it and answer wrongly), or None."""
    if vector.shape != (dim,):
        return "dimension"
    with np.errstate(all="ignore"):
        norm = math.sqrt(np.dot(vector, vector))
    if not math.isfinite(norm):
        return "not_finite"
    return "norm" if abs(norm - 1.0) > NORM_TOLERANCE else None


@dataclass(frozen=True, slots=True)
class Figures:
    """Sizes for `due` and for metrics; ``dead`` counts rows of base and delta."""

    base: int
    delta: int
    dead: int
    tombstones: int


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything an index holds at one moment, for a snapshot; the delta without its dead rows."""

    dim: int
    fingerprint: str
    generation: int
    base: Base
    rows: Rows
    base_alive: Bits
    delta: Entries
    tombstones: list[dict[str, int]]


class VectorIndex:
    """The newest vector of every id of one shard, for one model. One writer thread, any number of readers.

    With a folder ``scratch``, the vectors of an IVF base live in a file there and not in memory.
    """

    def __init__(self, dim: int, fingerprint: str, scratch: Path | None = None) -> None:
        self.dim = dim
        self.fingerprint = fingerprint
        self._scratch = scratch
        self._tombstones = Tombstones()
        self._trained_recall = 1.0
        self._writing = threading.Lock()
        self._compacting = threading.Lock()
        nothing = np.empty((0, dim), dtype=np.float32)
        entries = Entries([], [], nothing, np.empty((0, 2), dtype=np.uint64))
        base = FlatBase(recipe_for(0, dim), nothing)
        self._state = State.of(0, base, Rows.of(entries), all_alive(0), entries)

    @classmethod
    def restore(cls, contents: Contents, scratch: Path | None = None) -> Self:
        """The index that gave these contents."""
        index = cls(contents.dim, contents.fingerprint, scratch)
        index._tombstones = Tombstones(contents.tombstones)
        index._state = State.of(contents.generation, contents.base, contents.rows, contents.base_alive, contents.delta)
        return index

    def beside(self) -> Self:
        """An empty index for the same vectors, to be filled while this one answers; see `become`."""
        return type(self)(self.dim, self.fingerprint, self._scratch)

    def become(self, other: Self) -> None:
        """Hold from now on what the other index holds, which must be given up. For readers it is one swap."""
        with self._compacting, self._writing:
            self._state = replace(other._state, generation=self._state.generation + 1)
            self._tombstones = other._tombstones

    def __len__(self) -> int:
        return len(self._state)

    @property
    def generation(self) -> int:
        """How many times the base was replaced."""
        return self._state.generation

    @property
    def recipe(self) -> IndexRecipe:
        """Recipe of the base."""
        return self._state.base.recipe

    @property
    def figures(self) -> Figures:
        """Sizes at this moment."""
        state = self._state
        dead = state.base_dead + state.delta_dead
        return Figures(len(state.rows), len(state.vectors_MD), dead, len(self._tombstones))

    def recall(self) -> float:
        """Recall@10 of the base over a few of its own rows, measured now: the price of some exact searches."""
        state = self._state
        return Probe(state.base, state.base_alive).recall()

    def has_declined(self, measured: float) -> bool:
        """Whether a measured recall calls for training: it is too low, and was better after the last one."""
        return measured < FLOORS[10] and measured < self._trained_recall - NOISE

    def imbalance(self) -> float:
        """How much more a search reads than with lists of equal length: 1.0 is even, and for a flat base."""
        return self._state.base.imbalance()

    def apply(self, changes: Sequence[Change]) -> Tally:
        """Take each change iff it is newer than what is held, tombstones included. A bad one never raises.

        Refused are vectors of another model, and those with a `fault`. A delete holds for every model.
        """
        with self._writing:
            outcomes = [self._take(change) for change in changes]
        refused = [
            (change, outcome)
            for change, outcome in zip(changes, outcomes, strict=True)
            if outcome not in ("applied", "stale")
        ]
        return Tally(outcomes.count("applied"), outcomes.count("stale"), refused)

    def search(
        self,
        queries_ND: Floats,
        k: int,
        exclude: Sequence[str] = (),
        *,
        category: int = 0,
        exclude_author: int = 0,
    ) -> list[list[Neighbor]]:
        """The k nearest ids of each query by cosine, closest first; see `answer` and `indexer.types.Query`.

        Raises:
            ValueError: see `check`.
        """
        queries = [Query(query_D, k, exclude, category, exclude_author) for query_D in queries_ND]
        for query in queries:
            self.check(query)
        return [[Neighbor(*pair) for pair in zip(*answer, strict=True)] for answer in self.answer(queries)]

    def check(self, query: Query) -> None:
        """Raises ValueError if k is out of bounds, a label is negative, or the vector has a `fault`."""
        if not 1 <= query.k <= LARGEST_K:
            raise ValueError(f"k must be positive and at most {LARGEST_K}; got {query.k}")
        if not (0 <= query.category < 2**64 and 0 <= query.exclude_author < 2**64):
            raise ValueError("labels must be numbers of 64 bits")
        if reason := fault(query.vector, self.dim):
            raise ValueError(f"a query must be a unit vector of {self.dim} numbers; refused for its {reason}")

    def answer(self, queries: Sequence[Query]) -> list[Hits]:
        """Answers to queries that were checked, in their order, all of one state.

        Fewer than k hits only if fewer exist. With an IVF base the candidates are approximate, their order is
        not. Queries with the same filters are searched together, which costs each of them less.
        """
        state = self._state
        if len(queries) == 1:
            return _answer_alike(state, queries)
        together = defaultdict(list)
        for place, query in enumerate(queries):
            # A hundred hits are not sought for who wants ten.
            together[query.category, query.exclude_author, _wanted(query).bit_length()].append(place)
        answers: dict[int, Hits] = {}
        for places in together.values():
            alike = [queries[place] for place in places]
            answers.update(zip(places, _answer_alike(state, alike), strict=True))
        return [answers[place] for place in range(len(queries))]

    def lookup(self, id: str) -> IndexedVector | None:  # noqa: A002
        """What is held for an id; None if it was never seen or is deleted."""
        state = self._state
        row = state.find(id)
        return None if row is None else IndexedVector(state.version(row), state.vector(row))

    def lacks(self, other: Self) -> list[str]:
        """Ids that another index holds and this one does not, or only in an older version."""
        state = other._state
        return state.ids(state.newer_than(self._state)[None])[0]

    def compact(self, *, anew: bool = False) -> None:
        """Fold the delta into a new base. Readers and the writer go on.

        The rows are appended to a copy of the base, or if that is `outgrown`, or with ``anew``, all live rows
        go into a base trained on them; unless its recall is worse than that of appending.

        Raises:
            OSError: if the file of vectors cannot be written; nothing has changed then.
        """
        with self._compacting:
            seen = self._state
            kept_delta = seen.live_delta()
            fold = self._trained if anew or outgrown(seen.base.recipe, len(seen.rows), seen.base_dead) else _appended
            kept_base, base = fold(seen, kept_delta, self._scratch)
            rows = seen.rows if len(kept_base) == len(seen.rows) else seen.rows.taken(kept_base)
            rows = rows.extended(seen.entries(kept_delta))
            with self._writing:
                self._state = self._rebased(base, rows, len(seen.vectors_MD), kept_base, kept_delta)

    def snapshot_written(self, kept: int) -> None:
        """The contents are safe on disk, in the newest of ``kept`` snapshots: old tombstones may go."""
        with self._writing:
            self._tombstones.snapshot_written(kept)

    def contents(self) -> Contents:
        """What a snapshot keeps, as of now; later changes do not touch it."""
        with self._writing:
            state, tombstones = self._state, self._tombstones.epochs()
        return Contents(
            dim=self.dim,
            fingerprint=self.fingerprint,
            generation=state.generation,
            base=state.base,
            rows=state.rows,
            base_alive=state.base_alive,
            delta=state.entries(state.live_delta()),
            tombstones=tombstones,
        )

    def _take(self, change: Change) -> str:
        row = self._state.find(change.id)
        if change.version <= self._version(change.id, row):
            return "stale"
        if change.vector is None:
            if row is not None:
                self._state = self._state.without(row)
            self._tombstones.put(change.id, change.version)
            return "applied"
        if change.fingerprint != self.fingerprint:
            return "fingerprint"
        if reason := fault(change.vector, self.dim):
            return reason
        self._upsert(change, row)
        return "applied"

    def _version(self, id_: str, row: int | None) -> float:
        """The version that a change must exceed."""
        held = self._tombstones.version(id_) if row is None else self._state.version(row)
        return -math.inf if held is None else held

    def _upsert(self, change: Change, row: int | None) -> None:
        assert change.vector is not None
        state = self._state
        state.delta.append(change, change.vector / np.linalg.norm(change.vector))
        # The old row dies and the new one appears in one swap.
        self._state = (state if row is None else state.without(row)).grown()
        self._tombstones.remove(change.id)

    def _trained(self, seen: State, kept_delta: Ints, scratch: Path | None) -> tuple[Ints, Base]:
        """All live rows, in a base trained on them; or what `_appended` gives, if its recall is not worse."""
        kept_base = seen.live_base()
        vectors = _Kept(seen.base, kept_base, seen.vectors_MD[kept_delta])
        base = build_base(recipe_for(len(vectors), self.dim), vectors, scratch)
        recall = tune(base).recall()
        if recall < FLOORS[10] and recall < Probe(seen.base, seen.base_alive).recall():
            log.warning("base_refused", extra={"rows": len(vectors), "recall": recall})
            kept_base, base = _appended(seen, kept_delta, scratch)
            # Not to be tried again before there is much more to train on.
            base.recipe = replace(base.recipe, notes=len(base))
            return kept_base, base
        self._trained_recall = recall
        log.info("base_trained", extra={"rows": len(base), "recipe": base.recipe.name, "recall": recall})
        return kept_base, base

    def _rebased(self, base: Base, rows: Rows, folded: int, kept_base: Ints, kept_delta: Ints) -> State:
        """The present state on a base of ``kept_base`` and ``kept_delta``, of the first ``folded`` rows.

        Rows that died meanwhile are dead in the new base; rows that came meanwhile are its delta.
        """
        now = self._state
        base_alive = flags(now.base_alive, len(now.rows))[kept_base]
        delta_alive = flags(now.delta_alive, len(now.vectors_MD))[kept_delta]
        newer = now.live_delta()
        newer = newer[newer >= folded]
        alive = packed(np.concatenate([base_alive, delta_alive]))
        return State.of(now.generation + 1, base, rows, alive, now.entries(newer))


class _Kept:
    """Rows of a base and then of a delta, as `build_base` reads them: a chunk at a time, rising."""

    def __init__(self, base: Base, kept_base: Ints, delta_MD: Floats) -> None:
        self._base = base
        self._kept_base = kept_base
        self._delta_MD = delta_MD

    def __len__(self) -> int:
        return len(self._kept_base) + len(self._delta_MD)

    def __getitem__(self, rows: Any) -> Floats:
        rows_M = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        in_base = int(np.searchsorted(rows_M, len(self._kept_base)))
        base_MD = run_low_priority(self._base.vectors, self._kept_base[rows_M[:in_base]])
        return np.concatenate([base_MD, self._delta_MD[rows_M[in_base:] - len(self._kept_base)]])


def _appended(seen: State, kept_delta: Ints, scratch: Path | None) -> tuple[Ints, Base]:
    """All rows of the base, the dead ones, too, and behind them those of the delta."""
    return np.arange(len(seen.rows)), seen.base.extended(seen.vectors_MD[kept_delta], scratch)


def _answer_alike(state: State, queries: Sequence[Query]) -> list[Hits]:
    """Answers to queries with the same filters, from one search."""
    first = queries[0]
    unit_ND = np.array([query.vector for query in queries], dtype=np.float32)
    faiss.normalize_L2(unit_ND)
    found = state.search(unit_ND, max(map(_wanted, queries)), first.category, first.exclude_author)
    return [_trimmed(answer, query) for answer, query in zip(found, queries, strict=True)]


def _wanted(query: Query) -> int:
    """How many hits hold k of them whichever are excluded: ids are left out behind the search."""
    return query.k + len(query.exclude)


def _trimmed(answer: Hits, query: Query) -> Hits:
    if not query.exclude:
        if len(answer.ids) <= query.k:
            return answer
        return Hits(answer.ids[: query.k], answer.scores[: query.k])
    unwanted = frozenset(query.exclude)
    kept = [place for place, id_ in enumerate(answer.ids) if id_ not in unwanted][: query.k]
    return Hits([answer.ids[place] for place in kept], [answer.scores[place] for place in kept])
