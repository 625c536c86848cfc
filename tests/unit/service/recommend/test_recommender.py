"""The policy of the gateway, over stores and indexes in memory."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
from support.gateway import MemoryGateway

from indexer.types import Hits, SearchResult
from model.inference.calibration import Calibration, LogitMap, SuggestionMap, sigmoid, strength
from model.note import Note
from model.text.suggestions import VOTERS
from service.errors import (
    IndexUnavailable,
    NoteNotFound,
    NotePending,
    QueueFull,
    StoreUnavailable,
    WorkerUnavailable,
)
from service.recommend.memory import FINGERPRINT, bag_of_words
from service.recommend.query import RelatedQuery
from service.store.interfaces import Suggestion
from service.store.memory import MemoryStore
from service.store.records import StoredNote

WORDS = ["harbor", "tram", "noodle", "castle", "bridge", "museum", "garden", "river", "temple", "market"]


def notes(count: int) -> list[Note]:
    draw = np.random.default_rng(7)
    return [Note(f"n{number}", " ".join(draw.choice(WORDS, 4))) for number in range(count)]


@pytest.fixture
def gateway() -> MemoryGateway:
    return MemoryGateway(related_s=0.8, write_s=0.8, tags_s=0.8)


async def tags(gateway: MemoryGateway, draft: Note, **wish: object):
    wishes = {"max_hashtags": 5, "vocabulary": "open", "related": 0} | wish
    return await gateway.recommender.tags(draft, **wishes)


class TestRelated:
    async def test_are_the_closest_notes_by_cosine_without_the_note_itself(self, gateway):
        corpus = notes(60)
        await gateway.publish(*corpus)
        own = bag_of_words(corpus[0])
        cosine = {note.id: float(own @ bag_of_words(note)) for note in corpus[1:]}

        related = await gateway.recommender.related("n0", RelatedQuery(12))

        assert [note.score for note in related.notes] == sorted(cosine.values(), reverse=True)[:12]
        assert all(cosine[note.note_id] == note.score for note in related.notes)
        assert len({note.note_id for note in related.notes}) == 12
        assert (related.generation, related.degraded, related.shards_ok, related.shards_total) == (
            3,
            False,
            2,
            2,
        )

    async def test_never_hold_a_deleted_note_that_the_index_still_has(self, gateway):
        corpus = notes(20)
        await gateway.publish(*corpus)
        [closest, *_] = (await gateway.recommender.related("n0", RelatedQuery(5))).notes

        await gateway.recommender.notes.delete(closest.note_id)

        related = await gateway.recommender.related("n0", RelatedQuery(19))
        assert len(related.notes) == 18
        assert closest.note_id not in {note.note_id for note in related.notes}

    async def test_of_a_note_that_the_model_cannot_read_are_none_and_it_is_near_no_other(self, gateway):
        await gateway.publish(*notes(30), Note("party", "\U0001f389"), Note("again", "\U0001f389"))

        party = await gateway.recommender.related("party", RelatedQuery(10))
        assert (party.notes, party.degraded, party.shards_ok) == ([], False, 2)
        related = await gateway.recommender.related("n0", RelatedQuery(31, collapse=False))
        scores = {note.note_id: note.score for note in related.notes}
        assert max(abs(scores["party"]), abs(scores["again"])) < 0.2
        assert (await gateway.recommender.notes.details("party")).status == "searchable"

    async def test_still_are_k_when_many_of_the_closest_were_deleted(self, gateway):
        await gateway.publish(*notes(150))
        order = [note.note_id for note in (await gateway.recommender.related("n0", RelatedQuery(100))).notes]
        for note_id in order[:70]:
            await gateway.store.delete(note_id)  # and the index follows much later

        related = await gateway.recommender.related("n0", RelatedQuery(10))

        assert [note.note_id for note in related.notes] == order[70:80]

    async def test_stop_widening_when_the_index_has_no_more(self, gateway):
        await gateway.publish(*notes(4))

        related = await gateway.recommender.related("n0", RelatedQuery(50))

        assert len(related.notes) == 3
        assert gateway.searcher.searches == 1

    async def test_of_an_unknown_or_deleted_note_are_not_found(self, gateway):
        await gateway.publish(Note("gone", "harbor"))
        await gateway.recommender.notes.delete("gone")

        for note_id in ("gone", "never"):
            with pytest.raises(NoteNotFound):
                await gateway.recommender.related(note_id, RelatedQuery(10))

    async def test_of_a_new_note_are_pending(self, gateway):
        await gateway.store.put([StoredNote(Note("new", "tram"), 0)])

        with pytest.raises(NotePending, match=r"searchable yet$"):
            await gateway.recommender.related("new", RelatedQuery(10))

    @pytest.mark.parametrize("is_known", [False, True], ids=["first", "again"])
    async def test_of_an_edited_note_are_those_of_the_version_that_can_be_found(self, gateway, is_known):
        near = [Note("far", "castle"), Note("gone", "harbor tram"), Note("near", "harbor")]
        await gateway.publish(Note("edited", "harbor"), *near)
        if is_known:
            before = await gateway.recommender.related("edited", RelatedQuery(1, collapse=False))
            assert (before.notes[0].note_id, before.stale) == ("near", False)
        await gateway.store.put([StoredNote(Note("edited", "castle"), 0)])
        await gateway.store.delete("near")  # and the index follows later
        searches = gateway.searcher.searches

        for _ in range(2):
            stale = await gateway.recommender.related("edited", RelatedQuery(3, collapse=False))
            assert [note.note_id for note in stale.notes] == ["gone", "far"]
            assert (stale.stale, stale.degraded, stale.summaries[0].version) == (True, False, 2)
        # Only what was cached is checked by a second search.
        assert gateway.searcher.searches - searches == 2 + is_known

        await gateway.drain()
        edited = await gateway.recommender.related("edited", RelatedQuery(1, collapse=False))
        assert (edited.notes[0].note_id, edited.stale) == ("far", False)

    async def test_of_a_note_that_failed_say_why(self, gateway):
        [version] = await gateway.store.put([StoredNote(Note("poison", "harbor"), 0)])
        gateway.store.suggest("poison", Suggestion(version, FINGERPRINT, failure="OverflowError"))

        with pytest.raises(NotePending, match="OverflowError"):
            await gateway.recommender.related("poison", RelatedQuery(10))

    async def test_of_an_edit_do_not_blame_it_for_the_failure_of_an_older_version(self, gateway):
        [version] = await gateway.store.put([StoredNote(Note("n", "harbor"), 0)])
        gateway.store.suggest("n", Suggestion(version, FINGERPRINT, failure="OverflowError"))
        await gateway.store.put([StoredNote(Note("n", "castle"), 0)])

        with pytest.raises(NotePending, match=r"searchable yet$"):
            await gateway.recommender.related("n", RelatedQuery(10))

    @pytest.mark.parametrize("trouble", ["down", "hangs"])
    async def test_without_the_store_are_ids_and_scores(self, gateway, trouble):
        await gateway.publish(*notes(30))
        whole = await gateway.recommender.related("n0", RelatedQuery(10))
        setattr(gateway.store, trouble, True)

        related = await gateway.recommender.related("n0", RelatedQuery(10))

        assert related.degraded
        assert [(note.note_id, note.score, note.summary) for note in related.notes] == [
            (note.note_id, note.score, None) for note in whole.notes
        ]

    async def test_without_the_store_of_an_id_that_no_shard_holds_are_unavailable(self, gateway):
        gateway.store.down = True

        with pytest.raises(StoreUnavailable):
            await gateway.recommender.related("n0", RelatedQuery(10))

    async def test_without_a_shard_are_those_of_the_others(self, gateway):
        await gateway.publish(*notes(30))
        own_shard = gateway.searcher.shard_of("n0")
        gateway.searcher.down = {1 - own_shard}

        related = await gateway.recommender.related("n0", RelatedQuery(10))

        assert (related.degraded, related.shards_ok, related.shards_total) == (True, 1, 2)
        assert {gateway.searcher.shard_of(note.note_id) for note in related.notes} == {own_shard}

    async def test_without_the_notes_own_shard_are_those_of_the_others_too(self, gateway):
        await gateway.publish(*notes(30))
        own_shard = gateway.searcher.shard_of("n0")
        gateway.searcher.down = {own_shard}

        related = await gateway.recommender.related("n0", RelatedQuery(10))

        assert (related.degraded, related.shards_ok, related.shards_total) == (True, 1, 2)
        assert {gateway.searcher.shard_of(note.note_id) for note in related.notes} == {1 - own_shard}

    async def test_are_unavailable_when_every_shard_dies_between_lookup_and_search(self, gateway, monkeypatch):
        async def nothing(*args: object, **kwargs: object) -> SearchResult:
            return SearchResult(Hits([], []), 0, 0, 2)

        await gateway.publish(*notes(3))
        monkeypatch.setattr(gateway.searcher, "search", nothing)

        with pytest.raises(IndexUnavailable):
            await gateway.recommender.related("n0", RelatedQuery(10))

    async def test_of_a_category_are_k_of_it_however_few_there_are_among_the_nearest(self, gateway):
        corpus = [
            replace(note, category="Rare" if place % 40 == 1 else "Common") for place, note in enumerate(notes(400))
        ]
        await gateway.publish(*corpus)

        related = await gateway.recommender.related("n0", RelatedQuery(10, categories=("Rare",)))

        own = bag_of_words(corpus[0])
        rare = sorted((float(own @ bag_of_words(note)) for note in corpus if note.category == "Rare"), reverse=True)
        assert [note.score for note in related.notes] == rare

    async def test_of_several_categories_are_the_nearest_of_all_of_them(self, gateway):
        corpus = [replace(note, category="abc"[place % 3]) for place, note in enumerate(notes(90))]
        await gateway.publish(*corpus)

        related = await gateway.recommender.related("n0", RelatedQuery(20, categories=("a", "b", "none such")))

        own = bag_of_words(corpus[0])
        wanted = sorted((float(own @ bag_of_words(n)) for n in corpus[1:] if n.category in "ab"), reverse=True)
        assert [note.score for note in related.notes] == wanted[:20]

    async def test_do_not_show_a_category_that_the_index_alone_still_believes_in(self, gateway):
        await gateway.publish(Note("n0", "harbor"), Note("n1", "harbor tram", category="Old"))
        await gateway.store.put([StoredNote(Note("n1", "harbor tram", category="New"), 0)])

        assert (await gateway.recommender.related("n0", RelatedQuery(5, categories=("Old",)))).notes == []

    async def test_leave_out_the_excluded_and_the_author(self, gateway):
        mine = [StoredNote(note, 0, author="me") for note in notes(20)]
        yours = [StoredNote(replace(note, id=f"y{note.id}"), 0, author="you") for note in notes(20)]
        await gateway.publish(*mine, *yours)

        related = await gateway.recommender.related(
            "n0", RelatedQuery(100, exclude=("yn1", "yn2", "never"), exclude_author=True, collapse=False)
        )

        assert {note.note_id for note in related.notes} == {f"yn{number}" for number in (0, *range(3, 20))}

    async def test_of_the_same_author_are_there_unless_they_are_excluded(self, gateway):
        await gateway.publish(*(StoredNote(note, 0, author="me") for note in notes(5)))

        assert len((await gateway.recommender.related("n0", RelatedQuery(10))).notes) == 4
        assert (await gateway.recommender.related("n0", RelatedQuery(10, exclude_author=True))).notes == []

    async def test_of_a_note_without_author_exclude_nobody(self, gateway):
        await gateway.publish(*notes(5))

        assert len((await gateway.recommender.related("n0", RelatedQuery(10, exclude_author=True))).notes) == 4

    async def test_debiased_lose_what_popularity_adds_and_stand_by_the_new_score(self):
        gateway = MemoryGateway(popularity_weight=0.05)
        corpus = [replace(note, exposure=10 ** (place % 7)) for place, note in enumerate(notes(40))]
        await gateway.publish(*corpus)

        related = await gateway.recommender.related("n0", RelatedQuery(10, debias=0.6))

        own = bag_of_words(corpus[0])
        scores = {n.id: float(own @ bag_of_words(n)) - 0.6 * 0.05 * math.log1p(n.exposure) for n in corpus[1:]}
        assert [note.score for note in related.notes] == pytest.approx(sorted(scores.values(), reverse=True)[:10])
        assert all(note.score == pytest.approx(note.cosine - note.popularity) for note in related.notes)
        assert all(scores[note.note_id] == pytest.approx(note.score) for note in related.notes)

    @pytest.mark.parametrize("k", [1, 30])
    async def test_debiased_come_from_further_away_than_the_first_k(self, k):
        gateway = MemoryGateway(popularity_weight=1.0)
        popular = [Note(f"p{n}", "harbor tram", exposure=10**6) for n in range(90)]
        unknown = [Note(f"u{n}", "harbor tram castle market museum") for n in range(k)]
        await gateway.publish(Note("n0", "harbor tram"), *popular, *unknown)

        related = await gateway.recommender.related("n0", RelatedQuery(k, debias=0.5, collapse=False))

        assert {note.note_id for note in related.notes} == {note.id for note in unknown}

    async def test_diverse_repeat_themselves_less_and_still_stand_by_score(self, gateway):
        corpus = [Note("n0", "harbor tram"), *(Note(f"s{n}", "harbor tram noodle") for n in range(9)), *notes(40)[1:]]
        await gateway.publish(*corpus)

        plain = (await gateway.recommender.related("n0", RelatedQuery(10, collapse=False))).notes
        diverse = (await gateway.recommender.related("n0", RelatedQuery(10, diversity=0.5, collapse=False))).notes

        assert sum(note.note_id.startswith("s") for note in plain) == 9
        assert sum(note.note_id.startswith("s") for note in diverse) < 5
        assert diverse[0].score == plain[0].score
        assert [note.score for note in diverse] == sorted((note.score for note in diverse), reverse=True)

    async def test_asked_for_again_need_no_second_lookup_and_follow_an_edit(self, gateway, monkeypatch):
        await gateway.publish(*notes(10))
        await gateway.recommender.related("n0", RelatedQuery(3))
        lookups = []
        lookup = gateway.searcher.lookup
        monkeypatch.setattr(
            gateway.searcher, "lookup", lambda note_id, **more: lookups.append(note_id) or lookup(note_id, **more)
        )

        await gateway.recommender.related("n0", RelatedQuery(3))
        assert lookups == []

        await gateway.store.put([StoredNote(Note("n0", "castle"), 0)])
        assert (await gateway.recommender.related("n0", RelatedQuery(3))).stale
        await gateway.drain()
        edited = await gateway.recommender.related("n0", RelatedQuery(3))
        best = max(float(bag_of_words(Note("", "castle")) @ bag_of_words(note)) for note in notes(10)[1:])
        assert edited.notes[0].score == best

    async def test_asked_for_again_after_a_delete_are_not_found(self, gateway):
        await gateway.publish(*notes(10))
        await gateway.recommender.related("n0", RelatedQuery(3))
        await gateway.recommender.notes.delete("n0")

        with pytest.raises(NoteNotFound):
            await gateway.recommender.related("n0", RelatedQuery(3))

    async def test_hold_no_hidden_note_though_the_index_does_not_know_and_it_has_its_own(self, gateway):
        await gateway.publish(*notes(10))
        before = await gateway.recommender.related("n0", RelatedQuery(3))
        first = before.notes[0].note_id
        note = next(note for note in notes(10) if note.id == first)
        await gateway.recommender.notes.put(StoredNote(note, 0, hidden=True))

        for down in (True, False, True):  # at once, and after it was read again
            gateway.store.down = down
            after = await gateway.recommender.related("n0", RelatedQuery(9))
            assert (len(after.notes), after.degraded) == (8, down)
            assert first not in {note.note_id for note in after.notes}
        gateway.store.down = False

        own = await gateway.recommender.related(first, RelatedQuery(3))
        assert own.summaries[0].hidden
        assert len(own.notes) == 3
        await gateway.recommender.notes.put(StoredNote(note, 0))
        back = await gateway.recommender.related("n0", RelatedQuery(3))
        assert [one.note_id for one in back.notes] == [one.note_id for one in before.notes]

    @pytest.mark.parametrize("down", [True, False])
    async def test_hold_no_note_that_an_acknowledged_write_took_out_of_their_filter(self, gateway, down):
        corpus = [replace(note, category="Travel") for note in notes(10)]
        await gateway.publish(*corpus)
        travel = RelatedQuery(9, categories=("Travel",))
        first = (await gateway.recommender.related("n0", travel)).notes[0].note_id
        note = next(note for note in corpus if note.id == first)

        await gateway.recommender.notes.put(StoredNote(replace(note, category="Food"), 0))

        gateway.store.down = down  # before the gateway or the index has read of it
        after = await gateway.recommender.related("n0", travel)
        assert (len(after.notes), after.degraded) == (8, down)
        assert first not in {note.note_id for note in after.notes}

    async def test_a_write_that_hides_a_note_waits_for_its_shard_and_no_other_does(self, gateway, monkeypatch):
        monkeypatch.setattr("service.recommend.notes._LEAVES_S", 30.0)
        await gateway.publish(*notes(3))
        hidden = [StoredNote(note, 0, hidden=True) for note in (*notes(1), Note("new", "harbor"))]

        hiding = asyncio.create_task(gateway.recommender.notes.put(hidden[0]))
        await asyncio.sleep(0.05)
        assert not hiding.done()
        await gateway.drain()
        assert (await asyncio.wait_for(hiding, 20)).version == 2

        for record in (hidden[1], StoredNote(notes(2)[1], 0, author="a")):  # of the first no shard can know a version
            await asyncio.wait_for(gateway.recommender.notes.put(record), 20)

    async def test_are_not_pending_after_a_write_that_left_the_text_alone(self, gateway):
        await gateway.publish(*notes(10))
        before = await gateway.recommender.related("n0", RelatedQuery(3))
        receipt = await gateway.recommender.notes.put(StoredNote(notes(1)[0], 0, attributes={"price": 3}))

        assert receipt.version == 2
        related = await gateway.recommender.related("n0", RelatedQuery(3))
        assert (related.notes[0].note_id, related.summaries[0].fields["price"]) == (before.notes[0].note_id, 3.0)

    async def test_end_at_the_deadline_even_if_the_index_forgets_its_own(self, gateway, monkeypatch):
        async def never(*args: object, **kwargs: object) -> SearchResult:
            return await asyncio.Future()

        await gateway.publish(*notes(3))
        monkeypatch.setattr(gateway.searcher, "search", never)

        with pytest.raises(IndexUnavailable, match="in time"):
            await gateway.recommender.related("n0", RelatedQuery(10))


class TestEmbeddings:
    async def test_of_texts_are_those_of_the_worker_in_order(self, gateway):
        texts = [Note("", content="harbor tram"), Note("", content="noodle")]

        embeddings = await gateway.recommender.embed(texts)

        assert [embedding.tokens for embedding in embeddings] == [2, 1]
        for text, embedding in zip(texts, embeddings, strict=True):
            np.testing.assert_array_equal(embedding.vector, bag_of_words(text))

    @pytest.mark.parametrize("how", ["down", "hangs"])
    async def test_need_a_worker_that_answers_in_time(self, gateway, how):
        setattr(gateway.drafter, how, True)
        with pytest.raises(WorkerUnavailable):
            await gateway.recommender.embed([Note("", content="harbor")])


class TestTags:
    async def test_of_the_model_alone_stand_most_likely_first(self, gateway):
        suggestions = await tags(gateway, Note("", "harbor tram noodle"))

        assert [(tag.tag, tag.source) for tag in suggestions.hashtags] == [
            ("harbor", "generated"),
            ("tram", "generated"),
            ("noodle", "generated"),
        ]
        assert [tag.score for tag in suggestions.hashtags] == pytest.approx([0.8, 0.4, 0.2])
        assert suggestions.category == ("Travel", 0.93)

    async def test_join_those_of_related_notes_by_the_stated_formula(self, gateway):
        near = Note("near", "harbor tram", hashtags=("harbor", "seaside"))
        await gateway.publish(near)
        draft = Note("", "harbor tram")

        suggestions = await tags(gateway, draft)

        vote = float(bag_of_words(near) @ bag_of_words(draft)) / VOTERS
        assert {tag.tag: (tag.source, pytest.approx(tag.score)) for tag in suggestions.hashtags} == {
            "harbor": ("both", 1 - (1 - 0.8) * (1 - vote)),
            "tram": ("generated", 0.4),
            "seaside": ("neighbors", vote),
        }

    async def test_are_at_most_as_many_as_wanted_and_none_that_the_draft_has(self, gateway):
        suggestions = await tags(gateway, Note("", "harbor tram noodle castle", hashtags=("#Harbors",)), max_hashtags=2)

        assert [tag.tag for tag in suggestions.hashtags] == ["tram", "noodle"]

    @pytest.mark.parametrize(
        ("vocabulary", "max_hashtags", "own", "predicted"),
        [("open", 3, (), 3), ("open", 3, ("a", "b"), 5), ("open", 9, ("a", "b"), 10), ("known", 3, (), 10)],
    )
    async def test_are_predicted_no_more_than_may_be_needed(self, gateway, vocabulary, max_hashtags, own, predicted):
        asked = []
        predict = gateway.drafter.predict
        gateway.drafter.predict = lambda note, count, **options: asked.append(count) or predict(note, count, **options)

        await tags(gateway, Note("", "harbor", hashtags=own), vocabulary=vocabulary, max_hashtags=max_hashtags)

        assert asked == [predicted]

    async def test_come_in_the_spelling_that_most_live_notes_use(self, gateway):
        notes = [Note("a", "river", hashtags=("NightTram",)), Note("b", "river", hashtags=("NightTram",))]
        await gateway.publish(*notes, Note("c", "nighttram", hashtags=("night tram",)))

        suggestions = await tags(gateway, Note("", "nighttram castle"))

        assert [(tag.tag, tag.source) for tag in suggestions.hashtags] == [
            ("NightTram", "both"),
            ("castle", "generated"),
        ]

    async def test_of_the_known_vocabulary_are_all_carried_by_live_notes(self, gateway):
        await gateway.publish(Note("a", "river", hashtags=("Tram",)), Note("b", "river", hashtags=("noodle",)))
        await gateway.recommender.notes.delete("b")

        suggestions = await tags(gateway, Note("", "harbor tram noodle"), vocabulary="known")

        assert [tag.tag for tag in suggestions.hashtags] == ["Tram"]

    async def test_of_the_known_vocabulary_follow_the_edits_of_notes(self, gateway):
        await gateway.publish(Note("a", "river", hashtags=("tram", "noodle")))
        await gateway.publish(Note("a", "river", hashtags=("noodles",)))

        suggestions = await tags(gateway, Note("", "harbor tram noodle"), vocabulary="known")

        assert [tag.tag for tag in suggestions.hashtags] == ["noodles"]

    async def test_of_the_known_vocabulary_look_past_the_number_that_is_wanted(self, gateway):
        await gateway.publish(Note("a", "river", hashtags=("castle",)))

        draft = Note("", "harbor tram noodle castle")
        suggestions = await tags(gateway, draft, vocabulary="known", max_hashtags=1)

        assert [tag.tag for tag in suggestions.hashtags] == ["castle"]

    async def test_of_the_known_vocabulary_are_as_many_as_wanted_if_model_and_neighbors_know_as_many(self, gateway):
        """The model's likely words are unknown; its unlikely ones and the hashtags of the farthest voter are not."""
        far = [Note(f"n{number}", f"harbor {number}") for number in range(VOTERS - 1)]
        await gateway.publish(
            *far, Note("last", "pier", hashtags=("pier", "quay")), Note("x", "sky", hashtags=("market",))
        )
        draft = Note("", " ".join(WORDS))

        suggestions = await tags(gateway, draft, vocabulary="known", max_hashtags=3)

        assert {tag.tag for tag in suggestions.hashtags} == {"market", "pier", "quay"}

    async def test_do_without_the_spelling_when_the_store_goes_between_two_questions(self, gateway, monkeypatch):
        async def down(tags: object) -> object:
            raise StoreUnavailable("the store does not answer")

        await gateway.publish(Note("near", "harbor", hashtags=("Tram",)))
        monkeypatch.setattr(gateway.store, "spellings", down)

        suggestions = await tags(gateway, Note("", "harbor tram"))

        assert [tag.tag for tag in suggestions.hashtags] == ["harbor", "tram"]
        with pytest.raises(StoreUnavailable):
            await tags(gateway, Note("", "harbor tram"), vocabulary="known")

    async def test_come_with_related_notes_from_the_same_vector(self, gateway):
        corpus = notes(30)
        await gateway.publish(*corpus)
        draft = Note("", "harbor castle")

        suggestions = await tags(gateway, draft, related=20)

        cosines = sorted((float(bag_of_words(draft) @ bag_of_words(note)) for note in corpus), reverse=True)
        assert [note.score for note in suggestions.related] == cosines[:20]

    async def test_without_the_index_or_the_store_are_the_models(self, gateway):
        await gateway.publish(Note("near", "harbor tram", hashtags=("seaside",)))
        gateway.searcher.down = {0, 1}
        without_index = await tags(gateway, Note("", "harbor"), related=3)
        gateway.searcher.down = set()
        gateway.store.down = True
        without_store = await tags(gateway, Note("", "harbor"), related=3)

        assert [tag.tag for tag in without_index.hashtags] == ["harbor"]
        assert without_index.related == []
        assert [tag.tag for tag in without_store.hashtags] == ["harbor"]
        assert [(note.note_id, note.summary) for note in without_store.related] == [("near", None)]

    async def test_of_the_known_vocabulary_need_the_store(self, gateway):
        gateway.store.down = True

        with pytest.raises(StoreUnavailable):
            await tags(gateway, Note("", "harbor"), vocabulary="known")

    @pytest.mark.parametrize("trouble", ["down", "hangs"])
    async def test_need_a_worker(self, gateway, trouble):
        setattr(gateway.drafter, trouble, True)

        with pytest.raises(WorkerUnavailable):
            await tags(gateway, Note("", "harbor"))

    @pytest.mark.parametrize("vocabulary", ["open", "known"])
    async def test_of_a_draft_that_the_model_cannot_read_are_none_whatever_its_neighbors_carry(
        self, gateway, vocabulary
    ):
        await gateway.publish(Note("party", "\U0001f389", hashtags=("party",)), *notes(5))

        suggestions = await tags(gateway, Note("", "\U0001f389"), vocabulary=vocabulary, related=3)

        assert (suggestions.hashtags, suggestions.category, suggestions.related) == ([], None, [])

    async def test_have_no_category_if_the_model_has_none(self, gateway):
        gateway.drafter.category = None

        assert (await tags(gateway, Note("", "harbor"))).category is None


