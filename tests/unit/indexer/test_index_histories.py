"""Any history of changes leaves the index equal to a dictionary that is searched exhaustively.

The same test must fail for twins of the index that lack one of its duties; otherwise it would prove nothing.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from indexer.index import VectorIndex
from indexer.snapshot import Snapshots
from indexer.tombstones import Tombstones
from indexer.types import Change

DIM = 4
IDS = "abcdef"
# Hundreds of restarts sync thousands of files: in memory, where the system has such a folder, that is free.
MEMORY = next((place for place in [Path("/dev/shm")] if place.is_dir()), None)  # noqa: S108
POOL = np.random.default_rng(0).normal(size=(12, DIM)).astype(np.float32)
POOL /= np.linalg.norm(POOL, axis=1, keepdims=True)

changes = st.builds(
    lambda id_, version, row: Change("1-0", id_, version, "m", None if row is None else POOL[row]),
    st.sampled_from(IDS),
    st.integers(1, 6),
    st.none() | st.integers(0, len(POOL) - 1),
)
batches = st.lists(changes, max_size=8)
steps = st.lists(batches | st.sampled_from(["compact", "restart", "replay"]), max_size=10)


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


def check(index: VectorIndex, oracle: Oracle) -> None:
    live = oracle.live()
    assert len(index) == len(live)
    for id_ in IDS:
        held = index.lookup(id_)
        assert (held is not None) == (id_ in live)
        if held is not None:
            assert held.version == live[id_].version
            np.testing.assert_allclose(held.vector, live[id_].vector, atol=1e-6)
    for k, exclude in ((1, []), (3, ["a"]), (10, [])):
        for query, found in zip(POOL[:3], index.search(POOL[:3], k, exclude), strict=True):
            cosines = {id_: float(query @ change.vector) for id_, change in live.items() if id_ not in exclude}
            best = sorted(cosines.values(), reverse=True)[:k]
            assert len({neighbor.id for neighbor in found}) == len(found)
            assert [neighbor.score for neighbor in found] == pytest.approx(best, abs=1e-5)
            for neighbor in found:
                assert neighbor.score == pytest.approx(cosines[neighbor.id], abs=1e-5)


def follow(kind: type[VectorIndex], history: list[list[Change] | str]) -> None:
    index, oracle, seen = kind(DIM, "m"), Oracle(), []
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        for step in history:
            if step == "compact":
                index.compact()
            elif step == "restart":
                index = restarted(kind, index, Path(folder))
            elif step == "replay":
                index.apply(seen)
            else:
                index.apply(step)
                oracle.apply(step)
                seen += step
            check(index, oracle)


def restarted(kind: type[VectorIndex], index: VectorIndex, folder: Path) -> VectorIndex:
    snapshots = Snapshots(folder, "m")
    snapshots.save(index.contents(), "1-0")
    loaded, cursor = snapshots.load()
    assert cursor == "1-0"
    return kind.restore(loaded.contents())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_any_history_leaves_what_a_dictionary_would_hold(history):
    follow(VectorIndex, history)


class IgnoresVersions(VectorIndex):
    def _version(self, id_: str, row: int | None) -> float:
        return -1


class ForgetsTombstones(VectorIndex):
    def compact(self, *, anew: bool = False) -> None:
        super().compact(anew=anew)
        self._tombstones = Tombstones()


class LeavesOldRows(VectorIndex):
    def _upsert(self, change: Change, row: int | None) -> None:
        super()._upsert(change, None)


class LosesTheDeltaOnRestart(VectorIndex):
    @classmethod
    def restore(cls, contents, scratch=None):
        nothing = VectorIndex(DIM, "m").contents()
        return super().restore(replace(contents, base=nothing.base, rows=nothing.rows, delta=nothing.delta))


@pytest.mark.parametrize("twin", [IgnoresVersions, ForgetsTombstones, LeavesOldRows, LosesTheDeltaOnRestart])
def test_a_twin_that_neglects_one_duty_is_found_out(twin):
    @settings(max_examples=300, deadline=None, database=None, phases=[Phase.generate], report_multiple_bugs=False)
    @given(steps)
    def history_test(history):
        follow(twin, history)

    with pytest.raises(AssertionError):
        history_test()
