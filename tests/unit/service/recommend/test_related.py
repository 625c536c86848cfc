"""The neighborhood of notes, where the recommender's tests do not reach: cached vectors, shards that are down."""

import pytest

from indexer.serving.memory import MemorySearcher
from indexer.types import IndexedVector
from model.note import Note
from service.deadlines import Deadline
from service.errors import IndexUnavailable
from service.recommend.memory import FINGERPRINT, bag_of_words
from service.recommend.note_cache import NoteCache
from service.recommend.query import RelatedQuery
from service.recommend.related import Neighborhood, Origins
from service.recommend.seeds import Seeds
from service.store.memory import MemoryStore
from service.store.records import StoredNote, fields_of


class Searcher(MemorySearcher):
    """Records lookups."""

    def __init__(self) -> None:
        super().__init__(fingerprint=FINGERPRINT)
        self.lookups: list[str] = []

    async def lookup(self, note_id: str, **options: float) -> IndexedVector | None:
        self.lookups.append(note_id)
        return await super().lookup(note_id, **options)


def neighborhood(store: MemoryStore, cache: NoteCache, searcher: Searcher, vectors: int) -> Neighborhood:
    seeds = Seeds(store, cache, searcher, FINGERPRINT, vectors)
    return Neighborhood(cache, seeds, searcher, popularity_weight=0.0)


def alike(k: int, **rules: object) -> RelatedQuery:
    """The notes here say the same."""
    return RelatedQuery(k, collapse=False, **rules)  # type: ignore[arg-type]


async def neighborhood_of(*notes: Note, vectors: int = 10) -> tuple[Neighborhood, Searcher]:
    store, searcher = MemoryStore(), Searcher()
    versions = await store.put([StoredNote(note, 0) for note in notes])
    for note, version in zip(notes, versions, strict=True):
        searcher.put(note.id, version, bag_of_words(note), fields_of(StoredNote(note, version)))
    cache = NoteCache(store, 100, 1.0)
    return neighborhood(store, cache, searcher, vectors), searcher


async def test_a_hot_notes_vector_stays_and_a_colder_one_is_evicted():
    neighborhood, searcher = await neighborhood_of(*(Note(f"n{number}", "harbor") for number in range(3)), vectors=2)
    for note_id in ("n0", "n1", "n0", "n2"):
        await neighborhood.of_notes(Origins([note_id]), alike(1), Deadline(5.0))
    assert searcher.lookups == ["n0", "n1", "n2"]

    await neighborhood.of_notes(Origins(["n0"]), alike(1), Deadline(5.0))
    assert searcher.lookups == ["n0", "n1", "n2"]
    await neighborhood.of_notes(Origins(["n1"]), alike(1), Deadline(5.0))
    assert searcher.lookups == ["n0", "n1", "n2", "n1"]


async def test_equal_scores_of_several_categories_stand_by_id():
    notes = [Note("n0", "harbor"), Note("y", "harbor", category="a"), Note("x", "harbor", category="b")]
    neighborhood, _ = await neighborhood_of(*notes)

    related = await neighborhood.of_notes(Origins(["n0"]), alike(5, categories=("a", "b")), Deadline(5.0))

    assert [note.note_id for note in related.notes] == ["x", "y"]
    assert related.notes[0].score == related.notes[1].score


async def down(*shards: int) -> tuple[Neighborhood, Searcher, MemoryStore]:
    """A cold neighborhood of notes that a worker has predicted, with shards down."""
    store, searcher = MemoryStore(), Searcher()
    for number in range(12):
        note = Note(f"n{number}", "harbor")
        await store.put([StoredNote(note, 0)])
        searcher.put(note.id, 1, bag_of_words(note))
        store.predict(note.id, IndexedVector(1, bag_of_words(note)))
    searcher.down |= set(shards)
    cache = NoteCache(store, 100, 1.0)
    return neighborhood(store, cache, searcher, 9), searcher, store


