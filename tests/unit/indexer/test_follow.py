"""The follower between a stream, an index and a folder of snapshots."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.index import neighbors

from indexer.filters.expression import Expression, Not, OneOf
from indexer.follow import Follower, backoff_s
from indexer.index import VectorIndex
from indexer.memory import MemoryChangeStream
from indexer.shards import shard_of
from indexer.snapshot import Snapshots
from indexer.types import Change, Tally

DIM = 8
VECTORS = np.random.default_rng(0).normal(size=(64, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; far longer than it can take."""
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.005)


@pytest.fixture
def stream() -> MemoryChangeStream:
    return MemoryChangeStream()


class Shard:
    """An index that follows the stream; `restart` is what a process does when it starts again."""

    def __init__(
        self, stream: MemoryChangeStream, folder: Path, shard: int = 0, shards: int = 1, every_s: float = 60.0
    ):
        self.snapshots = Snapshots(folder / str(shard), "m", shard, shards)
        self.index, cursor = self.snapshots.load() or (VectorIndex(DIM, "m"), None)
        self.tallies: list[Tally] = []
        self.failed: list[str] = []
        self.follower = Follower(
            self.index,
            stream,
            self.snapshots,
            cursor,
            snapshot_every_s=every_s,
            on_batch=lambda _, tally: self.tallies.append(tally),
            on_failure=self.failed.append,
        )
        self.follower.start()

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self.follower.stop()

    def reaches(self, stream: MemoryChangeStream) -> None:
        eventually(lambda: self.follower.cursor == stream.end)


def test_changes_are_applied_and_counted_and_the_cursor_moves(stream, tmp_path):
    with Shard(stream, tmp_path) as shard:
        stream.add("a", 1, VECTORS[0])
        stream.add("a", 1, VECTORS[1])
        stream.add("b", 1, np.zeros(DIM, dtype=np.float32))
        stream.add("c", 1, VECTORS[2])
        shard.reaches(stream)

        assert shard.index.lookup("a").vector == pytest.approx(VECTORS[0], abs=1e-6)
        assert shard.index.lookup("c") is not None
        eventually(lambda: sum(tally.applied for tally in shard.tallies) == 2)
    assert sum(tally.stale for tally in shard.tallies) == 1
    assert [reason for tally in shard.tallies for _, reason in tally.refused] == ["norm"]
    assert stream.refused == [("b", "norm")]


def test_vectors_of_another_model_are_passed_over_and_its_deletes_are_not(stream, tmp_path):
    with Shard(stream, tmp_path) as shard:
        eventually(shard.follower.caught_up.is_set)
        stream.entries.append(Change("1", "a", 2, "m", VECTORS[0]))
        stream.entries.append(Change("2", "a", 3, "another", VECTORS[1]))
        stream.entries.append(Change("3", "b", 1, "m", VECTORS[1]))
        stream.entries.append(Change("4", "b", 2, "another", None))
        shard.reaches(stream)
        eventually(lambda: sum(tally.applied for tally in shard.tallies) == 3)
        assert (shard.index.lookup("a").version, shard.index.lookup("b")) == (2, None)
    assert stream.refused == [] == [refused for tally in shard.tallies for refused in tally.refused]


def test_without_a_snapshot_the_index_comes_from_the_store_and_not_from_the_stream(stream, tmp_path):
    """The stream may have been cut long ago."""
    stream.add("a", 1, VECTORS[0])
    stream.add("b", 1, VECTORS[1])
    stream.add("a", 2, VECTORS[2])
    stream.add("b", 2, None)
    stream.cut = 3

    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
        eventually(shard.follower.caught_up.is_set)
        assert shard.index.lookup("a").version == 2
        assert shard.index.lookup("b") is None
        stream.add("c", 1, VECTORS[3])
        shard.reaches(stream)
        assert len(shard.index) == 2


def test_fields_and_hidden_rows_outlive_rebuilds_and_restarts_and_a_patch_replaces_them(stream, tmp_path):
    in_kyoto, elsewhere = OneOf("city", ("Kyoto",)), Not(OneOf("city", ("Kyoto",)))

    def found(shard: Shard, filter_: Expression | None = None) -> set[str]:
        return {near.id for near in neighbors(shard.index, VECTORS[:1], 9, (), filter_)[0]}

    stream.add("a", 1, VECTORS[0], {"city": "Kyoto"})
    stream.add("b", 1, VECTORS[1], {"city": "Kyoto"}, hidden=True)
    stream.add("c", 1, VECTORS[2])
    for _ in ("from the store", "from a snapshot"):
        with Shard(stream, tmp_path) as shard:
            shard.reaches(stream)
            eventually(shard.follower.caught_up.is_set)
            assert (found(shard), found(shard, in_kyoto), found(shard, elsewhere)) == ({"a", "c"}, {"a"}, {"c"})
            assert (len(shard.index), shard.index.lookup("b").version) == (3, 1)
            shard.index.compact()

    stream.add("a", 2, VECTORS[0], {"city": "Osaka"}, hidden=True)
    stream.add("b", 2, VECTORS[1], {"city": "Kyoto"})
    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
        assert (found(shard), found(shard, in_kyoto), found(shard, elsewhere)) == ({"b", "c"}, {"b"}, {"c"})
        assert shard.index.missing(shard.index) == []
        assert set(VectorIndex(DIM, "m").missing(shard.index)) == {"a", "b", "c"}


