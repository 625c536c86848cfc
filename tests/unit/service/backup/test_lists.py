"""The file of lists: those of every note that can be found, whole or not at all, whatever ends a run."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from indexer.serving.memory import MemorySearcher
from indexer.types import IndexedVector
from model.note import Note
from service.backup import lists
from service.backup.lists import Lists, ListsError, RelatedLists
from service.errors import StoreUnavailable
from service.store.memory import MemoryStore
from service.store.records import StoredNote

MODEL = "memory"
IDS = [f"n{number:02}" for number in range(20)]
HIDDEN, DELETED, WAITS, COPY = "n03", "n07", "n11", "n13"
VECTORS = np.random.default_rng(0).normal(size=(len(IDS), 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
K = 4


async def community() -> tuple[MemoryStore, MemorySearcher]:
    """Twenty notes: one hidden, one whose delete the index has not heard of, one not read yet, one a copy of n00."""
    store, searcher = MemoryStore(), MemorySearcher()
    for note_id, vector in zip(IDS, VECTORS, strict=True):
        text = IDS[0] if note_id == COPY else note_id
        await store.put([StoredNote(Note(note_id, f"title of {text}", text), 0, hidden=note_id == HIDDEN)])
        if note_id != WAITS:
            store.predict(note_id, IndexedVector(1, vector))
            searcher.put(note_id, 1, vector, hidden=note_id == HIDDEN)
    await store.delete(DELETED)
    return store, searcher


def expected() -> dict[str, list[tuple[str, float]]]:
    """By products of all with all."""
    found = {}
    listed = [row for row, note_id in enumerate(IDS) if note_id not in (HIDDEN, DELETED, WAITS)]
    for row in listed:
        others = sorted((other for other in listed if other != row), key=lambda other: -(VECTORS[other] @ VECTORS[row]))
        shown: list[int] = []
        for other in others:
            alike = {0, IDS.index(COPY)}
            if not (other in alike and alike & {row, *shown}):
                shown.append(other)
        found[IDS[row]] = [(IDS[other], float(VECTORS[other] @ VECTORS[row])) for other in shown[:K]]
    return found


def related(store: MemoryStore, searcher: MemorySearcher) -> RelatedLists:
    return RelatedLists(store, searcher, MODEL, 100)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "PAGE", 6)


async def test_every_note_that_can_be_found_has_the_list_of_the_service(tmp_path: Path, monkeypatch):
    store, searcher = await community()
    alone, lookup = [], searcher.lookup

    async def looked_up(note_id: str, **options: float) -> IndexedVector | None:
        alone.append(note_id)
        return await lookup(note_id, **options)

    monkeypatch.setattr(searcher, "lookup", looked_up)
    made = await related(store, searcher).write(tmp_path / "lists.parquet", K)

    rows = pq.read_table(tmp_path / "lists.parquet").to_pylist()
    wanted = expected()
    assert [row["note_id"] for row in rows] == sorted(wanted)
    for row in rows:
        assert row["related_ids"] == [note_id for note_id, _ in wanted[row["note_id"]]]
        assert np.allclose(row["scores"], [score for _, score in wanted[row["note_id"]]], atol=1e-5)
    assert made == Lists(MODEL, K, notes=17, pending=1) == Lists.of(tmp_path / "lists.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["lists.parquet"]
    assert alone == [WAITS]  # the others came together


async def test_a_run_that_ended_early_is_continued_and_a_file_appears_when_it_is_whole(tmp_path: Path, monkeypatch):
    store, searcher = await community()
    await related(store, searcher).write(tmp_path / "whole.parquet", K)
    searches, page, out = searcher.searches, store.page, tmp_path / "lists.parquet"

    async def until_the_third(after: str, limit: int):
        store.down = after >= "n12"
        return await page(after, limit)

    monkeypatch.setattr(store, "page", until_the_third)
    with pytest.raises(StoreUnavailable):
        await related(store, searcher).write(out, K)
    assert not out.exists()
    (tmp_path / ".lists.parquet.parts" / ".00000002.parquet").write_bytes(b"half of a part")
    with pytest.raises(ListsError, match=r"begun with model memory and k = 4: finish that, or remove the folder"):
        await related(store, searcher).write(out, K + 1)

    store.down = False
    monkeypatch.setattr(store, "page", page)
    await related(store, searcher).write(out, K)

    assert pq.read_table(out) == pq.read_table(tmp_path / "whole.parquet")
    assert searcher.searches == 2 * searches  # no list was made twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.parquet", "whole.parquet"]


async def test_lists_without_a_shard_are_not_written(tmp_path: Path):
    store, searcher = await community()
    for searcher.down, said in (({0}, "only 1 of 2 shards"), ({0, 1}, "no shard of the index answers")):
        with pytest.raises(ListsError, match=f"{said}.*: the same command goes on"):
            await related(store, searcher).write(tmp_path / "lists.parquet", K)
        assert not (tmp_path / "lists.parquet").exists()


async def test_a_part_of_something_else_is_refused(tmp_path: Path):
    parts = tmp_path / ".lists.parquet.parts"
    parts.mkdir()
    for content in (b"", b"{}"):
        (parts / "00000000.parquet").write_bytes(content)
        with pytest.raises(ListsError, match="no part of a file of lists: remove"):
            await related(*await community()).write(tmp_path / "lists.parquet", K)


async def test_a_community_without_notes_has_an_empty_file(tmp_path: Path):
    made = await related(MemoryStore(), MemorySearcher()).write(tmp_path / "lists.parquet", K)

    assert (made.notes, pq.read_table(tmp_path / "lists.parquet").num_rows) == (0, 0)
