"""What the stores promise over three cells beside the contracts that they share with those of one."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from redis.asyncio import Redis
from support.redis import RedisServer

from model.note import Note
from service.errors import KeyReused, QueueFull, StoreUnavailable
from service.settings import SetupError
from service.store.cells.ring import Cells, names
from service.store.cells.size import check_size, check_size_sync
from service.store.changes import START, RedisChangeStream
from service.store.connection import open_redis, open_sync_redis
from service.store.idempotency import RedisAnswers
from service.store.interfaces import Answer, Conflict, TooManyNames
from service.store.records import Event, StoredNote, StoredPrediction
from service.store.schema import (
    ACTIVE,
    ATTRIBUTES,
    CELLS,
    EMBEDDINGS,
    EXPOSURE,
    IDS,
    JOBS,
    MODELS,
    MOST_ATTRIBUTE_NAMES,
    NOTE,
    TYPES,
)
from service.wiring import stores

MODEL = "m"
VECTOR = np.array([0.6, 0.8], dtype=np.float32)
IDS_OF_ALL = [f"n{number}" for number in range(12)]  # in every cell some


def note(note_id: str, title: str = "", **attributes: object) -> StoredNote:
    return StoredNote(Note(note_id, title or note_id, hashtags=("Kyoto",)), 0, attributes=attributes)


def cell_of(cells: Cells[Redis], number: int) -> list[str]:
    """The ids of a cell."""
    return [note_id for note_id in IDS_OF_ALL if cells.place_of(note_id) == number]


async def read(cells: Cells[Redis], model: str = MODEL) -> list[str]:
    """A worker, which publishes all that waits."""
    queue = stores.job_queue(cells, "w0", model, len(VECTOR))
    await queue.open()
    done: list[str] = []
    while claimed := await queue.claim(5, 0.01):
        said = [StoredPrediction(item.job.version, model, VECTOR, (), None) for item in claimed]
        await queue.publish(list(zip(claimed, said, strict=True)))
        done += [item.job.note_id for item in claimed]
    return sorted(done)


@pytest.fixture
def clients(redis_server: RedisServer, cells: Cells[Redis]) -> Iterator[Cells]:
    with stores.open_sync_cells(redis_server.url, len(cells)) as opened:
        yield opened


@pytest.fixture
def stream(clients: Cells) -> RedisChangeStream:
    return stores.change_stream(clients, MODEL, "first")


async def test_a_note_and_all_of_it_is_in_the_cell_of_its_id(cells):
    store = stores.note_store(cells, 100)
    await read(cells)
    await store.put([note(note_id) for note_id in IDS_OF_ALL])

    for number, redis in enumerate(cells):
        own = cell_of(cells, number)
        assert own
        assert [member.decode() for member in await redis.zrange(IDS, 0, -1)] == sorted(own)
        assert await redis.xlen(JOBS + MODEL) == len(own)
    assert await cells.first.exists(*(NOTE + note_id for note_id in cell_of(cells, 1))) == 0


async def test_with_one_cell_the_stores_are_those_that_they_were(redis):
    one = Cells.of([redis])

    made = stores.note_store(one, 1), stores.hashtag_store(one), stores.event_log(one), stores.registry(one)
    named = {type(store).__name__ for store in (*made, stores.job_queue(one, "w", MODEL, 2), stores.exposure(one))}

    assert named == {"RedisStore", "RedisHashtags", "RedisEvents", "Registry", "JobQueue", "Exposure"}
    assert names(1) == ["c00"]
    await check_size(redis, 1)
    assert await redis.keys("*") == []


async def test_a_process_that_is_told_another_number_is_refused(redis_server, cells):
    await check_size(cells.first, 3)
    await check_size(cells.first, 3)

    for number in (1, 2, 4):
        with pytest.raises(SetupError, match=r"^the store has 3 cells and NOTELLM_CELLS is \d: set it to 3, or move"):
            await check_size(cells.first, number)
        with open_sync_redis(redis_server.url) as redis, pytest.raises(SetupError, match="the store has 3 cells"):
            check_size_sync(redis, number)


async def test_a_store_of_one_cell_does_not_become_one_of_several(redis):
    await stores.note_store(Cells.of([redis]), 10).put([note("n1")])

    with pytest.raises(SetupError, match="the store has 1 cell and NOTELLM_CELLS is 3: set it to 1, or move"):
        await check_size(redis, 3)
    assert not await redis.exists(CELLS)


class TestJobs:
    """A queue over several cells."""

    async def test_a_worker_takes_jobs_of_all_cells_and_each_once(self, cells):
        await read(cells)
        await stores.note_store(cells, 100).put([note(note_id) for note_id in IDS_OF_ALL])

        assert await read(cells) == sorted(IDS_OF_ALL)
        assert (await stores.registry(cells).progress(MODEL)).predicted == len(IDS_OF_ALL)
        assert await read(cells) == []

    async def test_whoever_takes_one_at_a_time_starves_no_cell(self, cells):
        queue = stores.job_queue(cells, "w0", MODEL, 2)
        await queue.open()
        await stores.note_store(cells, 100).put([note(note_id) for note_id in IDS_OF_ALL])

        met = {cells.place_of(item.job.note_id) for _ in range(3) for item in await queue.claim(1, 1.0)}

        assert met == {0, 1, 2}

    async def test_a_job_that_comes_while_it_waits_is_claimed(self, cells):
        queue, store = stores.job_queue(cells, "w0", MODEL, 2), stores.note_store(cells, 100)
        await queue.open()
        [claimed], _ = await stores.gathered([queue.claim(10, 5.0), store.put([note(cell_of(cells, 2)[0])])])

        assert cells.place_of(claimed.job.note_id) == 2
        assert 0 <= claimed.queued_s < 5

    async def test_what_another_worker_left_is_reclaimed_and_dead_lettered_in_its_cell(self, cells):
        first = stores.job_queue(cells, "w0", MODEL, 2)
        await first.open()
        await stores.note_store(cells, 100).put([note(note_id) for note_id in IDS_OF_ALL])
        left = await first.claim(100, 0.1)
        await first.release([item.entry for item in left[1:]])
        await first.dead_letter(left[0], "bad")

        second, again = stores.job_queue(cells, "w1", MODEL, 2), []
        await second.open()
        while await second.has_abandoned():
            again += (some := await second.reclaim(100))
            await second.finish([item.entry for item in some])

        assert sorted(item.job.note_id for item in again) == sorted(item.job.note_id for item in left[1:])
        assert (await stores.note_store(cells, 100).counts(MODEL)).failed == 1
        assert await stores.registry(cells).dead_lettered(MODEL, IDS_OF_ALL) == 1


class TestChanges:
    """The streams of several cells as one."""

    async def test_every_change_is_read_once_and_a_cursor_goes_on_behind_it(self, cells, stream):
        store = stores.note_store(cells, 100)
        await read(cells)
        await store.put([note(note_id) for note_id in IDS_OF_ALL])
        await read(cells)
        await store.delete("n3")

        met, cursor = [], START
        while changes := stream.read(cursor, 5, 0):
            assert len(changes) <= 5
            again = stream.read(changes[0].cursor, 100, 0)
            assert changes[0].id not in {change.id for change in again if change.version == changes[0].version}
            met += [(change.id, change.version) for change in changes]
            cursor = changes[-1].cursor

        assert sorted(met) == sorted([*((note_id, 1) for note_id in IDS_OF_ALL), ("n3", 2)])
        assert met.index(("n3", 1)) < met.index(("n3", 2))
        assert stream.lag(cursor) == (0, 0.0)
        assert stream.lag(START)[0] == len(met)
        assert stream.holds(cursor)

    async def test_the_time_of_a_cursor_is_that_of_its_last_change(self, cells, stream):
        await read(cells)
        await stores.note_store(cells, 100).put([note(note_id) for note_id in IDS_OF_ALL])
        await read(cells)

        for change in stream.read(START, 100, 0):
            cell, _, entry = change.cursor.split(",")[0].partition(":")
            redis = cells.each[int(cell)]
            [(_, fields)] = await redis.xrange(EMBEDDINGS, entry, entry)
            assert fields[b"id"].decode() == change.id

    async def test_a_cell_without_a_change_is_held_as_long_as_the_stream_is_kept(self, cells, stream):
        store = stores.note_store(cells, 100)
        await read(cells)
        await store.put([note(cell_of(cells, 0)[0])])
        await read(cells)
        cursor, _ = stream.everything()
        assert not stream.holds(cursor)  # nobody keeps the other streams for it yet
        stream.keep(cursor)
        assert stream.holds(cursor)

        await store.put([note(note_id) for note_id in IDS_OF_ALL])
        await read(cells)
        assert len(stream.read(cursor, 100, 0)) == len(IDS_OF_ALL) - 1
        assert stream.holds(cursor)

    @pytest.mark.parametrize("cell", [0, 1, 2])
    async def test_a_cut_in_any_cell_is_noticed(self, cells, stream, cell):
        await read(cells)
        await stores.note_store(cells, 100).put([note(note_id) for note_id in IDS_OF_ALL])
        await read(cells)
        cursor, changes = stream.everything()
        assert sorted(change.id for change in changes) == sorted(IDS_OF_ALL)
        stream.keep(cursor)
        assert stream.holds(cursor)

        await cells.each[cell].delete(EMBEDDINGS)

        assert not stream.holds(cursor)

    async def test_a_snapshot_of_one_cell_or_of_another_number_is_held_by_none(self, cells, stream):
        await read(cells)
        await stores.note_store(cells, 100).put([note(note_id) for note_id in IDS_OF_ALL])
        await read(cells)
        [(entry, _)] = await cells.first.xrange(EMBEDDINGS, count=1)
        cursor, _ = stream.everything()

        assert not stream.holds(entry.decode())
        assert not stream.holds(",".join(cursor.split(",")[:2]))
        assert not stream.holds(cursor + ",3:5-0")
        assert stream.lag(entry.decode())[0] == len(IDS_OF_ALL)


class TestRegistry:
    """Models in several cells."""

    async def test_all_cells_follow_the_first(self, cells):
        await stores.note_store(cells, 100).put([note(note_id) for note_id in IDS_OF_ALL])
        for model in ("old", "new"):
            assert await stores.job_queue(cells, "w0", model, 2).open() == len(IDS_OF_ALL)
        registry = stores.registry(cells)

        assert await registry.activate("new")
        assert [await redis.get(ACTIVE) for redis in cells] == [b"new"] * 3
        await cells.first.set(ACTIVE, "old")  # as a worker does that takes it back
        await registry.follow()
        assert [await redis.get(ACTIVE) for redis in cells] == [b"old"] * 3

    async def test_a_model_is_retired_everywhere_or_can_be_again(self, cells, monkeypatch):
        for model in ("old", "new"):
            await stores.job_queue(cells, "w0", model, 2).open()
        registry = stores.registry(cells)
        assert not await registry.retire("old")
        assert [await redis.hlen(MODELS) for redis in cells] == [2, 2, 2]

        async def fails(_: str) -> bool:
            raise StoreUnavailable("away")

        with monkeypatch.context() as patched:
            patched.setattr(registry._cells.each[2], "retire", fails)
            with pytest.raises(StoreUnavailable):
                await registry.retire("new")
        assert "new" in (await registry.registered()).dims
        assert await registry.retire("new")
        assert [await redis.hkeys(MODELS) for redis in cells] == [[b"old"]] * 3


class TestWrites:
    """Idempotent writes, types of attributes, exposure."""

    async def test_a_write_whose_answer_was_lost_is_repeated_and_made_once(self, cells):
        answers, store = RedisAnswers(cells.first), stores.note_store(cells, 100)
        runs = 0

        async def write() -> Answer:
            nonlocal runs
            runs += 1
            versions = await store.put([note(note_id, f"run {runs}") for note_id in IDS_OF_ALL])
            if runs == 1:
                raise StoreUnavailable("the answer was lost")
            return Answer(202, repr(versions).encode())

        with pytest.raises(StoreUnavailable):
            await answers.once("k", b"request", write)
        answer, _ = await answers.once("k", b"request", write)

        assert answer.body == repr([1] * len(IDS_OF_ALL)).encode()
        assert {found.note.title for found in await store.get(IDS_OF_ALL)} == {"run 1"}
        with pytest.raises(KeyReused):
            await answers.once("k", b"other", write)

    async def test_another_request_never_gets_the_outcome_of_one_that_failed(self, cells):
        """Its key is free again where nothing was written in the first cell."""
        answers, store = RedisAnswers(cells.first), stores.note_store(cells, 100)
        note_id = cell_of(cells, 1)[0]

        async def write(title: str, *, fails: bool = False) -> Answer:
            await store.put([note(note_id, title)])
            if fails:
                raise StoreUnavailable("the answer was lost")
            return Answer(202, b"")

        with pytest.raises(StoreUnavailable):
            await answers.once("k", b"one", lambda: write("one", fails=True))
        await answers.once("k", b"other", lambda: write("other"))

        [found] = await store.get([note_id])
        assert (found.note.title, found.version) == ("other", 2)

    async def test_an_attribute_has_one_type_in_all_cells(self, cells):
        store = stores.note_store(cells, 100)
        [one], [other, *_] = cell_of(cells, 1)[:1], cell_of(cells, 2)
        assert await store.put([note(one, price=3.5, city="Kyoto")]) == [1]

        assert await store.put([note(other, price="cheap")]) == [Conflict("price", "number", "string")]
        assert await store.attribute_types() == {"price": "number", "city": "string"}
        assert await store.put([note(other, city="Osaka")]) == [1]
        await store.delete(one)
        assert await store.put([note(other, price="cheap", city="Osaka")]) == [2]
        assert await store.attribute_types() == {"price": "string", "city": "string"}
        assert {name: kind async for name, kind in cells.first.hscan_iter(TYPES)} == {
            b"price": b"string",
            b"city": b"string",
        }

    async def test_names_of_attributes_are_bounded_over_all_cells(self, cells):
        """A claim that no live note has any longer makes room."""
        store, [one, other] = stores.note_store(cells, 100), (cell_of(cells, number)[0] for number in (1, 2))
        await store.put([note(one, price=1)])
        taken = {f"n{number}": 1 for number in range(MOST_ATTRIBUTE_NAMES - 1)}
        await cells.first.hset(TYPES, mapping=dict.fromkeys(taken, "number"))
        await cells.each[1].hset(ATTRIBUTES, mapping={f"number:{name}": 1 for name in taken})

        assert await store.put([note(other, price=2), note("n9", new=1)]) == [1, TooManyNames("new")]
        await cells.each[1].hdel(ATTRIBUTES, "number:n7")
        assert await store.put([note("n9", new=1)]) == [1]
        assert await store.put([note("n8", n7=1)]) == [TooManyNames("n7")]

    async def test_of_a_full_queue_each_cell_has_its_part_and_the_others_take_writes(self, cells):
        await read(cells)
        store = stores.note_store(cells, 3)
        await store.put([note(cell_of(cells, number)[0]) for number in (0, 1)])

        with pytest.raises(QueueFull):
            await store.put([note(cell_of(cells, 0)[1]), note(cell_of(cells, 2)[0])])
        found = await store.get([cell_of(cells, 0)[1], cell_of(cells, 2)[0]])
        assert [record and record.version for record in found] == [None, 1]

    async def test_what_readers_saw_counts_in_the_cell_of_the_note_once(self, cells):
        store, events = stores.note_store(cells, 100), stores.event_log(cells)
        await store.put([note(note_id) for note_id in IDS_OF_ALL])
        shown = [Event(f"e {note_id}", "u", note_id, "view", time.time()) for note_id in IDS_OF_ALL]
        unknown = Event("e x", "u", "unknown", "view", time.time())

        assert await events.append([*shown, unknown]) == len(shown) + 1
        assert await events.append([*shown, Event("e2", "u", "n1", "like", time.time())]) == 1

        assert [found.exposure for found in await store.get(IDS_OF_ALL)] == [1] * len(IDS_OF_ALL)
        assert sorted(await events.seen("u")) == sorted([*IDS_OF_ALL, "unknown"])
        assert sum([await redis.hlen(EXPOSURE) for redis in cells]) == len(IDS_OF_ALL)
        await events.erase("u")
        assert await events.seen("u") == []

    async def test_a_cache_hears_of_the_writes_of_all_cells(self, cells):
        store = stores.note_store(cells, 100)
        assert (await store.view([], None)).cursor is None
        await store.put([note(cell_of(cells, 0)[0])])
        cursor = (await store.view([], None)).cursor
        again = await store.view([], cursor)
        assert (again.written, again.cursor) == ([], cursor)

        first = await store.view([], cursor)
        await store.put([note(cell_of(cells, 1)[0])])
        # What was the first write of a cell cannot be told from a stream that begins anew.
        assert (await store.view([], first.cursor)).written is None
        cursor = (await store.view([], None)).cursor
        await store.put([note(cell_of(cells, 0)[1]), note(cell_of(cells, 1)[1])])
        found = await store.view(["unknown", cell_of(cells, 1)[1]], cursor)
        assert sorted(found.written) == sorted([cell_of(cells, 0)[1], cell_of(cells, 1)[1]])
        assert [record and record.note.id for record in found.records] == [None, cell_of(cells, 1)[1]]


async def test_without_one_of_the_cells_what_needs_it_is_unavailable(cells):
    store = stores.note_store(Cells.of([*cells.each[:2], open_redis("unix:///nowhere")]), 100)

    assert await store.put([note(cell_of(cells, 0)[0])]) == [1]
    for call in (store.get(IDS_OF_ALL), store.page("", 5), store.view([], None), store.spellings(["kyoto"])):
        with pytest.raises(StoreUnavailable):
            await call
