"""Any history of changes leaves the index equal to a dictionary that is searched and filtered exhaustively.

The same test must fail for twins of the index that lack one of its duties; otherwise it would prove nothing.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.filters import expressions, fields, holds
from support.index import neighbors

from indexer.filters.expression import Exists, Expression, Not, OneOf
from indexer.index import MOST_PASSED_OVER, VectorIndex
from indexer.rows.packed_fields import PackedFields
from indexer.rows.tombstones import Tombstones
from indexer.snapshot import KEPT, Snapshots
from indexer.types import Change, Fields

# INDEX_HISTORIES=20000 tries as many as a release should.
HISTORIES = int(os.environ.get("INDEX_HISTORIES", "200"))
DIM = 4
IDS = "abcdef"
# Hundreds of restarts sync thousands of files: in memory, where the system has such a folder, that is free.
MEMORY = next((place for place in [Path("/dev/shm")] if place.is_dir()), None)  # noqa: S108
POOL = np.random.default_rng(0).normal(size=(12, DIM)).astype(np.float32)
POOL /= np.linalg.norm(POOL, axis=1, keepdims=True)

changes = st.builds(
    lambda id_, version, row, *rest: Change("1-0", id_, version, "m", None if row is None else POOL[row], *rest),
    st.sampled_from(IDS),
    st.integers(1, 6),
    st.none() | st.integers(0, len(POOL) - 1),
    st.none(),
    fields(),
    st.sampled_from([False, False, True]),
)
batches = st.lists(changes, max_size=8)
steps = st.lists(batches | st.sampled_from(["compact", "append", "restart", "replay"]), max_size=10)


class Oracle:
    """The newest change of each id; among equal versions the first."""

    def __init__(self) -> None:
        self.newest: dict[str, Change] = {}

    def apply(self, batch: list[Change]) -> None:
        for change in batch:
            if change.id not in self.newest or change.version > self.newest[change.id].version:
                self.newest[change.id] = change

    def live(self) -> dict[str, Change]:
        return {id_: change for id_, change in self.newest.items() if change.vector is not None}


FILTERS = (None, Not(Exists("city")))


def check(index: VectorIndex, oracle: Oracle, filters: Sequence[Expression | None] = FILTERS) -> None:
    live = oracle.live()
    assert len(index) == len(live)
    for id_ in IDS:
        indexed = index.lookup(id_)
        assert (indexed is not None) == (id_ in live)
        if indexed is not None:
            assert indexed.version == live[id_].version
            np.testing.assert_allclose(indexed.vector, live[id_].vector, atol=1e-6)
    many = ["a", "c", *(f"never-{number}" for number in range(MOST_PASSED_OVER))]
    asked = [(1, [], None), (3, ["a"], None), (3, many, None), *((10, [], filter_) for filter_ in filters)]
    for k, exclude, filter_ in asked:
        passing = {
            id_: change
            for id_, change in live.items()
            if id_ not in exclude and not change.hidden and (filter_ is None or holds(filter_, change.fields))
        }
        for query, found in zip(POOL[:3], neighbors(index, POOL[:3], k, exclude, filter_), strict=True):
            cosines = {id_: float(query @ change.vector) for id_, change in passing.items()}
            best = sorted(cosines.values(), reverse=True)[:k]
            assert len({neighbor.id for neighbor in found}) == len(found)
            assert [neighbor.score for neighbor in found] == pytest.approx(best, abs=1e-5)
            for neighbor in found:
                assert neighbor.score == pytest.approx(cosines[neighbor.id], abs=1e-5)


def follow(
    kind: type[VectorIndex], history: list[list[Change] | str], filters: Sequence[Expression | None] = FILTERS
) -> None:
    index, oracle, seen = kind(DIM, "m"), Oracle(), []
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        for step in history:
            if step == "compact":
                index.compact()
            elif step == "append":
                append(index)
            elif step == "restart":
                index = restarted(kind, index, Path(folder))
            elif step == "replay":
                index.apply(seen)
            else:
                index.apply(step)
                oracle.apply(step)
                seen += step
            check(index, oracle, filters)


def append(index: VectorIndex) -> None:
    """What compaction does to a base that is large: its rows stay, the dead ones, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexer.index.outgrown", lambda *_: False)
        index.compact()


