"""The worker on a real Redis, with a model that hashes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.hashing import BAD, HashingBackend, text_vector
from support.redis import RedisServer

from indexer import rpc
from indexer.types import Change
from model.backends.base import Prompt, Reading, Scored
from model.note import Note
from service.drafts import WorkerPool, draft_handlers
from service.errors import WorkerUnavailable
from service.messages import (
    DEAD,
    EMBEDDINGS,
    FINGERPRINT,
    JOBS,
    WORKERS,
    EmbedJob,
    Failure,
    StoredReading,
    decode_change,
)
from service.store import RedisStore, StoredNote, Suggestion, open_redis
from service.streams import JobQueue, RedisChangeStream, open_sync_redis
from service.worker import MAX_DELIVERIES, Engine, Worker


def stored(note_id: str, title: str = "Kyoto by bus") -> StoredNote:
    return StoredNote(Note(note_id, title), 0)


@asynccontextmanager
async def working(backend: HashingBackend, redis: Redis, consumer: str = "w0", **queue: float) -> AsyncIterator[Worker]:
    """A worker that can be stepped; `run` is up to the test."""
    engine = Engine(backend, max_batch_tokens=64, max_drafts=4)
    async with engine.running():
        yield Worker(engine, JobQueue(redis, consumer, **queue), hashtags=5)


async def drain(backend: HashingBackend, redis: Redis, **options: object) -> None:
    """One worker's life: work until nothing is left."""
    async with working(backend, redis, **options) as worker:
        running = asyncio.create_task(worker.run())
        await until(lambda: idle(redis, backend.fingerprint))
        worker.stop()
        await running


async def idle(redis: Redis, fingerprint: str) -> bool:
    """A worker of this model is at work, and nothing waits for it."""
    return await redis.get(FINGERPRINT) == fingerprint.encode() and await redis.xlen(JOBS) == 0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def changes(redis: Redis) -> list[Change]:
    """Everything that was announced to the index."""
    return [decode_change(cursor.decode(), fields) for cursor, fields in await redis.xrange(EMBEDDINGS)]


@pytest.fixture
def store(redis: Redis) -> RedisStore:
    return RedisStore(redis, max_queue=10_000)


async def test_a_stored_note_is_read_published_and_its_job_is_gone(redis, store):
    await store.put([stored("n1")])
    await drain(HashingBackend(), redis)

    [change] = await changes(redis)
    assert (change.id, change.version, change.fingerprint) == ("n1", 1, "hashing-a")
    assert np.array_equal(change.vector, text_vector("hashing-aKyoto by bus"))
    assert await store.suggestion("n1") == Suggestion(
        1, "hashing-a", (("Kyoto", 0.9), ("by", 0.45), ("bus", 0.9 / 3)), ("Travel", 0.8)
    )
    assert (await redis.xpending(JOBS, WORKERS))["pending"] == 0


async def test_every_note_is_read_once_in_batches_within_the_budget_and_on_one_thread(redis, store):
    titles = {f"n{i}": "word " * (1 + i % 13) for i in range(300)}
    await store.put([stored(note_id, title) for note_id, title in titles.items()])
    backend = HashingBackend()
    await drain(backend, redis)

    assert sorted(change.id for change in await changes(redis)) == sorted(titles)
    assert all(len(batch) * max(map(len, batch)) <= 64 or len(batch) == 1 for batch in backend.batches)
    assert sum(map(len, backend.batches)) == 300
    assert len(backend.batches) < 300
    assert len(backend.threads) == 1


async def test_jobs_of_overwritten_and_deleted_notes_are_finished_without_the_model(redis, store):
    await store.put([stored("n1", "old"), stored("n2", "gone"), stored("n1", "new")])
    await store.delete("n2")
    backend = HashingBackend()
    await drain(backend, redis)

    assert backend.batches == [["new"]]
    assert [(change.id, change.version, change.vector is None) for change in await changes(redis)] == [
        ("n2", 2, True),
        ("n1", 2, False),
    ]


