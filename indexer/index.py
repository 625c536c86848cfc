"""One shard's index in memory: an immutable base, a small exact delta, and tombstones.

Readers take one reference to an immutable `State` and never wait. The writer appends a row to the delta,
publishes a new state, and only then enters the row in the map from id to row: who finds an id there finds it
in a search, too. Compaction builds a new base beside the old one and swaps the reference.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.base import Base, FlatBase, Floats, IndexRecipe, best, exact
from indexer.bitmap import Bits, all_alive, flags, packed, without
from indexer.factory import build_base, recipe_for
from indexer.types import Change, Held, Neighbor, Tally

NORM_TOLERANCE = 1e-3
SMALLEST_DELTA = 1024


def due(base: int, delta: int, dead: int) -> bool:
    """Whether to compact, given rows of the base, rows of the delta, and dead rows of both.

    Every search reads the whole delta (32,768 rows of 128 floats are 16 MB), and the price of building
    grows with the base: a tenth of the base, within 1,024 and 32,768 rows. Dead rows only take room: a fifth.
    """
    return delta >= min(max(base // 10, 1024), 32_768) or dead >= max(base // 5, 1024)


def fault(vector: NDArray[np.float32], dim: int) -> str | None:
    """Why FAISS must not see this vector (it would accept it and answer wrongly), or None."""
    if vector.shape != (dim,):
        return "dimension"
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(vector))
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


class Rows:
    """Ids and versions by row, and the newest row by id."""

    def __init__(self, ids: Sequence[str] = (), versions: Sequence[int] = ()) -> None:
        self.ids = list(ids)
        self.versions = list(versions)
        self.row_of = {id_: row for row, id_ in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> tuple[list[str], list[int]]:
        """Ids and versions of these rows, in this order."""
        return [self.ids[row] for row in rows], [self.versions[row] for row in rows]


class Delta:
    """Rows that are searched exactly. It only grows: what is published never changes again."""

    def __init__(self, rows: Rows, vectors_MD: Floats) -> None:
        capacity = max(SMALLEST_DELTA, 2 * len(rows))
        self.rows = rows
        self.buffer_MD = np.empty((capacity, vectors_MD.shape[1]), dtype=np.float32)
        self.buffer_MD[: len(rows)] = vectors_MD

    def append(self, change: Change, vector_D: Floats) -> int:
        """Write a row that no reader knows of yet, and return its number."""
        row = len(self.rows)
        if row == len(self.buffer_MD):
            # Readers keep the old buffer through their state.
            self.buffer_MD = np.concatenate([self.buffer_MD, np.empty_like(self.buffer_MD)])
        self.buffer_MD[row] = vector_D
        self.rows.ids.append(change.id)
        self.rows.versions.append(change.version)
        return row


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything an index holds at one moment, for a snapshot; the delta without its dead rows."""

    dim: int
    fingerprint: str
    generation: int
    base: Base
    base_rows: Rows
    base_alive: Bits
    delta_rows: Rows
    delta_vectors: Floats
    tombstones: dict[str, int]