class TestCalibratedScores:
    MAPS = Calibration(SuggestionMap(-2.0, 1.0, 0.0, 1.0, 1.0), LogitMap(2.0, 0.0), LogitMap(-2.0, 0.0), {})

    async def test_order_what_is_suggested(self, gateway):
        """These maps do not care what the model says, and a vote beats it."""
        gateway.recommender._scores = self.MAPS
        near = Note("near", "harbor tram", hashtags=("noodle",))
        await gateway.publish(near)

        suggestions = await tags(gateway, Note("", "harbor tram noodle"))

        vote = float(bag_of_words(near) @ bag_of_words(Note("", "harbor tram noodle"))) / VOTERS
        assert [(tag.tag, tag.score) for tag in suggestions.hashtags] == [
            ("noodle", pytest.approx(sigmoid(-1.0 + strength(vote)))),
            ("harbor", pytest.approx(sigmoid(-1.0))),
            ("tram", pytest.approx(sigmoid(-1.0))),
        ]
        assert suggestions.category == ("Travel", pytest.approx(sigmoid(-2.0)))

    @pytest.mark.parametrize("missing", ["store", "index"])
    async def test_of_a_model_that_speaks_alone_are_those_of_the_model(self, gateway, missing):
        gateway.recommender._scores = self.MAPS
        await gateway.publish(Note("near", "harbor", hashtags=("harbor",)))
        gateway.store.down = missing == "store"
        gateway.searcher.down = {0, 1} if missing == "index" else set()

        suggestions = await tags(gateway, Note("", "harbor"))

        assert [(tag.tag, tag.score) for tag in suggestions.hashtags] == [("harbor", pytest.approx(sigmoid(2.0)))]

    async def test_are_those_of_a_stored_note_too(self, gateway):
        gateway.recommender.notes._scores = self.MAPS
        await gateway.publish(Note("n", "harbor"))

        details = await gateway.recommender.notes.details("n")

        assert details.suggestion is not None
        assert details.suggestion.hashtags == (("suggested", pytest.approx(sigmoid(2.0))),)
        assert details.suggestion.category == ("Travel", pytest.approx(sigmoid(-2.0)))