@pytest.mark.parametrize("meanwhile", ["written again", "deleted"])
async def test_a_note_that_changes_while_it_is_read_is_not_published(redis, store, meanwhile):
    await store.put([stored("n1", "old")])
    queue = JobQueue(redis, "w0")
    await queue.open("hashing-a")
    [item] = await queue.claim(10, 0.1)
    await (store.delete("n1") if meanwhile == "deleted" else store.put([stored("n1", "new")]))
    await queue.publish([(item, StoredReading(1, "hashing-a", text_vector("old"), (), None))])

    assert all(change.vector is None for change in await changes(redis))
    assert await store.suggestion("n1") is None
    assert (await redis.xpending(JOBS, WORKERS))["pending"] == 0


async def test_a_worker_that_dies_between_claim_and_publish_leaves_nothing_undone_or_done_twice(redis, store):
    await store.put([stored("n1"), stored("n2")])
    dead = JobQueue(redis, "w0")
    await dead.open("hashing-a")
    assert len(await dead.claim(10, 0.1)) == 2

    await drain(HashingBackend(), redis)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n2"]


async def test_what_a_dead_worker_held_is_taken_over_by_another(redis, store):
    await store.put([stored("n1"), stored("n2")])
    dead = JobQueue(redis, "dead")
    await dead.open("hashing-a")
    await dead.claim(10, 0.1)
    await asyncio.sleep(0.02)

    await drain(HashingBackend(), redis, consumer="w1", take_over_s=0.01)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n2"]


async def test_publishing_twice_announces_once(redis, store):
    await store.put([stored("n1")])
    queue = JobQueue(redis, "w0")
    await queue.open("hashing-a")
    [item] = await queue.claim(10, 0.1)
    reading = StoredReading(1, "hashing-a", text_vector("x"), (), None)

    assert [await queue.publish([(item, reading)]) for _ in range(3)] == [1, 0, 0]
    assert len(await changes(redis)) == 1


async def test_a_poison_note_goes_to_the_dead_letters_and_the_others_are_read(redis, store):
    await store.put([stored("n1"), stored("n2", f"secret{BAD}"), stored("n3")])
    await drain(HashingBackend(), redis)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n3"]
    assert await store.suggestion("n2") == Suggestion(1, "", failure=r"RuntimeError: cannot read '\x07'")
    [(_, letter)] = await redis.xrange(DEAD)
    assert letter == {b"id": b"n2", b"version": b"1", b"reason": rb"RuntimeError: cannot read '\x07'"}
    assert (await store.counts()).failed == 1


async def test_a_repaired_note_is_no_longer_failed(redis, store):
    await store.put([stored("n1", BAD)])
    await drain(HashingBackend(), redis)
    await store.put([stored("n1", "good")])

    assert (await store.counts()).failed == 0
    await drain(HashingBackend(), redis)
    assert (await store.suggestion("n1")).version == 2


@pytest.mark.parametrize("scale", [float("nan"), 0.0, 2.0])
async def test_a_vector_that_the_index_would_refuse_is_a_failure(redis, store, scale):
    class Broken(HashingBackend):
        def read(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Reading]:
            readings = super().read(prompts, max_hashtags)
            return [replace(reading, vector=reading.vector * np.float32(scale)) for reading in readings]

    await store.put([stored("n1")])
    await drain(Broken(), redis)

    assert await changes(redis) == []
    assert "unit norm" in (await store.suggestion("n1")).failure


async def test_a_note_that_kills_its_workers_is_given_up_and_the_rest_survives(redis, store):
    await store.put([stored("n1"), stored("killer"), stored("n3")])
    for life in range(MAX_DELIVERIES + 2):
        queue = JobQueue(redis, "w0")
        await queue.open("hashing-a")
        if life == 0:
            assert len(await queue.claim(10, 0.1)) == 3
            continue
        while (claimed := await queue.claim(1, 0.01)) and claimed[0].job.note_id != "killer":
            reading = StoredReading(1, "hashing-a", text_vector("x"), (), None)
            await queue.publish([(item, reading) for item in claimed])

    await drain(HashingBackend(), redis)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n3"]
    assert "did not survive" in (await store.suggestion("killer")).failure