def restarted(kind: type[VectorIndex], index: VectorIndex, folder: Path) -> VectorIndex:
    snapshots = Snapshots(folder, "m")
    snapshots.save(index.contents(), "1-0")
    loaded, cursor = snapshots.load()
    assert cursor == "1-0"
    return kind.restore(loaded.contents())


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, expressions())
def test_any_history_leaves_what_a_dictionary_would_hold(history, filter_):
    follow(VectorIndex, history, [None, filter_])


class IgnoresVersions(VectorIndex):
    def _version(self, id_: str, row: int | None) -> float:
        return -1


class ForgetsTombstones(VectorIndex):
    def compact(self, *, retrain: bool = False) -> None:
        super().compact(retrain=retrain)
        self._tombstones = Tombstones()


class LeavesOldRows(VectorIndex):
    def _upsert(self, change: Change, row: int | None) -> None:
        super()._upsert(change, None)


class LosesTheDeltaOnRestart(VectorIndex):
    @classmethod
    def restore(cls, contents, scratch=None):
        nothing = VectorIndex(DIM, "m").contents()
        return super().restore(replace(contents, base=nothing.base, rows=nothing.rows, delta=nothing.delta))


class ShowsTheHidden(VectorIndex):
    def _upsert(self, change: Change, row: int | None) -> None:
        super()._upsert(replace(change, hidden=False), row)


class ForgetsTheHiddenOnRestart(VectorIndex):
    @classmethod
    def restore(cls, contents, scratch=None):
        fields = PackedFields({"city": fields["city"]} for fields in contents.delta.fields)
        return super().restore(replace(contents, delta=replace(contents.delta, fields=fields)))


class KeepsTheOldFields(VectorIndex):
    def _upsert(self, change: Change, row: int | None) -> None:
        fields = change.fields if row is None else self._state.delta.fields[row - len(self._state.rows)]
        super()._upsert(replace(change, fields=fields), row)


class CompactsWithoutFields(VectorIndex):
    def compact(self, *, retrain: bool = False) -> None:
        self._state.delta.fields.packed[:] = PackedFields([{}]).packed * len(self._state.delta.fields)
        super().compact(retrain=retrain)


def written(version: int, row: int | None, city: str | None = None, *, hidden: bool = False) -> list[Change]:
    fields = {} if city is None else {"city": city}
    vector = None if row is None else POOL[row]
    return [Change("1-0", "a", version, "m", vector, fields=fields, hidden=hidden)]


# Written down and not left to chance: a random search finds each of them most of the time.
@pytest.mark.parametrize(
    ("twin", "history"),
    [
        (IgnoresVersions, [written(2, 0), written(1, 1)]),
        (ForgetsTombstones, [written(1, 0), written(2, None), "compact", written(1, 0)]),
        (LeavesOldRows, [written(1, 0), written(2, 1)]),
        (LosesTheDeltaOnRestart, [written(1, 0), "restart"]),
        (ShowsTheHidden, [written(1, 0, hidden=True)]),
        (ForgetsTheHiddenOnRestart, [written(1, 0, "a", hidden=True), "restart"]),
        (KeepsTheOldFields, [written(1, 0, "a"), written(2, 0, "b")]),
        (CompactsWithoutFields, [written(1, 0, "a"), "compact"]),
        (CompactsWithoutFields, [written(1, 0, "a"), "append"]),
    ],
)
def test_a_twin_that_neglects_one_duty_is_found_out(twin, history):
    filters = [None, OneOf("city", ("a",)), Not(Exists("city"))]
    follow(VectorIndex, history, filters)
    with pytest.raises(AssertionError):
        follow(twin, history, filters)


