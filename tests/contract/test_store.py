"""What every NoteStore promises, and what only the one on disk can."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from redis.asyncio import Redis
from support.redis import RedisServer

from indexer.types import IndexedVector
from model.note import Note
from model.text.suggestions import spelled
from service.errors import NotAsExpected, QueueFull, StoreUnavailable
from service.store.cells.ring import Cells
from service.store.connection import open_redis
from service.store.interfaces import Conflict, NoteStore, Suggestion, TooManyNames
from service.store.jobs import JobQueue
from service.store.memory import MemoryStore
from service.store.notes import RedisStore
from service.store.records import EmbedJob, StoredNote, StoredPrediction, decode_change
from service.store.schema import ACTIVE, ATTRIBUTES, DEAD, EMBEDDINGS, IDS, JOBS, MOST_ATTRIBUTE_NAMES, NOTE, TAG
from service.wiring import stores

KYOTO = StoredNote(
    Note("n1", "Three days in Kyoto", "Temples.", ("#Travel", "京都"), "Travel", 7),
    version=0,
    author="a1",
    created_at="2026-01-31T12:00:00Z",
)
BREAD = StoredNote(Note("n2", "Sourdough", "", ("baking",)), version=0)


# Of what a store of several cells promises in parts, see `test_cells`: a full queue, names at their bound, what is new.
as_a_whole = pytest.mark.parametrize("store", ["memory", "redis"], indirect=True)


@pytest.fixture(params=["memory", "redis", "cells"])
async def store(request: pytest.FixtureRequest, cells: Cells[Redis]) -> NoteStore:
    if request.param == "memory":
        return MemoryStore(max_queue=3)
    cells = cells if request.param == "cells" else Cells.of([cells.first])
    store = stores.note_store(cells, 3 * len(cells))
    store.queue = stores.job_queue(cells, "w0", "m", 16)
    await store.queue.open()
    return store


async def test_a_note_comes_back_as_it_was_written(store):
    assert await store.put([KYOTO]) == [1]
    assert await store.get(["n1", "unknown"]) == [replace(KYOTO, version=1), None]


async def test_the_same_body_again_keeps_the_version_and_queues_nothing(store):
    await store.put([KYOTO])

    assert await store.put([KYOTO]) == [1]
    assert (await store.counts("m")).queue_depth == 1


@pytest.mark.parametrize(
    "changed",
    [
        replace(KYOTO, author="a2"),
        replace(KYOTO, created_at=None),
        replace(KYOTO, note=replace(KYOTO.note, title="Four days in Kyoto")),
        replace(KYOTO, note=replace(KYOTO.note, exposure=8)),
        replace(KYOTO, note=replace(KYOTO.note, category=None)),
        replace(KYOTO, note=replace(KYOTO.note, hashtags=())),
        replace(KYOTO, attributes={"city": "Kyoto", "price": 3.5, "sale": True, "seasons": ("spring",)}),
        replace(KYOTO, language="en"),
        replace(KYOTO, hidden=True),
    ],
)
async def test_any_change_raises_the_version_by_one_and_queues_a_job(store, changed):
    await store.put([KYOTO])

    assert await store.put([changed]) == [2]
    assert await store.get(["n1"]) == [replace(changed, version=2)]
    assert (await store.counts("m")).queue_depth == 2


VECTOR = np.full(16, 0.25, np.float32)


async def predict(store: NoteStore, redis: Redis, vector: np.ndarray = VECTOR) -> None:
    """A worker: predicts for all that waits."""
    if isinstance(store, MemoryStore):
        for note_id, version in store.jobs:
            store.suggest(note_id, Suggestion(version, "m", (("temples", 0.5),)))
            store.predict(note_id, IndexedVector(version, vector))
        store.jobs.clear()
        return
    queue = getattr(store, "queue", None) or JobQueue(redis, "w0", "m", 16)
    claimed = await queue.claim(100, 0.1)
    predictions = [StoredPrediction(item.job.version, "m", vector, (("temples", 0.5),), None) for item in claimed]
    await queue.publish(list(zip(claimed, predictions, strict=True)))


MORE = replace(KYOTO, author="a2", attributes={"price": 3}, hidden=True, note=replace(KYOTO.note, exposure=9))


async def test_a_write_that_leaves_the_text_alone_takes_the_prediction_along(store, redis):
    await store.put([KYOTO])
    await predict(store, redis)

    assert await store.put([MORE, BREAD]) == [2, 1]
    assert await store.put([KYOTO]) == [3]
    assert (await store.counts("m")).queue_depth == 1
    assert (await store.suggestion("n1", "m")).version == 3
    found = await store.vector("n1", "m")
    assert (found.version, found.vector.tolist()) == (3, VECTOR.tolist())


@pytest.mark.parametrize(
    "changed",
    [
        replace(MORE, note=replace(MORE.note, title="Four days in Kyoto")),
        replace(MORE, note=replace(MORE.note, content="Markets.")),
        replace(MORE, note=replace(MORE.note, hashtags=("京都", "#Travel"))),
    ],
)
async def test_a_write_that_changes_the_text_waits_for_the_model(store, redis, changed):
    await store.put([KYOTO])
    await predict(store, redis)

    assert await store.put([changed]) == [2]
    assert (await store.counts("m")).queue_depth == 1
    assert (await store.vector("n1", "m")).version == 1


async def test_where_the_version_before_still_waits_the_new_one_does(store):
    await store.put([KYOTO])

    assert await store.put([MORE]) == [2]
    assert (await store.counts("m")).queue_depth == 2


@pytest.mark.parametrize("predicted", [False, True])
async def test_where_the_version_before_failed_the_new_one_waits(store, redis, predicted):
    """For a worker that could not read it, or for an index that refused its vector."""
    await store.put([KYOTO])
    if isinstance(store, MemoryStore):
        store.jobs.clear()
        store.suggest("n1", Suggestion(1, "", failure="too long"))
    else:
        queue = store.queue
        [item] = await queue.claim(1, 1)
        if predicted:
            await queue.publish([(item, StoredPrediction(1, "m", VECTOR, (), None))])
        await queue.dead_letter(item, "too long")

    assert await store.put([MORE]) == [2]
    assert (await store.counts("m")).queue_depth == 1


@pytest.mark.parametrize("dim", [1, 63, 64, 300, 16_384, 20_000])
async def test_a_vector_of_any_length_is_taken_along(redis: Redis, dim):
    store, queue = RedisStore(redis, max_queue=3), JobQueue(redis, "w0", "m", dim)
    await queue.open()
    await store.put([KYOTO])
    vector = np.linspace(-1, 1, dim, dtype=np.float32)
    await predict(store, redis, vector)

    await store.put([MORE])

    entries = [decode_change(cursor.decode(), fields) for cursor, fields in await redis.xrange(EMBEDDINGS)]
    assert [(change.version, change.hidden) for change in entries] == [(1, False), (2, True)]
    assert np.array_equal(entries[1].vector, vector)
    assert np.array_equal((await store.vector("n1", "m")).vector, vector)


async def test_of_several_models_each_takes_its_own_prediction_along_or_waits(redis: Redis):
    store = RedisStore(redis, max_queue=3)
    for model in ("m", "late"):
        await JobQueue(redis, "w0", model, 16).open()
    await store.put([KYOTO])
    await predict(store, redis)

    await store.put([MORE])

    assert [await redis.xlen(JOBS + model) for model in ("m", "late")] == [0, 2]
    assert (await store.vector("n1", "m")).version == 2
    assert await store.vector("n1", "late") is None


async def test_a_note_that_comes_back_after_its_delete_waits_for_the_model(store, redis):
    await store.put([KYOTO])
    await predict(store, redis)
    await store.delete("n1")

    assert await store.put([KYOTO]) == [3]
    assert (await store.counts("m")).queue_depth == 1


@as_a_whole
async def test_a_write_that_needs_no_job_is_taken_while_too_many_wait(store, redis):
    await store.put([KYOTO])
    await predict(store, redis)
    await store.put([carrying(f"w{number}") for number in range(3)])

    assert await store.put([MORE]) == [2]
    assert await store.put([MORE]) == [2]
    other = replace(MORE, note=replace(MORE.note, title="x"))
    for refused in ([carrying("w9")], [replace(KYOTO, author="a3"), other]):
        with pytest.raises(QueueFull):
            await store.put(refused)
    store._max_queue = 2  # set lower since
    assert await store.put([KYOTO]) == [3]
    store._max_queue = 4
    with pytest.raises(QueueFull):
        await store.put([other, KYOTO])  # both need the model, as nobody reads the one in between
    assert await store.get(["n1", "w9"]) == [replace(KYOTO, version=3), None]


async def test_a_type_that_differs_from_the_one_in_live_notes_is_refused_alone(store, redis):
    priced = replace(BREAD, attributes={"price": 3, "city": "Kyoto", "sale": True, "seasons": ("spring",)})
    assert await store.put([priced]) == [1]
    assert await store.attribute_types() == {"price": "number", "city": "string", "sale": "boolean", "seasons": "list"}

    others = [carrying("a"), replace(carrying("b"), attributes={"price": "3"}), carrying("c")]
    assert await store.put(others[:2]) == [1, Conflict("price", "number", "string")]
    assert await store.put([replace(priced, attributes={"sale": 1})]) == [Conflict("sale", "boolean", "number")]
    assert await store.put([replace(priced, attributes={"seasons": "x"})]) == [Conflict("seasons", "list", "string")]
    assert await store.get(["b", "n2"]) == [None, replace(priced, version=1)]
    assert await store.put([replace(others[2], attributes={"price": 4.5})]) == [1]

    await predict(store, redis)
    await store.delete("c")
    await store.put([BREAD])
    assert await store.attribute_types() == {}
    assert await store.put([others[1]]) == [1]
    assert await store.attribute_types() == {"price": "string"}


def named(id_: str, *numbers: int) -> StoredNote:
    return replace(carrying(id_), attributes={f"n{number}": number for number in numbers})


@as_a_whole
async def test_one_name_too_many_is_refused_alone_until_another_is_free(store):
    store._max_queue = MOST_ATTRIBUTE_NAMES
    most = range(MOST_ATTRIBUTE_NAMES - 1)
    await store.put([named(f"f{start}", *most[start : start + 32]) for start in most[::32]])
    assert await store.put([named("a", most[-1] + 1)]) == [1]
    assert len(await store.attribute_types()) == MOST_ATTRIBUTE_NAMES

    refused = [named("b", 5, 20_001, 20_000), named("f0", *most[:32], 20_002)]
    assert await store.put([*refused, named("c", 5)]) == [TooManyNames("n20000"), TooManyNames("n20002"), 1]
    assert await store.get(["b", "f0"]) == [None, replace(named("f0", *most[:32]), version=1)]
    assert await store.put([named("a", 20_003)]) == [2]  # in place of the name that only this note had
    assert await store.put([named("a", 20_003, 20_004)]) == [TooManyNames("n20004")]
    await store.delete("a")
    assert await store.put([named("b", 20_004)]) == [1]
    assert len(await store.attribute_types()) == MOST_ATTRIBUTE_NAMES


async def test_where_there_are_too_many_names_already_the_known_ones_may_be_written(redis):
    """As after a restore of a store that had no bound."""
    store = RedisStore(redis, max_queue=10)
    await store.put([named("a", 1, 2)])
    await redis.hset(ATTRIBUTES, mapping={f"number:m{number}": 1 for number in range(MOST_ATTRIBUTE_NAMES)})

    assert await store.put([named("a", 1), named("b", 1), named("c", 2)]) == [2, 1, TooManyNames("n2")]


async def test_a_hidden_note_counts_in_no_hashtag_and_comes_back(store):
    await store.put([carrying("n1", "Travel")])
    await store.put([replace(carrying("n1", "Travel"), hidden=True)])
    assert await store.spellings(["travel"]) == [None]
    assert (await store.counts("m")).live == 1

    await store.put([carrying("n1", "Travel")])
    assert await store.spellings(["travel"]) == ["Travel"]


async def test_what_was_detected_does_not_make_another_body(store):
    """As after an update that brought detection, or another detector: the same body again keeps its version."""
    for detected in (None, "en", "", None):
        assert await store.put([replace(KYOTO, detected=detected)]) == [1]
    assert (await store.counts("m")).queue_depth == 1
    assert await store.put([replace(KYOTO, language="en")]) == [2]


async def test_of_two_notes_with_one_id_in_one_call_the_later_wins(store):
    later = replace(BREAD, note=replace(BREAD.note, title="Rye"))

    assert await store.put([BREAD, KYOTO, later]) == [1, 1, 2]
    assert await store.get(["n2"]) == [replace(later, version=2)]


async def test_a_deleted_note_is_a_tombstone_without_text(store):
    await store.put([KYOTO])

    assert await store.delete("n1")
    assert await store.get(["n1"]) == [StoredNote(Note("n1"), version=2, deleted=True)]


async def test_a_second_delete_changes_nothing(store):
    await store.put([KYOTO])
    await store.delete("n1")
    tombstone = await store.get(["n1"])

    assert await store.delete("n1")
    assert await store.get(["n1"]) == tombstone


async def test_an_id_never_seen_cannot_be_deleted(store):
    assert not await store.delete("n1")
    assert await store.get(["n1"]) == [None]


async def test_a_note_written_again_after_its_delete_gets_the_next_version(store):
    await store.put([KYOTO])
    await store.delete("n1")

    assert await store.put([KYOTO]) == [3]
    assert await store.get(["n1"]) == [replace(KYOTO, version=3)]


async def test_a_write_that_expects_another_version_changes_nothing(store):
    await store.put([KYOTO])
    edited = replace(KYOTO, author="a2")

    for expected in (2, -1, "none"):
        with pytest.raises(NotAsExpected):
            await store.put([edited], expected)
        with pytest.raises(NotAsExpected):
            await store.delete("n1", expected)
    assert await store.get(["n1"]) == [replace(KYOTO, version=1)]
    assert await store.put([edited], 1) == [2]
    assert await store.put([KYOTO], "any") == [3]
    assert await store.delete("n1", 3)


async def test_a_note_that_is_not_there_or_deleted_is_at_no_version(store):
    for expected in (1, 2, "any"):
        with pytest.raises(NotAsExpected):
            await store.put([KYOTO], expected)
    assert await store.put([KYOTO], "none") == [1]
    await store.delete("n1")
    for expected in (1, 2, "any"):
        with pytest.raises(NotAsExpected):
            await store.put([KYOTO], expected)
    assert await store.put([KYOTO], "none") == [3]
    assert not await store.delete("never", 1)


@as_a_whole
async def test_a_view_tells_what_was_written_since_the_one_before(store):
    nothing = await store.view(["n1"], None)
    await store.put([KYOTO])
    first = await store.view(["n1", "n2"], None)
    await store.put([KYOTO])
    await store.put([BREAD])
    await store.delete("n1")
    second = await store.view(["n2"], first.cursor)
    third = await store.view([], second.cursor)

    assert (nothing.records, nothing.written, nothing.cursor) == ([None], None, None)
    assert (first.records, first.written) == ([replace(KYOTO, version=1), None], None)
    assert (second.records, second.written) == ([replace(BREAD, version=1)], ["n2", "n1"])
    assert (third.records, third.written, third.cursor) == ([], [], second.cursor)


async def test_counts_follow_writes_and_deletes(store):
    await store.put([KYOTO, BREAD])
    await store.delete("n2")
    counts = await store.counts("m")

    assert (counts.live, counts.failed, counts.queue_depth) == (1, 0, 2)
    assert counts.oldest_job_s >= 0.0


@as_a_whole
async def test_too_many_jobs_refuse_the_whole_write_and_store_none_of_it(store):
    await store.put([KYOTO, BREAD])

    with pytest.raises(QueueFull):
        await store.put([replace(BREAD, note=Note("n3", "a")), replace(BREAD, note=Note("n4", "b"))])
    assert await store.get(["n3", "n4"]) == [None, None]
    assert (await store.counts("m")).queue_depth == 2


def carrying(note_id: str, *hashtags: str) -> StoredNote:
    return StoredNote(Note(note_id, "A day out", hashtags=hashtags), version=0)


async def test_a_hashtag_is_in_use_as_long_as_a_live_note_carries_it(store):
    await store.put([carrying("n1", "#Travel", "京都"), carrying("n2", "Travel", "travel")])
    await store.delete("n1")
    assert await store.spellings(["travels", "#TRAVEL", "京都", "never"]) == ["Travel", "Travel", None, None]

    await store.put([carrying("n2")])
    assert await store.spellings(["travel"]) == [None]


async def test_pages_hold_the_live_notes_in_byte_order(store, redis):
    ids = ["a", "B", "a.1", "a-1", "~", "10", "9", "a:1", "_"]
    for note_id in ids:
        await store.put([carrying(note_id)])
        await predict(store, redis)
    await store.put([replace(carrying("hidden"), hidden=True), carrying("gone")])
    await store.delete("gone")
    in_order = sorted([*ids, "hidden"])

    everything = await store.page("", 100)
    assert [record.note.id for record in everything.records] == in_order
    assert (everything.last, everything.records[-2].hidden) == (None, True)

    after, found = "", []
    while after is not None:
        page = await store.page(after, 3)
        found.append([record.note.id for record in page.records])
        after = page.last
    assert found == [in_order[:3], in_order[3:6], in_order[6:9], in_order[9:]]
    assert (await store.page("", 10)).last is None
    assert [record.note.id for record in (await store.page("a.0", 1)).records] == ["a.1"]
    assert (await store.page("~", 5)).records == []

    await store.put([replace(KYOTO, note=replace(KYOTO.note, id="gone"))])
    assert [record.note.id for record in (await store.page("b", 1)).records] == ["gone"]


async def test_every_note_that_stays_is_met_once_whatever_is_written_to_others(store, redis):
    rng = random.Random(3)
    stays = {f"n{number:03}" for number in range(0, 60, 2)}
    others = [f"n{number:03}" for number in range(1, 60, 2)]
    for note_id in stays:
        await store.put([carrying(note_id)])
        await predict(store, redis)
    for _ in range(5):
        after, met = "", []
        while after is not None:
            page = await store.page(after, 7)
            met += [record.note.id for record in page.records]
            after = page.last
            for note_id in rng.sample(others, 3):
                await (store.delete(note_id) if rng.random() < 0.5 else store.put([carrying(note_id)]))
            await predict(store, redis)
        assert met == sorted(set(met))
        assert stays <= set(met)


async def test_the_ids_of_an_older_releases_store_are_listed_at_the_start(redis: Redis):
    store = RedisStore(redis, max_queue=10_000)
    await store.put([carrying(f"n{number}") for number in range(1200)])
    await store.delete("n7")
    await redis.delete(IDS)
    with pytest.raises(StoreUnavailable, match="being made"):
        await store.page("", 10)

    await redis.zadd(IDS, {"n7": 0, "n8": 0})  # of a start that was killed, and of a delete since then
    await asyncio.gather(store.index_ids(), store.index_ids())

    ids = [member.decode() for member in await redis.zrange(IDS, 0, -1)]
    assert ids == sorted(f"n{number}" for number in range(1200) if number != 7)
    assert len((await store.page("", 1000)).records) == 1000


async def test_a_damaged_record_is_left_out_of_its_page(redis: Redis):
    store = RedisStore(redis, max_queue=10)
    await store.put([carrying("n1"), carrying("n2"), carrying("n3")])
    await redis.set(NOTE + "n2", b"\x81")

    page = await store.page("", 2)
    assert ([record.note.id for record in page.records], page.last) == (["n1"], "n2")


async def test_the_spelling_of_most_live_notes_wins_and_a_note_counts_once(store):
    await store.put([carrying("n1", "Street Food", "streetfood", "StreetFoods"), carrying("n2", "street food")])
    assert await store.spellings(["streetfood"]) == ["street_food"]

    await store.put([carrying("n1", "street-food", "StreetFood")])
    assert await store.spellings(["street_foods"]) == ["street_food"]


async def test_between_spellings_of_as_many_notes_small_letters_win(store):
    await store.put([carrying("n1", "Kyoto"), carrying("n2", "kyoto"), carrying("n3", "KYOTO")])

    assert await store.spellings(["kyoto"]) == ["kyoto"]


async def test_what_is_no_hashtag_is_never_a_spelling(store):
    await store.put([carrying("n1", "c++", "<b>sea</b>", "x" * 41, "a\u202eb")])

    assert await store.spellings(["c++", "c", "sea", "b", "x" * 41, "ab"]) == [None] * 6


async def test_nothing_asked_is_nothing_answered(store):
    assert await store.put([]) == []
    assert await store.get([]) == []
    assert await store.spellings([]) == []
    assert await store.suggestion("n1", "m") is None


async def test_concurrent_writes_of_one_note_get_versions_without_gap_or_repeat(redis: Redis):
    store = RedisStore(redis, max_queue=1000)
    await JobQueue(redis, "w0", "m", 16).open()
    bodies = [replace(KYOTO, note=replace(KYOTO.note, title=f"Day {day}")) for day in range(100)]

    versions = await asyncio.gather(*(store.put([body]) for body in bodies))

    assert sorted(version for [version] in versions) == list(range(1, 101))
    jobs = [EmbedJob.decode(fields) for _, fields in await redis.xrange(JOBS + "m")]
    assert jobs == [EmbedJob("n1", version) for version in range(1, 101)]


async def test_a_delete_is_announced_once_with_its_version_and_the_active_model(redis: Redis):
    store = RedisStore(redis, max_queue=10)
    await redis.set(ACTIVE, "model-a")
    await store.put([KYOTO])
    await store.delete("n1")
    await store.delete("n1")

    [(cursor, fields)] = await redis.xrange(EMBEDDINGS)
    change = decode_change(cursor.decode(), fields)
    assert (change.id, change.version, change.fingerprint, change.vector) == ("n1", 2, "model-a", None)


async def test_a_script_that_redis_forgot_is_sent_again(redis: Redis):
    store = RedisStore(redis, max_queue=10)
    await store.put([KYOTO])
    await redis.script_flush()

    assert await store.put([BREAD]) == [1]


async def test_text_that_is_no_unicode_is_refused_before_anything_is_stored(redis: Redis):
    store = RedisStore(redis, max_queue=10)

    with pytest.raises(ValueError, match="surrogates"):
        await store.put([BREAD, replace(KYOTO, note=replace(KYOTO.note, title="\ud800"))])
    assert await redis.dbsize() == 0


async def test_a_redis_that_takes_no_writes_is_unavailable(redis: Redis):
    store = RedisStore(redis, max_queue=10)
    await store.put([KYOTO])
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable):
            await store.put([BREAD])
        assert await store.get(["n1", "n2"]) == [replace(KYOTO, version=1), None]
    finally:
        await redis.config_set("maxmemory", "0")
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(StoreUnavailable):
            await store.delete("n1")
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")


async def test_a_mistake_of_ours_is_not_called_unavailable(redis: Redis):
    store = RedisStore(redis, max_queue=10)
    await redis.xadd(DEAD, {"a": "b"})
    await redis.rename(DEAD, TAG + "travel")

    with pytest.raises(Exception, match="WRONGTYPE"):
        await store.spellings(["travel"])


async def test_the_vocabulary_is_that_of_the_live_notes_after_any_history(redis: Redis):
    """Random writes, edits and deletes; the counts are those that the records say, and nothing is left behind.

    So are the ids and the attributes.
    """
    store, rng = RedisStore(redis, max_queue=10_000), random.Random(7)
    written = ["Sea", "sea", "SEAS", "Street Food", "street-food", "streetfood", "京都", "news", "new", "c++", "न्यूज़"]
    ids = [f"n{number}" for number in range(12)]
    for _ in range(400):
        note_id = rng.choice(ids)
        if rng.random() < 0.3:
            await store.delete(note_id)
        else:
            note = carrying(note_id, *rng.sample(written, rng.randint(0, 4)))
            attributes = {
                name: rng.choice([1, 2.5, "a", True, ("a", "b")]) for name in rng.sample("abc", rng.randint(0, 2))
            }
            await store.put([replace(note, hidden=rng.random() < 0.3, attributes=attributes)])

    live = [record for record in await store.get(ids) if record and not record.deleted]
    assert [member.decode() for member in await redis.zrange(IDS, 0, -1)] == sorted(record.note.id for record in live)
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", tuple: "list"}
    carried = Counter(f"{kinds[type(value)]}:{name}" for record in live for name, value in record.attributes.items())
    assert {key.decode(): int(count) for key, count in (await redis.hgetall(ATTRIBUTES)).items()} == carried
    assert len(await store.attribute_types()) == len(carried)
    expected: dict[str, Counter[str]] = {}
    for note in (record.note for record in live if not record.hidden):
        for key, spelling in spelled(note.hashtags).items():
            expected.setdefault(TAG + key, Counter())[spelling] += 1
    found = {key.decode(): await redis.zrange(key, 0, -1, withscores=True) for key in await redis.keys(TAG + "*")}
    assert {key: {name.decode(): count for name, count in pairs} for key, pairs in found.items()} == expected

    for note_id in ids:
        await store.delete(note_id)
    assert await redis.keys(TAG + "*") == []
    assert await redis.exists(IDS, ATTRIBUTES) == 0


async def test_a_record_of_an_older_release_is_the_same_note(redis: Redis):
    """Written before attributes, languages and hidden notes: read, and the same body again changes nothing."""
    store = RedisStore(redis, max_queue=10)
    await store.put([KYOTO])
    old = {name: value for name, value in msgpack.unpackb(await redis.get(NOTE + "n1")).items() if name != "detected"}
    assert list(old)[:3] == ["version", "deleted", "id"]
    assert set(list(old)[3:]) == {
        "title", "content", "hashtags", "category", "exposure", "author", "created_at", "tags",
    }  # fmt: skip

    [found] = await store.get(["n1"])
    assert (found.attributes, found.language, found.hidden, found.detected) == ({}, None, False, None)
    assert found.detected_language == "en"
    assert await store.put([replace(KYOTO, detected="en")]) == [1]


async def test_kill_9_loses_nothing_that_was_acknowledged():
    server = RedisServer()
    server.start()
    acknowledged: dict[str, int] = {}
    try:
        client = open_redis(server.url)
        await JobQueue(client, "w0", "m", 16).open()
        store = RedisStore(client, max_queue=100_000)

        async def write(writer: int) -> None:
            for number in range(100_000):
                note_id = f"n{writer}-{number}"
                [acknowledged[note_id]] = await store.put([StoredNote(Note(note_id, "text"), 0)])

        writers = [asyncio.create_task(write(writer)) for writer in range(8)]
        while len(acknowledged) < 200:
            await asyncio.sleep(0.01)
        server.kill()
        ended = await asyncio.gather(*writers, return_exceptions=True)
        assert {type(end) for end in ended} == {StoreUnavailable}

        server.start()
        records = await store.get(list(acknowledged))
        queued = {EmbedJob.decode(fields) for _, fields in await client.xrange(JOBS + "m")}
        await client.aclose()
    finally:
        server.close()
    assert [record and record.version for record in records] == list(acknowledged.values())
    assert {EmbedJob(note_id, version) for note_id, version in acknowledged.items()} <= queued


async def test_the_vector_of_a_note_is_that_of_the_models_last_prediction(redis):
    """The twin's is told to it; see `MemoryStore.predict`."""
    store, queue = RedisStore(redis, max_queue=3), JobQueue(redis, "w0", "m", 2)
    await queue.open()
    await store.put([KYOTO])
    assert await store.vector("n1", "m") is None
    [item] = await queue.claim(1, 1)
    vector = np.array([0.6, 0.8], np.float32)
    await queue.publish([(item, StoredPrediction(1, "m", vector, (), None))])
    found = await store.vector("n1", "m")
    assert (found.version, found.vector.tolist()) == (1, vector.tolist())
    assert await store.vector("n1", "other") is None
    await store.delete("n1")
    assert await store.vector("n1", "m") is None