async def test_a_malformed_job_is_dropped_and_the_next_is_read(redis, store):
    await redis.xadd(JOBS, {"id": "n0"})
    await redis.xadd(JOBS, {"id": b"\xff", "version": "1"})
    await store.put([stored("n1")])
    await drain(HashingBackend(), redis)

    assert [change.id for change in await changes(redis)] == ["n1"]


async def test_a_damaged_record_does_not_stop_the_worker(redis, store):
    await store.put([stored("n0"), stored("n1")])
    await redis.set("notellm:v1:note:n0", b"\xc1")
    await drain(HashingBackend(), redis)

    assert [change.id for change in await changes(redis)] == ["n1"]


async def test_another_model_reads_every_live_note_again_and_forgives_the_failed(redis, store):
    await store.put([stored("n1"), stored("n2"), stored("n3", BAD), stored("gone")])
    await drain(HashingBackend("model-a"), redis)
    await store.delete("gone")
    await store.put([stored("n4", "not read yet")])

    class Better(HashingBackend):
        def read(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Reading]:
            return [self._reading("anything", max_hashtags) for _ in prompts]

    await drain(Better("model-b"), redis)

    again = [change for change in await changes(redis) if change.fingerprint == "model-b"]
    assert {change.version for change in again} == {1}
    assert sorted(change.id for change in again) == ["n1", "n2", "n3", "n4"]
    assert await redis.get(FINGERPRINT) == b"model-b"
    assert (await store.counts()).failed == 0


async def test_the_same_model_reads_nothing_again(redis, store):
    await store.put([stored("n1")])
    await drain(HashingBackend(), redis)
    await drain(HashingBackend(), redis)

    assert len(await changes(redis)) == 1


async def test_a_change_of_model_that_was_interrupted_starts_over(redis, store):
    await store.put([stored(f"n{i}") for i in range(5)])
    await drain(HashingBackend("model-a"), redis)
    await JobQueue(redis, "w0").open("model-b")
    await redis.set(FINGERPRINT, "model-a")
    await redis.delete(JOBS)

    await drain(HashingBackend("model-b"), redis)

    again = [change.id for change in await changes(redis) if change.fingerprint == "model-b"]
    assert sorted(again) == [f"n{i}" for i in range(5)]


async def test_the_worker_waits_for_a_dead_redis_and_goes_on_with_what_it_had_read():
    server = RedisServer()
    server.start()
    reading, released = threading.Event(), threading.Event()

    def before() -> None:
        reading.set()
        released.wait(10)

    backend = HashingBackend(before=before)
    try:
        redis = open_redis(server.url, timeout_s=1.0)
        store = RedisStore(redis, 100)
        await store.put([stored("n1")])
        async with working(backend, redis) as worker:
            running = asyncio.create_task(worker.run())
            await asyncio.to_thread(reading.wait, 10)
            server.kill()
            released.set()
            await asyncio.sleep(0.3)
            server.start()
            await until(lambda: idle(redis, backend.fingerprint))
            assert [change.id for change in await changes(redis)] == ["n1"]

            await store.put([stored("n2", "more")])
            await until(lambda: idle(redis, backend.fingerprint))
            worker.stop()
            await running
        assert backend.batches == [["Kyoto by bus"], ["more"]]
        await redis.aclose()
    finally:
        released.set()
        server.close()


async def test_told_to_stop_the_worker_finishes_its_batch_and_leaves_the_rest_to_the_next(redis, store):
    reading, released = threading.Event(), threading.Event()

    def before() -> None:
        reading.set()
        released.wait(10)

    await store.put([stored(f"n{i}", "x" * 60) for i in range(3)])
    async with working(HashingBackend(before=before), redis) as worker:
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(reading.wait, 10)
        worker.stop()
        released.set()
        await running
    assert len(await changes(redis)) == 1

    await drain(HashingBackend(), redis)
    assert sorted(change.id for change in await changes(redis)) == ["n0", "n1", "n2"]