@pytest.mark.parametrize("gap", ["cut behind the cursor", "made anew"])
def test_a_gap_in_the_stream_leads_to_a_rebuild_from_the_store(stream, tmp_path, gap, caplog):
    for row in range(10):
        stream.add(f"n{row}", 1, VECTORS[row])
    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
    if gap == "made anew":
        stream.entries.clear()
    stream.add("n0", 2, None)
    stream.add("n1", 2, VECTORS[20])
    stream.add("m", 1, VECTORS[21])
    stream.cut = len(stream.entries) if gap != "made anew" else 0
    survivors = {change.id for change in stream.entries} - {"n0"}

    with caplog.at_level(logging.WARNING), Shard(stream, tmp_path) as shard:
        eventually(lambda: shard.follower.rebuilds == 1)
        assert {found.id for found in neighbors(shard.index, VECTORS[:1], 100)[0]} == survivors
        assert shard.index.lookup("n1").version == 2
        assert shard.index.generation == 2  # the first was from nothing
        stream.add("later", 1, VECTORS[22])
        shard.reaches(stream)
        assert shard.index.lookup("later") is not None
    assert [record.message for record in caplog.records] == ["stream_gap"]
    with Shard(stream, tmp_path) as shard:
        assert len(shard.index) == len(survivors) + 1
        assert shard.follower.rebuilds == 0


def test_what_changes_while_the_store_is_read_is_not_missed(stream, tmp_path):
    """The cursor is taken before: what came meanwhile is read again behind it."""
    stream.add("a", 1, VECTORS[0])
    stream.add("b", 1, VECTORS[1])
    everything = stream.everything

    def slowly() -> tuple[str, Iterator[Change]]:
        cursor, found = everything()
        stream.add("a", 2, None)
        stream.add("c", 1, VECTORS[2])
        return cursor, found

    stream.everything = slowly

    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
        assert (shard.index.lookup("a"), len(shard.index)) == (None, 2)


def test_a_store_out_of_reach_during_a_rebuild_is_asked_again(stream, tmp_path):
    stream.add("a", 1, VECTORS[0])
    everything = stream.everything
    stream.everything = lambda: (_ for _ in ()).throw(ConnectionError("gone"))

    with Shard(stream, tmp_path) as shard:
        time.sleep(0.05)
        assert not shard.follower.caught_up.is_set()
        stream.everything = everything
        shard.reaches(stream)
        assert shard.index.lookup("a") is not None


def test_the_stream_is_told_to_keep_what_the_oldest_snapshot_needs(stream, tmp_path):
    with Shard(stream, tmp_path, every_s=0.01) as shard:
        for row in range(6):
            stream.add(f"n{row}", 1, VECTORS[row])
            eventually(lambda: shard.snapshots.load() is not None and shard.snapshots.load()[1] == stream.end)
        eventually(lambda: stream.kept[-1] == "4")
        assert shard.snapshots.oldest_cursor() == "4"
    assert stream.kept == sorted(stream.kept, key=lambda cursor: int(cursor.partition("-")[0]))


def test_each_shard_takes_its_own_ids_and_together_they_take_all(stream, tmp_path):
    for row, vector in enumerate(VECTORS):
        stream.add(f"n{row}", 1, vector)

    with (
        Shard(stream, tmp_path, 0, 3) as first,
        Shard(stream, tmp_path, 1, 3) as second,
        Shard(stream, tmp_path, 2, 3) as third,
    ):
        shards = [first, second, third]
        for shard in shards:
            shard.reaches(stream)

        for row in range(len(VECTORS)):
            holders = [number for number, shard in enumerate(shards) if shard.index.lookup(f"n{row}")]
            assert holders == [shard_of(f"n{row}", 3)]


def test_stop_takes_a_last_snapshot_and_a_restart_goes_on_behind_it(stream, tmp_path):
    stream.add("a", 1, VECTORS[0])
    stream.add("b", 1, VECTORS[1])
    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
    stream.add("b", 2, None)
    stream.entries[0] = Change("1", "never-read-again", 1, "m", VECTORS[0])

    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
        assert shard.index.lookup("a") is not None
        assert shard.index.lookup("b") is None
        assert shard.index.lookup("never-read-again") is None


def test_no_snapshot_is_written_when_nothing_changed(stream, tmp_path):
    with Shard(stream, tmp_path):
        eventually(lambda: stream.reads > 1)

    assert list(tmp_path.rglob("CURRENT")) == []


def test_snapshots_are_taken_while_changes_come(stream, tmp_path):
    with Shard(stream, tmp_path, every_s=0.01) as shard:
        stream.add("a", 1, VECTORS[0])
        eventually(lambda: shard.snapshots.load() is not None)