async def test_with_one_shard_of_two_down_every_note_is_answered_from_a_cold_start():
    neighborhood, searcher, _ = await down(0)
    for number in range(12):
        related = await neighborhood.of_notes(Origins([f"n{number}"]), alike(5), Deadline(5.0))
        assert related.degraded
        assert (related.shards_ok, related.shards_total) == (1, 2)
        ids = [note.note_id for note in related.notes]
        assert ids
        assert {searcher.shard_of(id_) for id_ in ids} == {1}


async def test_an_edited_note_whose_shard_is_down_is_answered_by_the_vector_of_its_older_version():
    neighborhood, searcher, store = await down()
    searcher.down.add(searcher.shard_of("n1"))
    await store.put([StoredNote(Note("n1", "mountain"), 0), StoredNote(Note("new", "harbor"), 0)])

    related = await neighborhood.of_notes(Origins(["n1"]), alike(1), Deadline(5.0))

    assert (related.stale, related.degraded, related.notes[0].score) == (True, True, pytest.approx(1.0))
    searcher.down = {0, 1}
    with pytest.raises(IndexUnavailable, match="the shard of this note"):
        await neighborhood.of_notes(Origins(["new"]), alike(5), Deadline(5.0))


async def test_with_all_shards_down_or_the_store_as_well_there_is_no_answer():
    neighborhood, searcher, store = await down(0, 1)
    with pytest.raises(IndexUnavailable, match="no shard"):
        await neighborhood.of_notes(Origins(["n1"]), alike(5), Deadline(5.0))
    searcher.down.discard(1 - searcher.shard_of("n2"))
    store.down = True
    with pytest.raises(IndexUnavailable, match="neither the store nor the shard"):
        await neighborhood.of_notes(Origins(["n2"]), alike(5), Deadline(5.0))


async def many() -> tuple[Neighborhood, Searcher, MemoryStore, list[str]]:
    """Warm, with the ids of 24 notes, which share a word with every third."""
    store, searcher = MemoryStore(), Searcher()
    notes = [Note(f"n{number:02}", f"harbor{number % 3} boat{number}") for number in range(24)]
    await store.put([StoredNote(note, 0) for note in notes])
    for note in notes:
        searcher.put(note.id, 1, bag_of_words(note))
    warm, ids = neighborhood(store, NoteCache(store, 100, 1.0), searcher, 100), [note.id for note in notes]
    for note_id in ids:
        await warm.of_notes(Origins([note_id]), alike(2), Deadline(5.0))
    return warm, searcher, store, ids


@pytest.mark.parametrize("rules", [{}, {"diversity": 0.4}, {"min_score": 0.3}, {"half_life_days": 3.0}])
async def test_lists_made_together_are_those_of_each_note_with_one_request_to_the_store(rules):
    warm, _, store, ids = await many()
    query = alike(3, **rules)
    each = {note_id: await warm.of_notes(Origins([note_id]), query, Deadline(5.0)) for note_id in ids}
    views = store.views

    assert await warm.of_cached([*ids, "unknown"], query, Deadline(5.0)) == each
    assert store.views == views + 1
    assert len({tuple(note.note_id for note in related.notes) for related in each.values()}) > 12


async def test_lists_made_together_leave_out_what_has_to_be_looked_at_again():
    warm, searcher, store, ids = await many()
    await store.put([StoredNote(Note("n00", "harbor0 again"), 0)])
    await store.delete("n01")

    made = await warm.of_cached(ids, alike(2), Deadline(5.0))
    assert made.keys() == {*ids} - {"n00", "n01"}
    shown = {note.note_id: note.summary for related in made.values() for note in related.notes}
    assert "n01" not in shown
    assert shown["n00"].version == 2

    # Six of seven neighbors are hidden, and the index has not heard of it: a wider search is needed.
    await store.put([StoredNote(Note(note_id, "harbor2"), 0, hidden=True) for note_id in ids[5::3]])
    assert "n02" not in await warm.of_cached(["n02"], alike(2), Deadline(5.0))
    assert "n03" in await warm.of_cached(["n03"], alike(2), Deadline(5.0))
    searcher.down = {0}
    assert await warm.of_cached(ids, alike(2), Deadline(5.0)) == {}
    searcher.down, store.down = set(), True
    assert await warm.of_cached(ids, alike(2), Deadline(5.0)) == {}