class Gate:
    """Holds the model's thread until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self.open.wait(10)


async def test_a_draft_goes_before_the_backlog_and_the_backlog_never_starves():
    gate = Gate()
    backend = HashingBackend(before=gate)
    engine = Engine(backend, max_batch_tokens=6, max_drafts=100)
    prompts = backend.tokenize([Note("", "stored")])
    async with engine.running():
        first = asyncio.create_task(engine.read(prompts, 1))
        await asyncio.to_thread(gate.reached.wait, 10)
        backlog = [asyncio.create_task(engine.read(prompts, 1)) for _ in range(2)]
        drafts = [asyncio.create_task(engine.read_draft(Note("", f"draft{i}"), 1, 10)) for i in range(3)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, *backlog, *drafts)

    assert [title for [title] in backend.batches] == [
        "stored",
        "draft0",
        "stored",
        "draft1",
        "stored",
        "draft2",
    ]


async def test_drafts_that_ask_for_as_many_hashtags_share_a_pass():
    gate = Gate()
    backend = HashingBackend(before=gate)
    engine = Engine(backend, max_batch_tokens=100, max_drafts=100)
    async with engine.running():
        first = asyncio.create_task(engine.read_draft(Note("", "first"), 1, 10))
        await asyncio.to_thread(gate.reached.wait, 10)
        two = asyncio.create_task(engine.read_draft(Note("", "a b c"), 2, 10))
        three = asyncio.create_task(engine.read_draft(Note("", "d e f"), 3, 10))
        two_again = asyncio.create_task(engine.read_draft(Note("", "g h i"), 2, 10))
        await asyncio.sleep(0)
        gate.open.set()
        await first

        assert [tag.name for tag in (await two).hashtags] == ["a", "b"]
        assert [tag.name for tag in (await two_again).hashtags] == ["g", "h"]
        assert [tag.name for tag in (await three).hashtags] == ["d", "e", "f"]
    assert backend.batches == [["first"], ["a b c", "g h i"], ["d e f"]]


async def test_a_draft_that_fails_fails_alone():
    gate = Gate()
    engine = Engine(HashingBackend(before=gate), max_batch_tokens=100, max_drafts=100)
    async with engine.running():
        first = asyncio.create_task(engine.read_draft(Note("", "first"), 1, 10))
        await asyncio.to_thread(gate.reached.wait, 10)
        bad = asyncio.create_task(engine.read_draft(Note("", BAD), 1, 10))
        good = asyncio.create_task(engine.read_draft(Note("", "good"), 1, 10))
        await asyncio.sleep(0)
        gate.open.set()

        await first
        assert (await good).hashtags == (Scored("good", 0.9),)
        with pytest.raises(RuntimeError):
            await bad


async def test_a_draft_whose_time_is_up_or_whose_caller_left_is_never_read():
    gate = Gate()
    backend = HashingBackend(before=gate)
    engine = Engine(backend, max_batch_tokens=100, max_drafts=100)
    async with engine.running():
        first = asyncio.create_task(engine.read_draft(Note("", "first"), 1, 10))
        await asyncio.to_thread(gate.reached.wait, 10)
        late = asyncio.create_task(engine.read_draft(Note("", "late"), 1, 0.01))
        left = asyncio.create_task(engine.read_draft(Note("", "left"), 1, 10))
        await asyncio.sleep(0.05)
        left.cancel()
        gate.open.set()
        await first
        with pytest.raises(WorkerUnavailable):
            await late
    assert backend.batches == [["first"]]


async def test_too_many_drafts_are_refused_at_once():
    gate = Gate()
    engine = Engine(HashingBackend(before=gate), max_batch_tokens=100, max_drafts=2)
    async with engine.running():
        drafts = [asyncio.create_task(engine.read_draft(Note("", "first"), 1, 10))]
        await asyncio.to_thread(gate.reached.wait, 10)
        drafts += [asyncio.create_task(engine.read_draft(Note("", "next"), 1, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(WorkerUnavailable):
            await engine.read_draft(Note("", "one too many"), 1, 10)
        gate.open.set()
        assert len(await asyncio.gather(*drafts)) == 3


@asynccontextmanager
async def draft_server(backend: HashingBackend, address: str, max_drafts: int = 8) -> AsyncIterator[None]:
    engine = Engine(backend, max_batch_tokens=64, max_drafts=max_drafts)
    async with engine.running():
        server = await rpc.serve(address, draft_handlers(engine))
        try:
            yield
        finally:
            await server.close()


async def test_a_draft_comes_back_over_rpc_as_the_model_read_it(tmp_path):
    address = str(tmp_path / "w.sock")
    note = Note("", "京都 by bus", "content", ("bus",))
    backend = HashingBackend()
    async with draft_server(backend, address):
        pool = WorkerPool([address], "hashing-a")
        reading = await pool.read(note, 2, timeout_s=5)
        assert await pool.ready(timeout_s=5)
        await pool.close()

    [expected] = backend.read(backend.tokenize([note]), 2)
    assert np.array_equal(reading.vector, expected.vector)
    assert (reading.hashtags, reading.category) == (expected.hashtags, expected.category)


async def test_a_refusal_and_a_dead_address_lead_to_the_next_worker(tmp_path):
    full, good, dead = (str(tmp_path / name) for name in ("full", "good", "dead"))
    gate = Gate()
    async with (
        draft_server(HashingBackend(before=gate), full, max_drafts=1),
        draft_server(HashingBackend(), good),
    ):
        alone = WorkerPool([full], "hashing-a")
        first = asyncio.create_task(alone.read(Note("", "first"), 1, timeout_s=10))
        await asyncio.to_thread(gate.reached.wait, 10)
        second = asyncio.create_task(alone.read(Note("", "second"), 1, timeout_s=10))
        await asyncio.sleep(0.05)
        pool = WorkerPool([full, dead, good], "hashing-a")
        for _ in range(10):
            assert (await pool.read(Note("", "third"), 1, timeout_s=10)).hashtags[0].name == "third"
        gate.open.set()
        await asyncio.gather(first, second)
        await pool.close()
        await alone.close()


async def test_without_a_worker_of_this_model_a_draft_is_refused_in_time(tmp_path):
    address = str(tmp_path / "w.sock")
    async with draft_server(HashingBackend("another"), address):
        pool = WorkerPool([address, str(tmp_path / "dead")], "hashing-a")
        assert not await pool.ready(timeout_s=5)
        with pytest.raises(WorkerUnavailable):
            await pool.read(Note("", "draft"), 1, timeout_s=5)
        await pool.close()


async def test_the_stream_of_changes_is_read_from_any_cursor_and_malformed_entries_are_skipped(
    redis, store, redis_server
):
    client: SyncRedis = open_sync_redis(redis_server.url)
    stream = RedisChangeStream(client)
    assert stream.read("0-0", 10, 0.01) == []

    await store.put([stored("n1"), stored("n2")])
    await store.delete("n2")
    await redis.xadd(EMBEDDINGS, {"id": "broken"})
    await drain(HashingBackend(), redis)

    [gone, kept] = stream.read("0-0", 10, 0)
    assert [gone.id, kept.id] == ["n2", "n1"]
    assert stream.read(gone.cursor, 10, 0)[0].id == "n1"
    assert stream.read("0-0", 1, 0)[0].id == "n2"
    assert stream.read(kept.cursor, 10, 0) == []

    before = stream.malformed
    for _ in range(3):
        await redis.xadd(EMBEDDINGS, {"id": "broken"})
    assert stream.read(kept.cursor, 2, 0) == []
    assert stream.read(kept.cursor, 2, 0) == []
    assert stream.read(kept.cursor, 2, 0) == []
    assert stream.malformed == before + 3
    await store.delete("n1")
    assert [change.id for change in stream.read(kept.cursor, 2, 0)] == ["n1"]
    client.close()


async def test_jobs_queued_before_the_first_worker_came_are_read(redis, store):
    await store.put([stored("n1")])
    queue = JobQueue(redis, "w0")
    await queue.open("hashing-a")

    assert [item.job for item in await queue.claim(10, 0.1)] == [EmbedJob("n1", 1)]


async def test_an_older_reading_counts_less_than_the_failure_of_a_newer_version(redis, store):
    await store.put([stored("n1", "good")])
    await drain(HashingBackend(), redis)
    await store.put([stored("n1", BAD)])
    await drain(HashingBackend(), redis)

    assert (await store.suggestion("n1")).version == 2
    failed = Failure.decode(await redis.get("notellm:v1:failed:n1"))
    assert failed.version == 2