class TestWrites:
    async def test_that_wait_end_when_the_version_is_searchable(self, gateway):
        write = asyncio.create_task(gateway.recommender.notes.put(StoredNote(Note("n", "harbor"), 0), wait_s=10.0))
        while not gateway.store.jobs:
            await asyncio.sleep(0.001)
        await gateway.drain()

        written = await write

        assert (written.note_id, written.version, written.status) == ("n", 1, "searchable")

    async def test_that_wait_in_vain_are_pending(self, gateway):
        await gateway.publish(Note("n", "harbor"))

        written = await gateway.recommender.notes.put(StoredNote(Note("n", "castle"), 0), wait_s=0.05)

        assert (written.version, written.status) == (2, "pending")

    async def test_that_change_nothing_say_what_a_read_says(self, gateway):
        harbor, poison = StoredNote(Note("n", "harbor"), 0), StoredNote(Note("poison", "castle"), 0)
        for expected in ("pending", "searchable"):
            assert (await gateway.recommender.notes.put(harbor)).status == expected
            await gateway.drain()
        version = (await gateway.recommender.notes.put(poison)).version
        gateway.store.suggest("poison", Suggestion(version, FINGERPRINT, failure="OverflowError"))

        for record in (harbor, poison):
            status = (await gateway.recommender.notes.details(record.note.id)).status
            assert (await gateway.recommender.notes.put(record)).status == status
            edited = replace(record, note=replace(record.note, content="more"))
            assert (await gateway.recommender.notes.put(edited)).status == "pending"

    async def test_are_pending_where_the_status_cannot_be_told(self, gateway):
        await gateway.publish(Note("n", "harbor"))
        gateway.searcher.down = {0, 1}

        assert (await gateway.recommender.notes.put(StoredNote(Note("n", "harbor"), 0))).status == "pending"

    async def test_that_wait_outlive_a_shard_that_is_down_for_a_while(self, gateway):
        gateway.searcher.down = {0, 1}
        write = asyncio.create_task(gateway.recommender.notes.put(StoredNote(Note("n", "harbor"), 0), wait_s=10.0))
        while not gateway.store.jobs:
            await asyncio.sleep(0.001)
        await gateway.drain()
        gateway.searcher.down = set()

        assert (await write).status == "searchable"

    async def test_that_change_nothing_say_nothing_about_freshness(self, gateway):
        await gateway.publish(Note("n", "harbor"))

        written = await gateway.recommender.notes.put(StoredNote(Note("n", "harbor"), 0), wait_s=1.0)

        assert (written.version, written.status) == (1, "searchable")
        assert (await gateway.recommender.status()).freshness_s == []

    async def test_that_were_seen_to_become_searchable_are_the_freshness(self, gateway):
        write = asyncio.create_task(gateway.recommender.notes.put(StoredNote(Note("n", "harbor"), 0), wait_s=10.0))
        while not gateway.store.jobs:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        await gateway.drain()
        await write

        status = await gateway.recommender.status()

        assert len(status.freshness_s) == 1
        assert status.freshness(0.5) == status.freshness(0.99) == status.freshness_s[0] > 0

    async def test_are_refused_when_the_queue_is_full(self, gateway):
        gateway.recommender.notes._store = MemoryStore(max_queue=0)

        with pytest.raises(QueueFull):
            await gateway.recommender.notes.put(StoredNote(Note("n", "harbor"), 0))

    async def test_end_at_the_deadline_when_the_store_hangs(self, gateway):
        gateway.store.hangs = True

        with pytest.raises(StoreUnavailable):
            await gateway.recommender.notes.put(StoredNote(Note("n", "harbor"), 0), wait_s=1.0)
        with pytest.raises(StoreUnavailable):
            await gateway.recommender.notes.delete("n")

    async def test_delete_twice_but_not_what_was_never_there(self, gateway):
        await gateway.publish(Note("n", "harbor"))

        await gateway.recommender.notes.delete("n")
        await gateway.recommender.notes.delete("n")

        with pytest.raises(NoteNotFound):
            await gateway.recommender.notes.delete("never")


