"""What an indexer shows of a real Redis."""

from functools import partial

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from support.redis import RedisServer

from model.note import Note
from service.shard.store_metrics import StoreWatch
from service.store.connection import open_redis
from service.store.info import redis_info
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredNote
from service.store.registry import Registry
from service.store.schema import DEAD


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"notellm_{name}", labels)


@pytest.fixture
def store(redis: Redis) -> RedisStore:
    return RedisStore(redis, 1000)


@pytest.fixture
def watch(redis: Redis, store: RedisStore) -> StoreWatch:
    return StoreWatch(partial(redis_info, redis), Registry(redis), store)


async def test_the_queue_of_every_registered_model_is_shown_until_it_is_retired(redis, store, watch):
    await JobQueue(redis, "w0", "old", 2).open()
    await store.put([StoredNote(Note("n1", "one"), 0)])
    await JobQueue(redis, "w1", "new", 2).open()
    await store.put([StoredNote(Note("n2", "two"), 0)])
    await watch.look()
    assert (shown("queue_depth", fingerprint="old"), shown("queue_depth", fingerprint="new")) == (2, 2)

    await Registry(redis).activate("new")
    await Registry(redis).retire("old")
    await watch.look()

    assert (shown("queue_depth", fingerprint="old"), shown("queue_depth", fingerprint="new")) == (None, 2)
    assert shown("queue_oldest_seconds", fingerprint="old") is None


async def test_dead_letters_are_counted(redis, watch):
    for number in range(3):
        await redis.xadd(DEAD, {"id": f"n{number}"})
    await watch.look()

    assert shown("dead_letters") == 3


async def test_memory_is_measured_against_the_limit_and_against_the_machine_without_one(redis, watch):
    await watch.look()
    of_machine = shown("redis_memory_limit_bytes")
    await redis.config_set("maxmemory", 200_000_000)
    try:
        await watch.look()
    finally:
        await redis.config_set("maxmemory", 0)

    assert of_machine > shown("redis_memory_limit_bytes") == 200_000_000
    assert 0 < shown("redis_memory_bytes") < 200_000_000


async def test_the_file_grows_with_what_is_written_and_without_one_nothing_is_persistent(redis, watch):
    await watch.look()
    assert shown("redis_persistent") == 1
    before = shown("redis_aof_bytes")
    await redis.set("notellm:v1:test", b"x" * 10_000)
    await watch.look()
    assert shown("redis_aof_bytes") >= before + 10_000

    await redis.config_set("appendonly", "no")
    try:
        await watch.look()
    finally:
        await redis.config_set("appendonly", "yes")

    assert shown("redis_persistent") == 0


async def test_a_redis_that_is_gone_is_down_until_it_is_back():
    server = RedisServer()
    server.start()
    redis = open_redis(server.url, timeout_s=2)
    watch = StoreWatch(partial(redis_info, redis), Registry(redis), RedisStore(redis, 1000))
    try:
        await watch.look()
        assert shown("redis_up") == 1
        server.kill()
        await watch.look()
        assert shown("redis_up") == 0
        server.start()
        await watch.look()
        assert shown("redis_up") == 1
    finally:
        await redis.aclose()
        server.close()