@dataclass(frozen=True, slots=True)
class State:
    """What a reader sees. ``delta_vectors`` is the published part of the delta; bits beyond it are void."""

    generation: int
    base: Base
    base_rows: Rows
    base_alive: Bits
    delta: Delta
    delta_vectors: Floats
    delta_alive: Bits
    dead: int

    @classmethod
    def of(
        cls,
        generation: int,
        base: Base,
        base_rows: Rows,
        base_alive: Bits,
        delta_rows: Rows,
        delta_vectors: Floats,
    ) -> Self:
        """A state whose delta rows are all alive."""
        delta = Delta(delta_rows, delta_vectors)
        rows = len(base_rows)
        return cls(
            generation=generation,
            base=base,
            base_rows=base_rows,
            base_alive=base_alive,
            delta=delta,
            delta_vectors=delta.buffer_MD[: len(delta_rows)],
            delta_alive=all_alive(len(delta.buffer_MD)),
            dead=rows - int(flags(base_alive, rows).sum()),
        )

    def __len__(self) -> int:
        return len(self.base_rows) + len(self.delta_vectors) - self.dead

    def with_row(self, row: int) -> Self:
        """This row of the delta published."""
        alive = self.delta_alive
        if row >= 8 * len(alive):
            alive = np.concatenate([alive, all_alive(8 * len(alive))])
        return replace(self, delta_vectors=self.delta.buffer_MD[: row + 1], delta_alive=alive)

    def without(self, id_: str) -> Self:
        """The row that the id has, if any, dead. The id must not be dead already."""
        if (row := self.delta.rows.row_of.get(id_)) is not None:
            return replace(self, delta_alive=without(self.delta_alive, [row]), dead=self.dead + 1)
        if (row := self.base_rows.row_of.get(id_)) is not None:
            return replace(self, base_alive=without(self.base_alive, [row]), dead=self.dead + 1)
        return self

    def live_base(self) -> NDArray[np.int64]:
        """Numbers of the base's rows that are alive."""
        return np.flatnonzero(flags(self.base_alive, len(self.base_rows)))

    def live_delta(self) -> NDArray[np.int64]:
        """Numbers of the delta's rows that are published and alive."""
        return np.flatnonzero(flags(self.delta_alive, len(self.delta_vectors)))

    def search(self, queries_ND: Floats, k: int) -> list[list[Neighbor]]:
        """The k best rows of base and delta together."""
        base_scores, base_rows = self.base.search(queries_ND, k, self.base_alive)
        delta_scores, delta_rows = exact(queries_ND, self.delta_vectors, k, self.delta_alive)
        # Rows of the delta are numbered behind those of the base.
        scores_NK, rows_NK = best(
            np.concatenate([base_scores, delta_scores], axis=1),
            np.concatenate([base_rows, delta_rows + len(self.base_rows)], axis=1),
            k,
        )
        # Float16 and rounding leave the cosine of equal vectors a little above 1.
        scores_NK = np.minimum(scores_NK, np.float32(1.0))
        return [
            [Neighbor(self._id(row), score) for row, score in zip(rows, scores, strict=True) if score > -math.inf]
            for rows, scores in zip(rows_NK.tolist(), scores_NK.tolist(), strict=True)
        ]

    def _id(self, row: int) -> str:
        first = len(self.base_rows)
        return self.base_rows.ids[row] if row < first else self.delta.rows.ids[row - first]


