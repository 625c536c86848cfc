"""One shard's index in memory: an immutable base, a small exact delta, and tombstones.

Readers take one reference to an immutable `State` and never wait. The writer appends a row to the delta and then
publishes a new state: a search finds every id that an earlier `lookup` found. Compaction builds a new base while
searches use the old one, then swaps the reference; it appends the delta to a copy of the base, or trains a new one
when the base has outgrown its training.
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

from indexer.base import Base, FlatBase, build_base
from indexer.low_priority import run_low_priority
from indexer.recall import FLOORS, NOISE, Probe, tune
from indexer.recipes import FLAT, IndexRecipe, recipe_for
from indexer.rows.bitmap import Bits, all_alive, flags, packed
from indexer.rows.packed_fields import PackedFields
from indexer.rows.rows import Entries, Rows
from indexer.rows.tombstones import Tombstones
from indexer.state import State
from indexer.types import Change, Floats, Hits, IndexedVector, Ints, Query, Tally

log = logging.getLogger(__name__)

NORM_TOLERANCE = 1e-3
LARGEST_K = 16_384
# Up to so many excluded ids are searched for and passed over, which asks for no look at their rows.
MOST_PASSED_OVER = 128
MOST_SEARCHED_BEYOND = 1024
GROWTH = 2


def compaction_due(base: int, delta: int, dead: int) -> bool:
    """Whether to compact, given rows of the base, rows of the delta, and dead rows of both.

    Every search scores the whole delta (4,000 rows of 128 floats are 2 MB), and compaction copies the base: so when
    the delta has one in 250 of the base's rows, within 1,024 and 8,192. Dead rows only take memory: a fifth.
    """
    return delta >= min(max(base // 250, 1024), 8192) or dead >= max(base // 5, 1024)


def outgrown(recipe: IndexRecipe, rows: int, dead: int) -> bool:
    """Whether to train a new base for so many rows, of which some are dead, instead of appending to it.

    Appended rows fit its lists and codes less and less, and dead ones stay: at twice the rows it was trained for, or
    with a fifth of them dead. A flat base has nothing to train, and its dead rows would slow every search.
    """
    return recipe.name == FLAT or rows - dead >= GROWTH * recipe.notes or dead >= max(rows // 5, 1024)


def fault(vector: Floats, dim: int) -> str | None:
    """Why FAISS must not get this vector (it would accept it and return wrong hits), or None."""
    if vector.shape != (dim,):
        return "dimension"
    with np.errstate(all="ignore"):
        norm = math.sqrt(np.dot(vector, vector))
    if not math.isfinite(norm):
        return "not_finite"
    return "norm" if abs(norm - 1.0) > NORM_TOLERANCE else None


@dataclass(frozen=True, slots=True)
class Figures:
    """Sizes for `compaction_due` and for metrics; ``dead`` counts rows of base and delta."""

    base: int
    delta: int
    dead: int
    tombstones: int


@dataclass(frozen=True, slots=True)
class Contents:
    """All of an index at one moment, for a snapshot; the delta without its dead rows."""

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

    With a folder ``scratch``, the vectors of an IVF base are mapped from a file there.
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
        entries = Entries([], [], nothing, PackedFields())
        base = FlatBase(recipe_for(0, dim), nothing)
        self._state = State.of(0, base, Rows.of(entries), all_alive(0), entries)

    @classmethod
    def restore(cls, contents: Contents, scratch: Path | None = None) -> Self:
        """The index of these contents."""
        index = cls(contents.dim, contents.fingerprint, scratch)
        index._tombstones = Tombstones(contents.tombstones)
        index._state = State.of(contents.generation, contents.base, contents.rows, contents.base_alive, contents.delta)
        return index

    def empty_like(self) -> Self:
        """An empty index for the same model, to be filled while this one is searched; see `replace_with`."""
        return type(self)(self.dim, self.fingerprint, self._scratch)

    def replace_with(self, other: Self) -> None:
        """Replace all rows with those of another index, which must not be used again. Readers see one swap."""
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
        return Figures(len(state.rows), len(state.vectors_MD), state.dead, len(self._tombstones))

    def recall(self) -> float:
        """Recall@10 of the base over a sample of its own rows, measured now by some exact searches."""
        state = self._state
        return Probe(state.base, state.base_live.alive).recall()

    def has_declined(self, measured: float) -> bool:
        """Whether a measured recall calls for training: it is too low, and was better after the last training."""
        return measured < FLOORS[10] and measured < self._trained_recall - NOISE

    def imbalance(self) -> float:
        """See `Base.imbalance`."""
        return self._state.base.imbalance()

    def apply(self, changes: Sequence[Change]) -> Tally:
        """Apply each change iff it is newer than the row or tombstone of its id. A bad one never raises.

        Vectors of another model, and those with a `fault`, are refused. A delete holds for every model. Fields of the
        version that the index holds take the place of its own.
        """
        with self._writing:
            outcomes = [self._apply(change) for change in changes]
        refused = [
            (change, outcome)
            for change, outcome in zip(changes, outcomes, strict=True)
            if outcome not in ("applied", "stale")
        ]
        return Tally(outcomes.count("applied"), outcomes.count("stale"), refused)

    def check(self, query: Query) -> None:
        """Raises ValueError if k is out of bounds, or the vector has a `fault`."""
        if not 1 <= query.k <= LARGEST_K:
            raise ValueError(f"k must be positive and at most {LARGEST_K}; got {query.k}")
        if reason := fault(query.vector, self.dim):
            raise ValueError(f"a query must be a unit vector of {self.dim} numbers; refused for its {reason}")

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Hits of each query, which must have passed `check`; all of one state.

        Fewer than k hits only if fewer exist. With an IVF base the candidates are approximate, their order is
        not. Queries with the same filter are searched together, which costs each of them less.
        """
        state = self._state
        if len(queries) == 1:
            return _search_alike(state, queries)
        groups = defaultdict(list)
        for place, query in enumerate(queries):
            # Queries for ten hits must not pay for a hundred.
            alone = place if len(query.exclude) > MOST_PASSED_OVER else None
            groups[query.filter, _hits_needed(query).bit_length(), alone].append(place)
        hits: dict[int, Hits] = {}
        for places in groups.values():
            alike = [queries[place] for place in places]
            hits.update(zip(places, _search_alike(state, alike), strict=True))
        return [hits[place] for place in range(len(queries))]

    def lookup(self, id: str) -> IndexedVector | None:  # noqa: A002
        """The vector of an id; None if it was never indexed or is deleted."""
        state = self._state
        row = state.find(id)
        return None if row is None else IndexedVector(state.version(row), state.vector(row))

    def missing(self, other: Self) -> list[str]:
        """Ids of the other index that this one does not hold, or only in an older version."""
        state = other._state
        return state.ids(state.newer_than(self._state)[None])[0]

    def compact(self, *, retrain: bool = False) -> None:
        """Build a new base that includes the delta. Readers and the writer go on.

        The rows are appended to a copy of the base. If that is `outgrown`, or with ``retrain``, a new base is trained
        on all live rows, and used unless its recall is too low and lower than the old one's.

        Raises:
            OSError: if the file of vectors cannot be written; nothing has changed then.
        """
        with self._compacting:
            old = self._state
            kept_delta = old.live_delta()
            build = self._train if retrain or outgrown(old.base.recipe, len(old.rows), old.base_live.dead) else _append
            kept_base, base = build(old, kept_delta, self._scratch)
            if len(kept_base) < len(old.rows):
                rows = old.rows.taken(kept_base)
            elif old.base_live.dead:  # its dead rows stay, but not the names that only they have
                rows = old.rows.with_fields_of(old.live_base())
            else:
                rows = old.rows
            rows = rows.extended(old.entries(kept_delta))
            with self._writing:
                self._state = self._rebased(base, rows, len(old.vectors_MD), kept_base, kept_delta)

    def snapshot_written(self, kept: int) -> None:
        """Drop the tombstones that no restart needs, after the newest of ``kept`` snapshots was written."""
        with self._writing:
            self._tombstones.snapshot_written(kept)

    def contents(self) -> Contents:
        """A copy for a snapshot, which later changes do not touch."""
        with self._writing:
            state, tombstones = self._state, self._tombstones.epochs()
        return Contents(
            dim=self.dim,
            fingerprint=self.fingerprint,
            generation=state.generation,
            base=state.base,
            rows=state.rows,
            base_alive=state.base_live.alive,
            delta=state.entries(state.live_delta()),
            tombstones=tombstones,
        )

    def _apply(self, change: Change) -> str:
        row = self._state.find(change.id)
        if change.keeps_vector:
            if row is None or change.version != self._state.version(row):
                return "stale"
            self._upsert(replace(change, vector=self._state.vector(row)), row)
            return "applied"
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
        version = self._tombstones.version(id_) if row is None else self._state.version(row)
        return -math.inf if version is None else version

    def _upsert(self, change: Change, row: int | None) -> None:
        assert change.vector is not None
        state = self._state
        state.delta.append(change, change.vector / np.linalg.norm(change.vector))
        # The old row dies and the new one appears in one swap.
        self._state = (state if row is None else state.without(row)).with_next_row()
        self._tombstones.remove(change.id)

    def _train(self, old: State, kept_delta: Ints, scratch: Path | None) -> tuple[Ints, Base]:
        """All live rows, in a base trained on them; or see `_append`, if the new recall is too low and worse."""
        kept_base = old.live_base()
        vectors = _LiveVectors(old.base, kept_base, old.vectors_MD[kept_delta])
        base = build_base(recipe_for(len(vectors), self.dim), vectors, scratch)
        recall = tune(base).recall()
        if recall < FLOORS[10] and recall < Probe(old.base, old.base_live.alive).recall():
            log.warning("base_refused", extra={"rows": len(vectors), "recall": recall})
            kept_base, base = _append(old, kept_delta, scratch)
            # Not to be tried again before there is much more to train on.
            base.recipe = replace(base.recipe, notes=len(base))
            return kept_base, base
        self._trained_recall = recall
        log.info("base_trained", extra={"rows": len(base), "recipe": base.recipe.name, "recall": recall})
        return kept_base, base

    def _rebased(self, base: Base, rows: Rows, compacted: int, kept_base: Ints, kept_delta: Ints) -> State:
        """The present state on a base of ``kept_base`` and ``kept_delta``, from the delta's first ``compacted`` rows.

        Rows that died meanwhile are dead in the new base; rows that were added meanwhile are its delta.
        """
        now = self._state
        base_alive = flags(now.base_live.alive, len(now.rows))[kept_base]
        delta_alive = flags(now.delta_live.alive, len(now.vectors_MD))[kept_delta]
        newer = now.live_delta()
        newer = newer[newer >= compacted]
        alive = packed(np.concatenate([base_alive, delta_alive]))
        return State.of(now.generation + 1, base, rows, alive, now.entries(newer))


