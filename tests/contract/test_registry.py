"""The registry of models in Redis, and what the store and the streams promise when there are several."""

import asyncio

import numpy as np
import pytest
from redis.asyncio import Redis
from support.redis import RedisServer

from model.note import Note
from service.store.changes import RedisChangeStream
from service.store.connection import open_sync_redis
from service.store.interfaces import Suggestion
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.registry import Progress, Registered, Registry
from service.store.schema import ACTIVE, CURSORS, FILLED, JOBS, MODELS, WORKERS

VECTOR = np.array([0.6, 0.8], dtype=np.float32)


class Model:
    """One model's worker, told what to do."""

    def __init__(self, redis: Redis, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.queue = JobQueue(redis, "w0", fingerprint, len(VECTOR))

    async def read(self, bad: str = "") -> list[str]:
        """All waiting jobs; the note ``bad`` is dead-lettered."""
        read: list[str] = []
        while claimed := await self.queue.claim(100, 0.01):
            for item in claimed:
                read.append(item.job.note_id)
                if item.job.note_id == bad:
                    await self.queue.dead_letter(item, "bad")
                else:
                    prediction = StoredPrediction(
                        item.job.version, self.fingerprint, VECTOR, ((self.fingerprint, 0.5),), None
                    )
                    await self.queue.publish([(item, prediction)])
        return sorted(read)


@pytest.fixture
async def old(redis: Redis) -> Model:
    model = Model(redis, "old")
    await model.queue.open()
    return model


@pytest.fixture
def new(redis: Redis) -> Model:
    return Model(redis, "new")


@pytest.fixture
def store(redis: Redis) -> RedisStore:
    return RedisStore(redis, max_queue=10)


@pytest.fixture
def registry(redis: Redis) -> Registry:
    return Registry(redis)


async def write(store: RedisStore, *ids: str, title: str = "Kyoto") -> None:
    await store.put([StoredNote(Note(id_, title), 0) for id_ in ids])


async def test_the_first_model_of_a_store_is_active_and_those_that_come_later_are_not(redis, registry):
    assert await registry.registered() == Registered({}, None)
    for fingerprint in ("old", "new"):
        await Model(redis, fingerprint).queue.open()

    assert await registry.registered() == Registered({"old": 2, "new": 2}, "old")
    assert await registry.active() == "old"


async def test_a_model_that_comes_later_is_given_every_live_note_and_from_then_on_every_change(store, old, new):
    await write(store, "a", "b", "gone")
    await old.read()
    await store.delete("gone")

    assert await new.queue.open() == 2
    assert await new.read() == ["a", "b"]
    await write(store, "b", title="Kyoto again")
    await write(store, "c")
    assert await new.read() == ["b", "c"] == await old.read()


async def test_each_model_says_its_own_of_a_note_and_a_delete_silences_all(store, old, new):
    await write(store, "a")
    await new.queue.open()
    await old.read(bad="a")
    await new.read()

    assert await store.suggestion("a", "old") == Suggestion(1, "", failure="bad")
    assert await store.suggestion("a", "new") == Suggestion(1, "new", (("new", 0.5),))
    assert [(await store.counts(model)).failed for model in ("old", "new")] == [1, 0]
    await store.delete("a")
    assert [await store.suggestion("a", model) for model in ("old", "new")] == [None, None]
    assert (await store.counts("old")).failed == 0


async def test_the_store_refuses_writes_for_the_queue_of_the_active_model_alone(store, registry, old, new):
    await new.queue.open()
    await write(store, *(f"n{number}" for number in range(10)))
    await old.read()
    await write(store, "one more")

    assert (await store.counts("old")).queue_depth == 1
    assert (await store.counts("new")).queue_depth == 11


async def test_jobs_that_nobody_takes_are_dropped_before_they_fill_the_memory_and_queued_for_the_next_worker(
    redis, store, old, new
):
    await new.queue.open()
    await write(store, "a", "b")
    for number in range(40):
        await write(store, "a", title=f"Day {number}")
        await old.read()
        assert await redis.xlen(JOBS + "new") <= 2 + 10 + 1
    await store.delete("b")
    await write(store, "c")
    await old.read()

    again = Model(redis, "new")
    assert await again.queue.open() == 2
    assert set(await again.read()) == {"a", "c"}
    assert (await store.suggestion("a", "new")).version == 41


async def test_a_worker_whose_queue_was_dropped_asks_for_what_it_lacks(redis, store, old, new):
    await new.queue.open()
    for number in range(20):
        await write(store, "a", title=f"Day {number}")
        await old.read()

    assert not await redis.sismember(FILLED, "new")
    await new.queue.open()
    assert set(await new.read()) == {"a"}
    assert (await store.suggestion("a", "new")).version == 20


async def test_only_a_registered_model_is_activated_and_back_again(registry, old, new):
    assert not await registry.activate("new")
    await new.queue.open()

    for fingerprint in ("new", "old"):
        assert await registry.activate(fingerprint)
        assert await registry.active() == fingerprint


async def test_a_retired_model_leaves_nothing_behind_and_its_late_words_are_not_heard(
    redis, redis_server: RedisServer, store, registry, old, new
):
    client = open_sync_redis(redis_server.url)
    streams = {model: RedisChangeStream(client, model, "shard-0") for model in ("old", "new")}
    await write(store, "a", "b")
    await old.read()
    await new.queue.open()
    await new.read(bad="b")
    await write(store, "a", title="again")
    late = await new.queue.claim(10, 0.01)
    for stream in streams.values():
        stream.keep("0-0")
    kept = set(await redis.keys()) - {(JOBS + "new").encode()}

    assert await registry.retire("new")
    assert await registry.registered() == Registered({"old": 2}, "old")
    await new.queue.publish([(late[0], StoredPrediction(2, "new", VECTOR, (), None))])
    await new.queue.dead_letter(late[0], "late")
    streams["new"].keep("0-0")
    await old.read()
    await write(store, "a", title="and again")

    assert {key for key in await redis.keys() if key.endswith(b":new")} == set()
    assert {key for key in kept if not key.endswith(b":new")} == set(await redis.keys())
    assert await redis.hkeys(CURSORS) == [b"shard-0/old"]
    assert [change.fingerprint for change in streams["old"].read("0-0", 10, 0)].count("new") == 1
    client.close()


async def test_the_active_model_is_never_retired(redis, registry, old):
    assert not await registry.retire("old")
    assert await redis.hkeys(MODELS) == [b"old"]
    assert await redis.get(ACTIVE) == b"old"


async def test_progress_counts_predicted_dead_lettered_and_waiting_notes_and_says_when_a_worker_last_asked(
    redis, store, registry, old
):
    await write(store, "a", "b")
    await old.read(bad="a")
    await write(store, "c")

    progress = await registry.progress("old")
    assert (progress.predicted, progress.dead_lettered, progress.waiting, progress.filled) == (1, 1, 1, True)
    assert 0 <= progress.idle_s < 60
    assert await registry.dead_lettered("old", ["a", "b", "c"]) == 1
    assert await registry.dead_lettered("old", []) == 0
    await redis.hset(MODELS, "new", 2)
    assert await registry.progress("new") == Progress(0, 0, 0, filled=False, idle_s=None)


async def test_progress_knows_of_a_worker_that_asks_and_was_never_given_a_job_and_when_it_no_longer_does(
    redis, store, registry, old
):
    """Before 7.2 Redis knows nothing of one that only waits."""
    assert await old.queue.claim(1, 0.01) == []
    assert (first := (await registry.progress("old")).idle_s) is not None
    await asyncio.sleep(0.3)
    stopped = (await registry.progress("old")).idle_s
    assert stopped >= 0.3 > first

    await write(store, "a")
    [claimed] = await old.queue.claim(1, 0.01)
    for _ in range(2):  # its own jobs stay its own, and are delivered once
        assert await old.queue.claim(1, 0.01) == []
    assert (await registry.progress("old")).idle_s < 0.3
    [pending] = await redis.xpending_range(JOBS + "old", WORKERS, "-", "+", 10)
    assert (pending["message_id"].decode(), pending["times_delivered"]) == (claimed.entry, 1)


async def test_everything_of_a_model_is_what_that_model_read(redis_server: RedisServer, store, old, new):
    client = open_sync_redis(redis_server.url)
    await write(store, "a", "b")
    await old.read()
    await new.queue.open()
    await new.read(bad="b")

    found = {
        model: sorted((change.id, change.fingerprint) for change in RedisChangeStream(client, model).everything()[1])
        for model in ("old", "new")
    }
    assert found == {"old": [("a", "old"), ("b", "old")], "new": [("a", "new")]}
    client.close()