class Life:
    """An indexer's life: it follows a stream in order, takes snapshots, and goes on from one of the last three."""

    def __init__(self, kind: type[VectorIndex], folder: Path) -> None:
        self.kind = kind
        self.snapshots = Snapshots(folder, "m")
        self.folder = folder
        self.index = kind(DIM, "m")
        self.oracle = Oracle()
        self.stream: list[Change] = []
        self.rebuilt_at = 0

    def write(self, id_: str, row: int | None, fields: Fields | None = None, hidden: bool = False) -> None:
        """The next version of an id; without a row, its deletion."""
        known = self.oracle.newest.get(id_)
        version = known.version + 1 if known else 1
        vector = None if row is None else POOL[row]
        change = Change(f"{len(self.stream)}-0", id_, version, "m", vector, fields=fields or {}, hidden=hidden)
        self.stream.append(change)
        self.oracle.apply([change])
        self.index.apply([change])

    def snapshot(self) -> None:
        self.snapshots.save(self.index.contents(), str(len(self.stream)))
        self.index.snapshot_written(KEPT)

    def replay(self) -> None:
        """From as far back as anybody ever reads again; nothing may come back even for a moment."""
        oldest = self.snapshots.oldest_cursor()
        full = len(list(self.folder.glob("[0-9]*-*"))) == KEPT
        first = int(oldest) if oldest and full else 0
        for change in self.stream[max(first, self.rebuilt_at) :]:
            self.index.apply([change])
            check(self.index, self.oracle)

    def restart(self) -> None:
        """Without a snapshot, from the store, which the oracle stands for."""
        loaded = self.snapshots.load()
        if loaded is None:
            self.index = self.kind(DIM, "m")
            self.index.apply(list(self.oracle.live().values()))
            self.rebuilt_at = len(self.stream)
            return
        index, cursor = loaded
        self.index = self.kind.restore(index.contents())
        self.index.apply(self.stream[int(cursor) :])

    def fall_back(self) -> None:
        """The newest snapshot is damaged."""
        if names := sorted(self.folder.glob("[0-9]*-*")):
            (names[-1] / "manifest.json").write_bytes(b"")
        self.restart()
        if names:
            shutil.rmtree(names[-1])


acts = st.one_of(
    st.tuples(st.sampled_from(IDS), st.none() | st.integers(0, len(POOL) - 1), fields(), st.booleans()),
    st.sampled_from(["snapshot", "replay", "restart", "fall_back", "compact", "append"]),
)


def live(kind: type[VectorIndex], history: list[tuple[str, int | None] | str]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        life = Life(kind, Path(folder))
        for act in history:
            if isinstance(act, tuple):
                life.write(*act)
            elif act == "compact":
                life.index.compact()
            elif act == "append":
                append(life.index)
            else:
                getattr(life, act)()
            check(life.index, life.oracle)


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(acts, max_size=25))
def test_no_life_of_an_indexer_forgets_a_delete_or_a_write(history):
    """Though tombstones go with the snapshots that no reader goes back behind."""
    live(VectorIndex, history)


class ForgetsTombstonesAtOnce(VectorIndex):
    def snapshot_written(self, kept: int) -> None:
        self._tombstones = Tombstones()


@pytest.mark.parametrize(
    ("twin", "history"),
    [
        (ForgetsTombstonesAtOnce, [("a", 0), ("a", None), "snapshot", "replay"]),
        (IgnoresVersions, [("a", 0), ("a", 1), "replay"]),
        (LosesTheDeltaOnRestart, [("a", 0), "snapshot", "restart"]),
    ],
)
def test_a_twin_that_is_careless_with_its_past_is_found_out(twin, history):
    live(VectorIndex, history)
    with pytest.raises(AssertionError):
        live(twin, history)


def test_tombstones_do_not_add_up():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        life = Life(VectorIndex, Path(folder))
        for round_ in range(6):
            life.write(IDS[round_], 0)
            life.write(IDS[round_], None)
            life.snapshot()

        assert life.index.figures.tombstones == KEPT
        life.replay()
        life.restart()
        check(life.index, life.oracle)