class VectorIndex:
    """The newest vector of every id of one shard, for one model. One writer thread, any number of readers."""

    def __init__(self, dim: int, fingerprint: str) -> None:
        self.dim = dim
        self.fingerprint = fingerprint
        self._tombstones: dict[str, int] = {}
        self._writing = threading.Lock()
        self._compacting = threading.Lock()
        nothing = np.empty((0, dim), dtype=np.float32)
        base = FlatBase(recipe_for(0, dim), nothing)
        self._state = State.of(0, base, Rows(), all_alive(0), Rows(), nothing)

    @classmethod
    def restore(cls, contents: Contents) -> Self:
        """The index that gave these contents."""
        index = cls(contents.dim, contents.fingerprint)
        index._tombstones = dict(contents.tombstones)
        index._state = State.of(
            contents.generation,
            contents.base,
            contents.base_rows,
            contents.base_alive,
            contents.delta_rows,
            contents.delta_vectors,
        )
        return index

    def __len__(self) -> int:
        return len(self._state)

    @property
    def generation(self) -> int:
        """How many times the base was rebuilt."""
        return self._state.generation

    @property
    def recipe(self) -> IndexRecipe:
        """Recipe of the base."""
        return self._state.base.recipe

    @property
    def figures(self) -> Figures:
        """Sizes at this moment."""
        state = self._state
        return Figures(len(state.base_rows), len(state.delta_vectors), state.dead, len(self._tombstones))

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

    def search(self, queries_ND: Floats, k: int, exclude: Sequence[str] = ()) -> list[list[Neighbor]]:
        """The k nearest ids of each query by cosine, closest first, without those in ``exclude``.

        Fewer than k only if fewer exist. With an IVF base the candidates are approximate, their order is not.

        Raises:
            ValueError: if k < 1, or a query has a `fault`.
        """
        if k < 1:
            raise ValueError(f"k must be positive; got {k}")
        for query_D in queries_ND:
            if reason := fault(query_D, self.dim):
                raise ValueError(f"a query must be a unit vector of {self.dim} numbers; refused for its {reason}")
        if not len(queries_ND):
            return []
        unwanted = frozenset(exclude)
        norms_N = np.linalg.norm(queries_ND, axis=1, keepdims=True)
        unit_ND = np.ascontiguousarray(queries_ND / norms_N, dtype=np.float32)
        # Excluded by id after the search: a row in the map may be newer than the state that is searched.
        hits = self._state.search(unit_ND, k + len(unwanted))
        return [[neighbor for neighbor in found if neighbor.id not in unwanted][:k] for found in hits]

    def lookup(self, id: str) -> Held | None:  # noqa: A002
        """What is held for an id; None if it was never seen or is deleted.

        Tombstones are read before the state: an answer is then right for some moment during the call.
        """
        if id in self._tombstones:
            return None
        state = self._state
        if (row := state.delta.rows.row_of.get(id)) is not None:
            return Held(state.delta.rows.versions[row], state.delta.buffer_MD[row])
        if (row := state.base_rows.row_of.get(id)) is not None:
            return Held(state.base_rows.versions[row], state.base.vectors(np.array([row]))[0])
        return None

    def compact(self) -> None:
        """Fold the delta into a new base with the recipe for its size. Readers and the writer go on."""
        with self._compacting:
            seen = self._state
            kept_base, kept_delta = seen.live_base(), seen.live_delta()
            base_ids, base_versions = seen.base_rows.take(kept_base)
            delta_ids, delta_versions = seen.delta.rows.take(kept_delta)
            rows = Rows(base_ids + delta_ids, base_versions + delta_versions)
            vectors_MD = np.concatenate([seen.base.vectors(kept_base), seen.delta_vectors[kept_delta]])
            base = build_base(recipe_for(len(rows), self.dim), vectors_MD)
            with self._writing:
                self._state = self._rebased(base, rows, len(seen.delta_vectors), kept_base, kept_delta)

    def become(self, other: Self) -> None:
        """Hold from now on what the other index holds, which must be given up. For readers it is one swap."""
        with self._compacting, self._writing:
            self._state = replace(other._state, generation=self._state.generation + 1)
            self._tombstones = other._tombstones

    def contents(self) -> Contents:
        """What a snapshot keeps, as of now; later changes do not touch it."""
        with self._writing:
            state, tombstones = self._state, dict(self._tombstones)
        kept = state.live_delta()
        return Contents(
            dim=self.dim,
            fingerprint=self.fingerprint,
            generation=state.generation,
            base=state.base,
            base_rows=state.base_rows,
            base_alive=state.base_alive,
            delta_rows=Rows(*state.delta.rows.take(kept)),
            delta_vectors=state.delta_vectors[kept],
            tombstones=tombstones,
        )

    def _take(self, change: Change) -> str:
        if change.version <= self._version(change.id):
            return "stale"
        if change.vector is None:
            self._delete(change)
            return "applied"
        if change.fingerprint != self.fingerprint:
            return "fingerprint"
        if reason := fault(change.vector, self.dim):
            return reason
        self._upsert(change, change.vector / np.linalg.norm(change.vector))
        return "applied"

    def _version(self, id_: str) -> float:
        if (version := self._tombstones.get(id_)) is not None:
            return version
        for rows in (self._state.delta.rows, self._state.base_rows):
            if (row := rows.row_of.get(id_)) is not None:
                return rows.versions[row]
        return -math.inf

    def _delete(self, change: Change) -> None:
        if change.id not in self._tombstones:
            self._state = self._state.without(change.id)
        self._tombstones[change.id] = change.version

    def _upsert(self, change: Change, vector_D: Floats) -> None:
        state, deleted = self._state, change.id in self._tombstones
        row = state.delta.append(change, vector_D)
        self._state = (state if deleted else state.without(change.id)).with_row(row)
        # Only now may `lookup` find it, and the tombstone goes last: what lies below it is old.
        state.delta.rows.row_of[change.id] = row
        self._tombstones.pop(change.id, None)

    def _rebased(
        self, base: Base, rows: Rows, folded: int, kept_base: NDArray[np.int64], kept_delta: NDArray[np.int64]
    ) -> State:
        """The present state on a base of ``kept_base`` and ``kept_delta``, of the first ``folded`` rows.

        Rows that died meanwhile are dead in the new base; rows that came meanwhile are its delta.
        """
        now = self._state
        base_alive = flags(now.base_alive, len(now.base_rows))[kept_base]
        delta_alive = flags(now.delta_alive, len(now.delta_vectors))[kept_delta]
        newer = now.live_delta()
        newer = newer[newer >= folded]
        return State.of(
            now.generation + 1,
            base,
            rows,
            packed(np.concatenate([base_alive, delta_alive])),
            Rows(*now.delta.rows.take(newer)),
            now.delta_vectors[newer],
        )
