"""Predictions that came with a checkpoint, on a real Redis, before there is a model."""

import asyncio

import numpy as np
from redis.asyncio import Redis
from support.working import changes, drain, stored

from model.inference.hashing import DIM, HashingBackend
from service.store.connection import open_redis
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredPrediction, source_of
from service.store.schema import JOBS, WORKERS
from service.worker.known import publish_known

HASHTAGS = 3
MODEL = "hashing-a"
VECTOR = np.eye(1, DIM, dtype=np.float32)[0]


def prediction(title: str) -> StoredPrediction:
    return StoredPrediction(0, MODEL, VECTOR, (("Kyoto", 0.9),), None, source_of(stored("any", title).note, HASHTAGS))


def queue_of(redis: Redis) -> JobQueue:
    return JobQueue(redis, "first", MODEL, DIM)


async def test_known_notes_are_published_while_the_model_is_being_opened(redis):
    store = RedisStore(redis, max_queue=100)
    await store.put([stored("a", "known"), stored("b", "known too")])
    opened = asyncio.Event()
    known = [prediction("known"), prediction("known too")]
    publishing = asyncio.create_task(publish_known(queue_of(redis), known, HASHTAGS, until=opened.is_set))
    while len(await changes(redis)) < 2:
        await asyncio.sleep(0.01)
    await store.put([stored("a", "known too"), stored("c", "known")])  # and those that come later
    while len(await changes(redis)) < 4:
        await asyncio.sleep(0.01)
    assert not publishing.done()
    opened.set()
    await publishing
    assert {(change.id, change.version) for change in await changes(redis)} == {("a", 1), ("b", 1), ("a", 2), ("c", 1)}
    assert all(np.array_equal(change.vector, VECTOR) for change in await changes(redis))
    assert (await redis.xpending(JOBS + MODEL, WORKERS))["pending"] == 0


async def test_a_note_that_needs_the_model_waits_for_it_and_counts_no_delivery(redis):
    store = RedisStore(redis, max_queue=100)
    await queue_of(redis).open()
    await store.put([stored("old", "known"), stored("a", "known"), stored("b", "new"), stored("old", "newer")])
    await publish_known(queue_of(redis), [prediction("known")], HASHTAGS, until=lambda: False)
    assert [change.id for change in await changes(redis)] == ["a"]
    [*_, left] = await redis.xpending_range(JOBS + MODEL, WORKERS, "-", "+", 10)
    assert left["times_delivered"] == 0
    backend = HashingBackend()
    await drain(backend, redis)
    assert sorted(title for batch in backend.batches for title in batch) == ["new", "newer"]


async def test_without_redis_the_worker_goes_on(tmp_path):
    redis = open_redis("redis://127.0.0.1:1/0")
    await publish_known(queue_of(redis), [prediction("known")], HASHTAGS, until=lambda: False)
    await redis.aclose()