class TestDescription:
    async def test_follows_a_note_from_pending_to_searchable_to_edited(self, gateway):
        await gateway.store.put([StoredNote(Note("n", "harbor"), 0)])
        new = await gateway.recommender.notes.details("n")
        await gateway.drain()
        read = await gateway.recommender.notes.details("n")
        await gateway.store.put([StoredNote(Note("n", "castle"), 0)])
        edited = await gateway.recommender.notes.details("n")

        assert (new.status, new.suggestion) == ("pending", None)
        assert read.status == "searchable"
        assert read.suggestion is not None
        assert read.suggestion.hashtags == (("suggested", 0.5),)
        assert (edited.status, edited.suggestion, edited.record.version) == ("pending", None, 2)

    async def test_of_a_failed_note_carries_the_reason(self, gateway):
        [version] = await gateway.store.put([StoredNote(Note("n", "harbor"), 0)])
        gateway.store.suggest("n", Suggestion(version, FINGERPRINT, failure="OverflowError"))

        details = await gateway.recommender.notes.details("n")

        assert details.status == "failed"
        assert details.suggestion is not None
        assert details.suggestion.failure == "OverflowError"

    async def test_without_the_notes_shard_is_pending_because_nobody_can_find_it(self, gateway):
        await gateway.publish(Note("n", "harbor"))
        gateway.searcher.down = {0, 1}

        assert (await gateway.recommender.notes.details("n")).status == "pending"

    async def test_needs_the_store(self, gateway):
        gateway.store.down = True

        with pytest.raises(StoreUnavailable):
            await gateway.recommender.notes.details("n")