def test_a_snapshot_ages_only_while_changes_wait_for_the_next(stream, tmp_path):
    stream.add("a", 1, VECTORS[0])
    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
        waits_s = shard.follower.unsaved_s
        eventually(lambda: shard.follower.unsaved_s > waits_s > 0)
    assert shard.follower.unsaved_s == 0  # the last one, at the end, holds all

    with Shard(stream, tmp_path, every_s=0.01) as again:
        assert again.follower.unsaved_s == 0
        stream.add("b", 1, VECTORS[1])
        again.reaches(stream)
        eventually(lambda: again.follower.unsaved_s == 0)


def test_a_process_killed_without_a_last_snapshot_replays_from_the_older_one(stream, tmp_path):
    stream.add("a", 1, VECTORS[0])
    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
    stream.add("a", 2, VECTORS[1])
    stream.add("c", 1, VECTORS[2])
    killed = VectorIndex.restore(shard.snapshots.load()[0].contents())
    killed.apply(stream.entries[1:2])

    with Shard(stream, tmp_path) as shard:
        shard.reaches(stream)
        assert shard.index.lookup("a").version == 2
        assert len(shard.index) == 2


def test_the_end_of_the_stream_is_reported_once_it_was_read(stream, tmp_path):
    for row in range(1200):
        stream.add(f"n{row}", 1, VECTORS[row % 64])

    with Shard(stream, tmp_path) as shard:
        assert shard.follower.caught_up.wait(30)
        assert len(shard.index) == 1200


def test_the_index_is_compacted_in_the_background_when_due(stream, tmp_path):
    with Shard(stream, tmp_path) as shard:
        for row in range(1100):
            stream.add(f"n{row}", 1, VECTORS[row % 64])
        shard.reaches(stream)
        eventually(lambda: shard.index.generation == 2)  # the first was from nothing
        assert len(shard.index) == 1100


def test_recall_is_probed_and_a_decline_leads_to_training(stream, tmp_path, caplog, monkeypatch):
    trained = []
    monkeypatch.setattr(VectorIndex, "recall", lambda _: 0.99 if trained else 0.5)
    monkeypatch.setattr(VectorIndex, "compact", lambda _, retrain=False: trained.append(retrain))

    with caplog.at_level(logging.WARNING), Shard(stream, tmp_path) as shard:
        eventually(lambda: shard.follower.recall == 0.99)

    assert trained == [True]
    assert [record.message for record in caplog.records] == ["recall_declined"]


def test_a_failing_stream_is_survived_and_nothing_is_skipped(stream, tmp_path, caplog):
    stream.failures = [ConnectionError("gone"), ValueError("strange")]

    with caplog.at_level(logging.WARNING), Shard(stream, tmp_path) as shard:
        eventually(lambda: stream.failures == [])
        stream.add("a", 1, VECTORS[0])
        shard.reaches(stream)
        assert shard.index.lookup("a") is not None
    assert [record.message for record in caplog.records] == ["follow_failed", "follow_failed"]


def test_a_folder_that_cannot_be_written_stops_neither_changes_nor_the_end(stream, tmp_path, caplog):
    (tmp_path / "0").write_text("a file where the folder should be")
    with caplog.at_level(logging.ERROR), Shard(stream, tmp_path, every_s=0.01) as shard:
        stream.add("a", 1, VECTORS[0])
        eventually(lambda: any(record.message == "chore_failed" for record in caplog.records))
        stream.add("b", 1, VECTORS[1])
        shard.reaches(stream)
        assert shard.index.lookup("b") is not None
        assert shard.failed[0] == "snapshot"
    assert caplog.records[-1].message == "last_snapshot_failed"


def test_waiting_doubles_from_a_tenth_of_a_second_up_to_five():
    waits = [backoff_s(failures) for failures in range(1, 2000)]

    assert waits[:3] == pytest.approx([0.1, 0.2, 0.4])
    assert waits == sorted(waits)
    assert max(waits) == 5.0


def test_a_snapshot_that_was_being_written_when_the_gap_was_seen_does_not_stay(stream, tmp_path, monkeypatch):
    writing, go_on = threading.Event(), threading.Event()
    save = Snapshots.save

    def slowly(snapshots, contents, cursor):
        writing.set()
        assert go_on.wait(30)
        save(snapshots, contents, cursor)

    monkeypatch.setattr(Snapshots, "save", slowly)
    with Shard(stream, tmp_path, every_s=0.01) as shard:
        for row in range(3):
            stream.add(f"old{row}", 1, VECTORS[row])
        assert writing.wait(30)
        shard.reaches(stream)
        stream.entries.clear()
        stream.add("new", 1, VECTORS[9])
        threading.Timer(0.2, go_on.set).start()
        eventually(lambda: shard.follower.rebuilds == 2)
        eventually(lambda: shard.follower.cursor == stream.end)

    found, cursor = Snapshots(tmp_path / "0", "m").load()
    assert (cursor, len(found)) == (stream.end, 1)
    assert Snapshots(tmp_path / "0", "m").oldest_cursor() == stream.end