class _LiveVectors:
    """Vectors of a base's and then of a delta's live rows, as `build_base` reads them: in chunks, ascending."""

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


def _append(old: State, kept_delta: Ints, scratch: Path | None) -> tuple[Ints, Base]:
    """All rows of the base, dead ones too, and then the delta's."""
    return np.arange(len(old.rows)), old.base.extended(old.vectors_MD[kept_delta], scratch)


def _search_alike(state: State, queries: Sequence[Query]) -> list[Hits]:
    """Hits of queries with the same filter, from one search; with many excluded ids a query comes alone."""
    if len(queries[0].exclude) > MOST_PASSED_OVER:
        state = state.hiding(queries[0].exclude)
    unit_ND = np.array([query.vector for query in queries], dtype=np.float32)
    faiss.normalize_L2(unit_ND)
    hits_N = state.search(unit_ND, max(map(_hits_needed, queries)), queries[0].filter)
    return [_trimmed(hits, query) for hits, query in zip(hits_N, queries, strict=True)]


def _hits_needed(query: Query) -> int:
    """How many hits leave k of them, even if all excluded ids are among them.

    Of many, which are hidden, only so many that the search looks beyond the lists of the nearest.
    """
    return query.k + min(len(query.exclude), MOST_SEARCHED_BEYOND)


def _trimmed(hits: Hits, query: Query) -> Hits:
    """The first k hits that are not excluded."""
    if not query.exclude:
        if len(hits.ids) <= query.k:
            return hits
        return Hits(hits.ids[: query.k], hits.scores[: query.k])
    excluded = frozenset(query.exclude)
    kept = [place for place, id_ in enumerate(hits.ids) if id_ not in excluded][: query.k]
    return Hits([hits.ids[place] for place in kept], [hits.scores[place] for place in kept])
