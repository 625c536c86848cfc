"""Snapshots on disk: what was saved is loaded, and what is damaged never is."""

import contextlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.index import neighbors

from indexer.base import build_base
from indexer.index import VectorIndex
from indexer.recipes import recipe_for
from indexer.rows.bitmap import all_alive
from indexer.rows.packed_fields import PackedFields
from indexer.rows.rows import Entries, Rows
from indexer.snapshot import CURRENT, KEPT, STAGED_POINTER, STAGING, Snapshots
from indexer.types import Change

DIM = 8


def unit_rows(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = unit_rows(12)


def index_of(names: str) -> VectorIndex:
    """An index with a base, a delta and a tombstone ("z")."""
    index = VectorIndex(DIM, "m")
    half = len(names) // 2
    rows = [Change("0-0", name, 1, "m", VECTORS[row]) for row, name in enumerate(names)]
    index.apply([*rows[:half], Change("0-0", "z", 3, "m", None)])
    index.compact()
    index.apply(rows[half:])
    return index


def names_in(index: VectorIndex) -> set[str]:
    return {neighbor.id for neighbor in neighbors(index, VECTORS[:1], 100)[0]}


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path, "m")


def newest(folder: Path) -> Path:
    return folder / (folder / CURRENT).read_text()


def test_nothing_saved_is_nothing_loaded(tmp_path):
    assert Snapshots(tmp_path / "absent", "m").load() is None


def test_what_was_saved_is_loaded(snapshots):
    saved = index_of("abcdef")
    saved.apply([Change("0-1", "a", 2, "m", VECTORS[7]), Change("0-2", "e", 2, "m", None)])

    snapshots.save(saved.contents(), "17-3")
    loaded, cursor = snapshots.load()

    assert cursor == "17-3"
    assert neighbors(loaded, VECTORS, 10) == neighbors(saved, VECTORS, 10)
    assert (len(loaded), loaded.generation, loaded.fingerprint) == (5, 1, "m")
    assert loaded.lookup("a").version == 2
    assert loaded.apply([Change("0-3", "z", 3, "m", VECTORS[0]), Change("0-4", "e", 2, "m", None)]).stale == 2


def test_an_empty_index_is_saved_and_loaded(snapshots):
    snapshots.save(VectorIndex(DIM, "m").contents(), "0-0")

    loaded, cursor = snapshots.load()

    assert (len(loaded), cursor) == (0, "0-0")


def test_a_faiss_base_is_saved_and_loaded(snapshots, tmp_path):
    vectors = unit_rows(10_000)
    saved = VectorIndex(DIM, "m")
    saved.apply([Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(vectors)])
    saved.compact()
    saved.apply([Change("0-1", "5", 2, "m", None)])

    snapshots.save(saved.contents(), "1-0")
    loaded, _ = snapshots.load()

    assert (newest(tmp_path) / "base.faiss").is_file()
    assert loaded.recipe == saved.recipe
    assert loaded.recipe.name == recipe_for(10_000, DIM).name
    assert neighbors(loaded, vectors[:20], 10) == neighbors(saved, vectors[:20], 10)
    assert loaded.lookup("5") is None