class TestStatus:
    async def test_counts_what_is_live_searchable_pending_and_failed(self, gateway):
        await gateway.publish(*notes(6))
        await gateway.store.put([StoredNote(Note("new", "tram"), 0)])
        [version] = await gateway.store.put([StoredNote(Note("poison", "tram"), 0)])
        gateway.store.jobs.pop()
        gateway.store.suggest("poison", Suggestion(version, FINGERPRINT, failure="OverflowError"))

        status = await gateway.recommender.status()

        assert (status.counts.live, status.searchable, status.pending, status.counts.failed) == (8, 6, 1, 1)
        assert (len(status.shards), status.shards_total) == (2, 2)
        assert status.freshness(0.5) is None

    async def test_counts_an_edited_note_as_pending_although_its_old_version_is_found(self, gateway):
        await gateway.publish(*notes(3))
        await gateway.store.put([StoredNote(Note("n0", "rewritten"), 0)])

        assert (await gateway.recommender.status()).pending == 1

    async def test_takes_freshness_by_nearest_rank(self, gateway):
        gateway.recommender.notes.freshness_s.extend(float(second) for second in range(200, 0, -1))

        status = await gateway.recommender.status()

        assert (status.freshness(0.5), status.freshness(0.99)) == (100.0, 198.0)