def test_the_last_three_are_kept(snapshots, tmp_path):
    for number in range(KEPT + 2):
        snapshots.save(index_of("ab").contents(), f"{number}-0")

    folders = sorted(path.name[:8] for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["00000003", "00000004", "00000005"]
    assert snapshots.load()[1] == "4-0"


def test_the_manifest_says_what_the_snapshot_holds(snapshots, tmp_path):
    snapshots.save(index_of("abcdef").contents(), "9-1")

    manifest = json.loads((newest(tmp_path) / "manifest.json").read_text())

    assert manifest["counts"] == {"base": 3, "delta": 3, "tombstones": 1}
    assert (manifest["cursor"], manifest["generation"], manifest["dim"]) == ("9-1", 1, DIM)
    assert manifest["recipe"]["name"] == "flat"


@pytest.mark.parametrize("other", [("other", 0, 1), ("m", 1, 2), ("m", 0, 2)], ids=["fingerprint", "shard", "shards"])
def test_a_snapshot_for_someone_else_is_refused_and_the_log_says_why(snapshots, tmp_path, other, caplog):
    snapshots.save(index_of("ab").contents(), "1-0")

    with caplog.at_level(logging.WARNING):
        assert Snapshots(tmp_path, *other).load() is None
    assert [record.message for record in caplog.records] == ["snapshot_refused"]


def damages(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "one bit flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "truncated": data[:middle],
        "zeroed": bytes(len(data)),
        "empty": b"",
        "longer": data + b"\0",
    }


@pytest.mark.parametrize("name", ["manifest.json", "ids.msgpack", "delta.npz", "rows.npz", "base.faiss", "store.faiss"])
@pytest.mark.parametrize("damage", damages(b"some data"))
def test_a_damaged_file_is_noticed_and_the_older_snapshot_taken(snapshots, tmp_path, name, damage, caplog):
    snapshots.save(index_of("ab").contents(), "1-0")
    snapshots.save(ivf_index().contents(), "2-0")
    path = newest(tmp_path) / name
    path.write_bytes(damages(path.read_bytes())[damage])

    with caplog.at_level(logging.WARNING):
        loaded, cursor = snapshots.load()

    assert cursor == "1-0"
    assert names_in(loaded) == {"a", "b"}
    assert [record.message for record in caplog.records] == ["snapshot_damaged"]


def ivf_index() -> VectorIndex:
    """Ten vectors on a FAISS base, which the table of recipes would never give to so few."""
    vectors = unit_rows(1000)
    contents = index_of("abcd").contents()
    recipe = recipe_for(10_000, DIM)
    small = replace(recipe, name="IVF4,PQ4x4fsr", notes=1000, nlist=4, nprobe=4)
    base = build_base(small, vectors)
    rows = Rows.of(Entries([str(row) for row in range(1000)], [1] * 1000, vectors, PackedFields([{}] * 1000)))
    return VectorIndex.restore(
        replace(contents, generation=2, base=base, rows=rows, base_alive=all_alive(1000), tombstones=[{}])
    )


def test_a_missing_file_counts_as_damage(snapshots, tmp_path):
    snapshots.save(index_of("ab").contents(), "1-0")
    snapshots.save(index_of("cd").contents(), "2-0")
    (newest(tmp_path) / "rows.npz").unlink()

    assert snapshots.load()[1] == "1-0"


def test_none_is_loaded_when_all_are_damaged(snapshots, tmp_path):
    snapshots.save(index_of("ab").contents(), "1-0")
    (newest(tmp_path) / "ids.msgpack").write_bytes(b"")

    assert snapshots.load() is None


@pytest.mark.parametrize("text", [b"", b"nonsense", b"\xff\x00", b"00000009-0123456789abcdef"])
def test_a_damaged_pointer_leads_to_the_newest_snapshot(snapshots, tmp_path, text):
    snapshots.save(index_of("ab").contents(), "1-0")
    snapshots.save(index_of("cd").contents(), "2-0")
    (tmp_path / CURRENT).write_bytes(text)

    assert snapshots.load()[1] == "2-0"


def test_the_pointer_decides_which_snapshot_is_current(snapshots, tmp_path):
    snapshots.save(index_of("ab").contents(), "1-0")
    first = (tmp_path / CURRENT).read_text()
    snapshots.save(index_of("cd").contents(), "2-0")
    (tmp_path / CURRENT).write_text(first)

    assert snapshots.load()[1] == "1-0"


class _PowerLost(BaseException):
    pass


@pytest.mark.parametrize("survived", range(10))
def test_a_crash_at_any_sync_leaves_a_loadable_snapshot_and_the_next_save_works(
    snapshots, tmp_path, survived, monkeypatch
):
    """The power fails at the nth fsync: of every file that was not synced by then, ten bytes are left."""
    snapshots.save(index_of("ab").contents(), "1-0")
    safe = {path.stat().st_ino for path in tmp_path.rglob("*")}
    syncs = 0

    def fsync(descriptor: int) -> None:
        nonlocal syncs
        if syncs == survived:
            raise _PowerLost
        syncs += 1
        safe.add(os.fstat(descriptor).st_ino)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with contextlib.suppress(_PowerLost):
            snapshots.save(index_of("cd").contents(), "2-0")
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_ino not in safe:
            path.write_bytes(path.read_bytes()[:10])

    found = Snapshots(tmp_path, "m").load()
    assert syncs == survived or found[1] == "2-0"
    assert names_in(found[0]) == {"1-0": {"a", "b"}, "2-0": {"c", "d"}}[found[1]]
    snapshots.save(index_of("ef").contents(), "3-0")
    assert snapshots.load()[1] == "3-0"
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize("leftover", ["folder", "pointer"])
def test_leftovers_of_a_killed_save_are_no_obstacle(snapshots, tmp_path, leftover):
    snapshots.save(index_of("ab").contents(), "1-0")
    if leftover == "folder":
        shutil.copytree(newest(tmp_path), tmp_path / STAGING)
    else:
        (tmp_path / STAGED_POINTER).write_bytes(b"0000")

    assert snapshots.load()[1] == "1-0"
    snapshots.save(index_of("cd").contents(), "2-0")
    assert snapshots.load()[1] == "2-0"


def test_nothing_is_ever_unpickled(snapshots, tmp_path):
    """The check must not depend on a checksum that the attacker writes as well: NumPy is told to refuse."""
    snapshots.save(index_of("ab").contents(), "1-0")

    for name in ("rows.npz", "delta.npz"):
        with np.load(newest(tmp_path) / name, allow_pickle=False) as arrays:
            assert not any(arrays[part].dtype.hasobject for part in arrays.files)


def test_an_unchanged_base_is_linked_and_not_written_again(snapshots, tmp_path):
    index = ivf_index()
    snapshots.save(index.contents(), "1-0")
    first = newest(tmp_path)
    index.apply([Change("0-1", "later", 1, "m", VECTORS[0])])
    snapshots.save(index.contents(), "2-0")
    second = newest(tmp_path)
    index.compact()
    snapshots.save(index.contents(), "3-0")
    third = newest(tmp_path)

    for name in ("rows.npz", "base.faiss", "store.faiss"):
        assert (first / name).samefile(second / name)
        assert not (second / name).samefile(third / name)
    shutil.rmtree(first)
    loaded, cursor = Snapshots(tmp_path, "m").load()
    assert cursor == "3-0"
    assert loaded.lookup("later") is not None


def test_a_link_that_cannot_be_made_leaves_the_older_snapshot_alone(snapshots, tmp_path):
    index = ivf_index()
    snapshots.save(index.contents(), "1-0")
    first = newest(tmp_path)
    (first / "store.faiss").rename(tmp_path / "kept")  # one of three links fails
    snapshots.save(index.contents(), "2-0")
    (tmp_path / "kept").rename(first / "store.faiss")

    assert snapshots.load()[1] == "2-0"
    shutil.rmtree(newest(tmp_path))
    loaded, cursor = Snapshots(tmp_path, "m").load()
    assert (cursor, len(loaded)) == ("1-0", len(index))


def test_the_vectors_of_a_loaded_base_are_read_where_they_lie(snapshots, tmp_path):
    snapshots.save(ivf_index().contents(), "1-0")

    loaded, _ = snapshots.load()

    assert str(newest(tmp_path) / "store.faiss") in Path(f"/proc/{os.getpid()}/maps").read_text()
    for number in range(2, 6):  # the folder it lies in goes, the vectors stay
        snapshots.save(index_of("ab").contents(), f"{number}-0")
    assert loaded.lookup("7").vector == pytest.approx(unit_rows(1000)[7], abs=1e-3)


def test_what_a_killed_process_left_in_the_folder_is_removed(snapshots, tmp_path):
    snapshots.save(index_of("ab").contents(), "1-0")
    (tmp_path / "scratch-abc").write_bytes(b"vectors")

    snapshots.load()

    assert not (tmp_path / "scratch-abc").exists()
