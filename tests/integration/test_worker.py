"""The worker on a real Redis, with a model that hashes."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.redis import RedisServer
from support.working import Gate, changes, drain, idle, stored, until, working

from model.backend import Prediction, Prompt, Request
from model.inference.hashing import BAD, DIM, HashingBackend, text_vector
from model.note import Note
from service.errors import QueueFull
from service.store.changes import RedisChangeStream
from service.store.connection import open_redis, open_sync_redis
from service.store.interfaces import Suggestion
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import EmbedJob, StoredFailure, StoredNote, StoredPrediction
from service.store.schema import DEAD, EMBEDDINGS, FAILED, FILLED, JOBS, READINGS, WORKERS
from service.worker.category_sampler import place_of
from service.worker.engine import BackendBroken
from service.worker.worker import MAX_DELIVERIES

MODEL = "hashing-a"


@pytest.fixture
async def store(redis: Redis) -> RedisStore:
    """A store that knows the model."""
    await JobQueue(redis, "somebody", MODEL, DIM).open()
    return RedisStore(redis, max_queue=10_000)


async def test_a_stored_note_is_read_published_and_its_job_is_gone(redis, store):
    await store.put([stored("n1")])
    await drain(HashingBackend(), redis)

    [change] = await changes(redis)
    assert (change.id, change.version, change.fingerprint) == ("n1", 1, "hashing-a")
    assert np.array_equal(change.vector, text_vector("hashing-aKyoto by bus"))
    assert await store.suggestion("n1", MODEL) == Suggestion(
        1, "hashing-a", (("Kyoto", 0.9), ("by", 0.45), ("bus", 0.9 / 3)), ("Travel", 0.8)
    )
    assert (await redis.xpending(JOBS + MODEL, WORKERS))["pending"] == 0


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
    queue = JobQueue(redis, "w0", MODEL, DIM)
    await queue.open()
    [item] = await queue.claim(10, 0.1)
    await (store.delete("n1") if meanwhile == "deleted" else store.put([stored("n1", "new")]))
    await queue.publish([(item, StoredPrediction(1, "hashing-a", text_vector("old"), (), None))])

    assert all(change.vector is None for change in await changes(redis))
    assert await store.suggestion("n1", MODEL) is None
    assert (await redis.xpending(JOBS + MODEL, WORKERS))["pending"] == 0


async def test_a_worker_that_dies_between_claim_and_publish_leaves_nothing_undone_or_done_twice(redis, store):
    await store.put([stored("n1"), stored("n2")])
    dead = JobQueue(redis, "w0", MODEL, DIM)
    await dead.open()
    assert len(await dead.claim(10, 0.1)) == 2

    await drain(HashingBackend(), redis)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n2"]


async def test_what_a_dead_worker_held_is_taken_over_by_another(redis, store):
    await store.put([stored("n1"), stored("n2")])
    dead = JobQueue(redis, "dead", MODEL, DIM)
    await dead.open()
    await dead.claim(10, 0.1)
    await asyncio.sleep(0.02)

    await drain(HashingBackend(), redis, consumer="w1", take_over_s=0.01)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n2"]


async def test_publishing_twice_announces_once(redis, store):
    await store.put([stored("n1")])
    queue = JobQueue(redis, "w0", MODEL, DIM)
    await queue.open()
    [item] = await queue.claim(10, 0.1)
    prediction = StoredPrediction(1, "hashing-a", text_vector("x"), (), None)

    assert [await queue.publish([(item, prediction)]) for _ in range(3)] == [1, 0, 0]
    assert len(await changes(redis)) == 1


async def test_a_poison_note_goes_to_the_dead_letters_and_the_others_are_read(redis, store):
    await store.put([stored("n1"), stored("n2", f"secret{BAD}"), stored("n3")])
    await drain(HashingBackend(), redis)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n3"]
    assert await store.suggestion("n2", MODEL) == Suggestion(1, "", failure=r"RuntimeError: cannot read '\x07'")
    [(_, letter)] = await redis.xrange(DEAD)
    assert letter == {
        b"id": b"n2",
        b"version": b"1",
        b"fingerprint": b"hashing-a",
        b"reason": rb"RuntimeError: cannot read '\x07'",
    }
    assert (await store.counts(MODEL)).failed == 1


async def test_a_repaired_note_is_no_longer_failed(redis, store):
    await store.put([stored("n1", BAD)])
    await drain(HashingBackend(), redis)
    await store.put([stored("n1", "good")])

    assert (await store.counts(MODEL)).failed == 0
    await drain(HashingBackend(), redis)
    assert (await store.suggestion("n1", MODEL)).version == 2


@pytest.mark.parametrize("scale", [float("nan"), 0.0, 2.0])
async def test_a_vector_that_the_index_would_refuse_is_a_failure(redis, store, scale):
    class Broken(HashingBackend):
        def step(self) -> dict[int, Prediction]:
            bad = {key for key, request in self._joining.items() if request.prompt.note.id == "n1"}
            return {
                key: replace(prediction, vector=prediction.vector * np.float32(scale if key in bad else 1.0))
                for key, prediction in super().step().items()
            }

    await store.put([stored("n1"), stored("n2")])
    await drain(Broken(), redis)

    assert [change.id for change in await changes(redis)] == ["n2"]
    assert "unit norm" in (await store.suggestion("n1", MODEL)).failure


async def test_a_note_that_kills_its_workers_is_dead_lettered_and_the_rest_survives(redis, store):
    await store.put([stored("n1"), stored("killer"), stored("n3")])
    for life in range(MAX_DELIVERIES + 2):
        queue = JobQueue(redis, "w0", MODEL, DIM)
        await queue.open()
        if life == 0:
            assert len(await queue.claim(10, 0.1)) == 3
            continue
        while (claimed := await queue.reclaim(10)) and claimed[0].job.note_id != "killer":
            prediction = StoredPrediction(1, "hashing-a", text_vector("x"), (), None)
            await queue.publish([(item, prediction) for item in claimed])

    await drain(HashingBackend(), redis)

    assert sorted(change.id for change in await changes(redis)) == ["n1", "n3"]
    assert "did not survive" in (await store.suggestion("killer", MODEL)).failure


async def test_workers_that_die_of_something_else_do_not_die_with_the_same_note_in_hand(redis, store):
    await store.put([stored(f"n{i}") for i in range(3)])
    queue = JobQueue(redis, "w0", MODEL, DIM)
    await queue.open()
    await queue.claim(10, 0.1)
    in_hand = []
    for _ in range(6):
        queue = JobQueue(redis, "w0", MODEL, DIM)
        await queue.open()
        [item] = await queue.reclaim(10)
        in_hand.append((item.job.note_id, item.deliveries))

    assert in_hand == [("n0", 2), ("n1", 2), ("n2", 2), ("n0", 3), ("n1", 3), ("n2", 3)]


async def test_a_malformed_job_is_dropped_and_the_next_is_read(redis, store):
    await redis.xadd(JOBS + MODEL, {"id": "n0"})
    await redis.xadd(JOBS + MODEL, {"id": b"\xff", "version": "1"})
    await store.put([stored("n1")])
    await drain(HashingBackend(), redis)

    assert [change.id for change in await changes(redis)] == ["n1"]


@pytest.mark.parametrize("model", [MODEL, "new"])
async def test_a_damaged_record_does_not_stop_the_worker(redis, store, model):
    await store.put([stored("n0"), stored("n1")])
    await redis.set("notellm:v1:note:n0", b"\xc1")
    await drain(HashingBackend(model), redis)

    assert [change.id for change in await changes(redis)] == ["n1"]


async def test_another_model_reads_every_live_note_again_and_forgives_the_failed(redis, store):
    await store.put([stored("n1"), stored("n2"), stored("n3", BAD), stored("gone")])
    await drain(HashingBackend("model-a"), redis)
    await store.delete("gone")
    await store.put([stored("n4", "not read yet")])

    class Better(HashingBackend):
        def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
            return [Prompt(Note(note.id, "anything"), (1,)) for note in notes]

    await drain(Better("model-b"), redis)

    again = [change for change in await changes(redis) if change.fingerprint == "model-b"]
    assert {change.version for change in again} == {1}
    assert sorted(change.id for change in again) == ["n1", "n2", "n3", "n4"]
    assert (await store.counts("model-b")).failed == 0
    assert (await store.counts("model-a")).failed == 1


async def test_the_same_model_reads_nothing_again(redis, store):
    await store.put([stored("n1")])
    await drain(HashingBackend(), redis)
    await drain(HashingBackend(), redis)

    assert len(await changes(redis)) == 1


async def test_a_change_of_model_that_was_interrupted_starts_over(redis, store):
    await store.put([stored(f"n{i}") for i in range(5)])
    await drain(HashingBackend("model-a"), redis)
    await JobQueue(redis, "w0", "model-b", DIM).open()
    await redis.srem(FILLED, "model-b")
    await redis.delete(JOBS + "model-b")

    await drain(HashingBackend("model-b"), redis)

    again = [change.id for change in await changes(redis) if change.fingerprint == "model-b"]
    assert sorted(again) == [f"n{i}" for i in range(5)]


async def test_the_worker_waits_for_a_dead_redis_and_goes_on_with_what_it_had_read():
    server = RedisServer()
    server.start()
    prediction, released = threading.Event(), threading.Event()

    def before() -> None:
        prediction.set()
        released.wait(10)

    backend = HashingBackend(before=before)
    try:
        redis = open_redis(server.url, timeout_s=1.0)
        store = RedisStore(redis, 100)
        await store.put([stored("n1")])
        async with working(backend, redis) as worker:
            running = asyncio.create_task(worker.run())
            await asyncio.to_thread(prediction.wait, 10)
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


async def test_a_consumer_group_that_is_lost_with_all_data_is_made_again(redis, store):
    backend = HashingBackend()
    async with working(backend, redis) as worker:
        running = asyncio.create_task(worker.run())
        await store.put([stored("n1", "before")])
        await until(lambda: idle(redis, backend.fingerprint))
        await redis.flushall()
        await store.put([stored("n1", "after")])
        await until(lambda: idle(redis, backend.fingerprint))
        worker.stop()
        await running

    assert backend.batches == [["before"], ["after"]]


async def test_a_stopped_worker_finishes_what_is_in_the_model_and_releases_the_rest_as_if_never_claimed(redis, store):
    gate = Gate()
    await store.put([stored(f"n{i}", "x" * 60) for i in range(3)])
    async with working(HashingBackend(before=gate), redis) as worker:
        running = asyncio.create_task(worker.run())
        await gate.closed_on()
        worker.stop()
        gate.open.set()
        await running
    assert [change.id for change in await changes(redis)] == ["n0"]

    another = JobQueue(redis, "another", MODEL, DIM)
    await another.open()
    assert await another.has_abandoned()
    left = await another.reclaim(10)
    assert [(item.job.note_id, item.deliveries) for item in left] == [("n1", 1), ("n2", 1)]
    assert not await JobQueue(redis, "third", MODEL, DIM).has_abandoned()


async def aged(redis: Redis) -> None:
    """Every claimed job looks as if nobody had said a word about it for a minute."""
    for job in await redis.xpending_range(JOBS + MODEL, WORKERS, "-", "+", 100):
        await redis.xclaim(JOBS + MODEL, WORKERS, job["consumer"], 0, [job["message_id"]], idle=60_000, justid=True)


async def test_what_a_live_worker_holds_is_nobody_elses_however_long_it_takes(redis, store):
    await store.put([stored("n1"), stored("n2")])
    slow, another = JobQueue(redis, "slow", MODEL, DIM), JobQueue(redis, "another", MODEL, DIM)
    await slow.open()
    claimed = await slow.claim(10, 0.1)
    await aged(redis)
    await slow.heartbeat([item.entry for item in claimed])

    assert not await another.has_abandoned()
    await aged(redis)
    again = JobQueue(redis, "another", MODEL, DIM)
    assert await again.has_abandoned()
    assert [(item.job.note_id, item.deliveries) for item in await again.reclaim(10)] == [("n1", 2)]


async def test_the_jobs_of_a_worker_at_a_long_batch_are_never_abandoned(redis, store):
    gate = Gate()
    await store.put([stored("n1")])
    async with working(HashingBackend(before=gate), redis, take_over_s=2.0) as worker:
        running = asyncio.create_task(worker.run())
        await gate.closed_on()
        for _ in range(25):
            await asyncio.sleep(0.1)
            assert not await JobQueue(redis, "another", MODEL, DIM, take_over_s=2.0).has_abandoned()
        gate.open.set()
        await until(lambda: idle(redis, "hashing-a"))
        worker.stop()
        await running

    assert len(await changes(redis)) == 1


async def test_the_next_notes_are_tokenized_while_the_model_reads(redis, store):
    tokenized: list[str] = []

    class Telling(HashingBackend):
        def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
            tokenized.extend(note.id for note in notes)
            return super().tokenize(notes)

    async def both() -> bool:
        return tokenized == ["n0", "n1"]

    gate = Gate()
    backend = Telling(before=gate)
    await store.put([stored("n0")])
    async with working(backend, redis) as worker:
        running = asyncio.create_task(worker.run())
        await gate.closed_on()
        await store.put([stored("n1")])
        await until(both)
        assert backend.batches == []
        gate.open.set()
        await until(lambda: idle(redis, backend.fingerprint))
        worker.stop()
        await running


async def test_each_note_is_published_when_it_is_complete_and_not_when_a_longer_one_is(redis, store):
    class Slow(HashingBackend):
        """A note of another title than the first one never ends, until it may."""

        may_end = False

        def step(self) -> dict[int, Prediction]:
            time.sleep(0.001)
            self._under_way = {
                key: (request, 2 if request.prompt.note.id == "long" and not self.may_end else left)
                for key, (request, left) in self._under_way.items()
            }
            return super().step()

    async def one_is_published() -> bool:
        return [change.id for change in await changes(redis)] == ["short"]

    await store.put([stored("long", "a long one"), stored("short", "a short one")])
    backend = Slow(steps=2)
    async with working(backend, redis) as worker:
        running = asyncio.create_task(worker.run())
        await until(one_is_published)
        backend.may_end = True
        await until(lambda: idle(redis, backend.fingerprint))
        worker.stop()
        await running
    assert len(backend.batches) == 1
    assert sorted(change.id for change in await changes(redis)) == ["long", "short"]


async def test_a_worker_holds_tokens_for_a_few_batches_and_leaves_the_others_to_other_workers(redis, store):
    async def only_the_slow_ones() -> bool:
        return await redis.xlen(JOBS + MODEL) == (await redis.xpending(JOBS + MODEL, WORKERS))["pending"]

    gate = Gate()
    await store.put([stored(f"n{i:03}", f"title {i:03}" + "." * 10) for i in range(200)])
    async with (
        working(HashingBackend(before=gate), redis, "slow") as slow,
        working(HashingBackend(), redis, "w1") as fast,
    ):
        running = [asyncio.create_task(slow.run())]
        await gate.closed_on()
        running.append(asyncio.create_task(fast.run()))
        await until(only_the_slow_ones)
        held = {
            consumer["name"]: consumer["pending"] for consumer in await redis.xinfo_consumers(JOBS + MODEL, WORKERS)
        }
        gate.open.set()
        await until(lambda: idle(redis, "hashing-a"))
        for worker in (slow, fast):
            worker.stop()
        await asyncio.gather(*running)

    # Three notes of 20 tokens have room together; twice as many wait, and a claim may be one note too large.
    assert 3 <= held[b"slow"] <= 3 + 6 + 8
    assert sorted(change.id for change in await changes(redis)) == [f"n{i:03}" for i in range(200)]


async def test_notes_that_run_out_of_memory_are_tried_again_and_dead_lettered_in_the_end(redis, store):
    class Small(HashingBackend):
        def step(self) -> dict[int, Prediction]:
            if any(request.tokens > 50 for request in self._joining.values()):
                self.batches.append([])
                raise MemoryError("no room")
            return super().step()

    async def dead_lettered() -> bool:
        return await redis.xlen(DEAD) == 1

    await store.put([stored("large", "x" * 60), stored("small")])
    backend = Small()
    async with working(backend, redis, take_over_s=0.01) as worker:
        running = asyncio.create_task(worker.run())
        await until(dead_lettered)
        worker.stop()
        await running

    assert [change.id for change in await changes(redis)] == ["small"]
    assert len([batch for batch in backend.batches if not batch]) >= MAX_DELIVERIES
    assert "did not survive" in (await store.suggestion("large", MODEL)).failure


async def test_a_worker_whose_model_is_broken_ends_and_dead_letters_no_note(redis, store, caplog):
    class Broken(HashingBackend):
        def step(self) -> dict[int, Prediction]:
            raise RuntimeError("secret")

    await store.put([stored(f"n{i}", "x" * 30) for i in range(5)])
    for _ in range(MAX_DELIVERIES + 1):
        async with working(Broken(), redis) as worker:
            with caplog.at_level(logging.WARNING), pytest.raises(BackendBroken):
                await worker.run()
    assert "secret" not in caplog.text

    await drain(HashingBackend(), redis, consumer="healthy")
    assert sorted(change.id for change in await changes(redis)) == [f"n{i}" for i in range(5)]
    assert (await store.counts(MODEL)).failed == 0


def hits() -> dict[str, float]:
    name = "notellm_embed_cache_hits_total"
    return {cache: REGISTRY.get_sample_value(name, {"cache": cache}) or 0.0 for cache in ("stored", "recent")}


NOTE = Note("n1", "Kyoto by bus", "The 100 stops everywhere.", ("bus",), "Travel", 3)


@pytest.mark.parametrize(
    ("after", "read_again"),
    [
        (StoredNote(replace(NOTE, category="Buses"), 0), False),
        (StoredNote(replace(NOTE, exposure=4), 0), False),
        (StoredNote(NOTE, 0, author="somebody", created_at="2026-01-01T00:00:00Z"), False),
        (StoredNote(replace(NOTE, title="Kyoto on foot"), 0), True),
        (StoredNote(replace(NOTE, content="The 205, too."), 0), True),
        (StoredNote(replace(NOTE, hashtags=("bus", "kyoto")), 0), True),
        (StoredNote(replace(NOTE, title="Kyoto by", content="bus" + NOTE.content), 0), True),
    ],
)
async def test_a_note_is_read_again_only_when_what_stands_in_the_prompt_has_changed(redis, store, after, read_again):
    await store.put([StoredNote(NOTE, 0)])
    await drain(HashingBackend(), redis)
    await store.put([after])
    assert len(await changes(redis)) == (1 if read_again else 2)
    backend = HashingBackend()
    await drain(backend, redis)

    assert len(backend.batches) == read_again
    first, second = await changes(redis)
    assert (first.version, second.version) == (1, 2)
    assert np.array_equal(second.vector, text_vector(f"hashing-a{after.note.title}"))
    assert (await store.suggestion("n1", MODEL)).version == 2


async def test_an_unchanged_note_is_read_again_by_another_model_for_more_hashtags_or_with_a_record_of_old(redis, store):
    async def read(backend: HashingBackend, **options: int) -> int:
        """What the model reads of a note that has its old text again, before anybody read the one in between."""
        await store.put([StoredNote(replace(NOTE, title="for a moment"), 0)])
        await store.put([StoredNote(NOTE, 0)])
        await drain(backend, redis, **options)
        return len(backend.batches)

    assert await read(HashingBackend()) == 1
    assert await read(HashingBackend("hashing-b")) == 1
    before = hits()["stored"]
    assert await read(HashingBackend("hashing-b")) == 0
    assert hits()["stored"] == before + 1

    old = StoredPrediction.decode(await redis.hget(READINGS + "hashing-b", "n1"))
    await redis.hset(READINGS + "hashing-b", "n1", replace(old, source=b"").encode())
    assert await read(HashingBackend("hashing-b")) == 1
    assert await read(HashingBackend("hashing-b"), hashtags=6) == 1


async def test_a_text_that_comes_back_or_stands_in_another_note_is_read_once_while_it_is_remembered(redis, store):
    backend, before = HashingBackend(), hits()
    async with working(backend, redis, cached_readings=1) as worker:
        running = asyncio.create_task(worker.run())

        async def put(note_id: str, title: str) -> None:
            await store.put([stored(note_id, title)])
            await until(lambda: idle(redis, "hashing-a"))

        await put("n1", "one")
        await store.delete("n1")
        await put("n1", "one")
        await put("n2", "one")
        await put("n2", "two")
        await put("n2", "one")
        worker.stop()
        await running

    assert backend.batches == [["one"], ["two"], ["one"]]
    assert hits()["recent"] - before["recent"] == 2
    assert [(change.id, change.version) for change in await changes(redis)] == [
        ("n1", 1),
        ("n1", 2),
        ("n1", 3),
        ("n2", 1),
        ("n2", 2),
        ("n2", 3),
    ]


async def test_the_time_in_the_queue_is_measured_of_every_note(redis, store):
    def queued() -> tuple[float, float]:
        name, labels = "notellm_embed_stage_duration_seconds", {"stage": "queue"}
        return tuple(REGISTRY.get_sample_value(f"{name}_{part}", labels) or 0.0 for part in ("count", "sum"))

    await store.put([stored("old")])
    await asyncio.sleep(0.3)
    await store.put([stored("new", "by bus")])
    count, seconds = queued()
    backend = HashingBackend()
    await drain(backend, redis)

    assert len(backend.batches) == 1
    assert queued()[0] - count == 2
    assert 0.3 <= queued()[1] - seconds < 60


def ill() -> tuple[float, float]:
    names = ("notellm_categories_sampled_total", "notellm_categories_illegal_total")
    sampled, illegal = (REGISTRY.get_sample_value(name) for name in names)
    return sampled, illegal


async def test_the_category_of_a_share_of_notes_is_also_written_freely_and_counted_against_the_closed_set(redis, store):
    share = sorted(place_of(f"n{i}") for i in range(60))[20]
    await store.put([stored(f"n{i}", "x" * (1 + i % 2)) for i in range(60)])
    sampled, illegal = ill()
    expected = [i for i in range(60) if place_of(f"n{i}") < share]

    async def all_sampled() -> bool:
        return ill()[0] - sampled == 20

    async with working(HashingBackend(), redis, sampled=share) as worker:
        running = asyncio.create_task(worker.run())
        await until(all_sampled)
        await until(lambda: idle(redis, "hashing-a"))
        worker.stop()
        await running

    # Titles of even length make the model write a category that is not in the set.
    assert len(expected) == 20
    assert ill()[1] - illegal == len([i for i in expected if i % 2])


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_sampling_is_off_at_zero_and_fails_no_note(redis, store, share, caplog):
    class Mute(HashingBackend):
        asked = 0

        def add(self, key: int, request: Request) -> None:
            self.asked += request.is_free
            if request.is_free:
                raise RuntimeError("secret")
            super().add(key, request)

    await store.put([stored(f"n{i}") for i in range(20)])
    before, backend = ill(), Mute()
    await drain(backend, redis, sampled=share)

    assert len(await changes(redis)) == 20
    assert (await store.counts(MODEL)).failed == 0
    assert (backend.asked > 0) == (share > 0)
    assert ill() == before
    assert "secret" not in caplog.text


async def test_the_stream_of_changes_is_read_from_any_cursor_and_malformed_entries_are_skipped(
    redis, store, redis_server
):
    client: SyncRedis = open_sync_redis(redis_server.url)
    stream = RedisChangeStream(client, MODEL)
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


async def test_notes_written_before_the_first_worker_came_count_as_waiting_and_are_queued_for_it(redis):
    store, queue = RedisStore(redis, max_queue=2), JobQueue(redis, "w0", MODEL, DIM)
    await store.put([stored("n1"), stored("n2")])
    assert (await store.counts(MODEL)).queue_depth == 2
    with pytest.raises(QueueFull):
        await store.put([stored("n3")])
    await store.delete("n2")

    assert await queue.open() == 1
    assert [item.job for item in await queue.claim(10, 0.1)] == [EmbedJob("n1", 1)]


async def test_an_older_reading_counts_less_than_the_failure_of_a_newer_version(redis, store):
    await store.put([stored("n1", "good")])
    await drain(HashingBackend(), redis)
    await store.put([stored("n1", BAD)])
    await drain(HashingBackend(), redis)

    assert (await store.suggestion("n1", MODEL)).version == 2
    failed = StoredFailure.decode(await redis.hget(FAILED + MODEL, "n1"))
    assert failed.version == 2


async def test_a_second_job_of_a_poison_note_adds_no_second_letter(redis, store):
    await store.put([stored("n1", BAD)])
    queue = JobQueue(redis, "w0", MODEL, DIM)
    await redis.xadd(JOBS + MODEL, {"id": "n1", "version": "1"})
    for item in await queue.claim(10, 0.1):
        await queue.dead_letter(item, "no")

    assert await redis.xlen(DEAD) == 1
    assert await redis.xlen(JOBS + MODEL) == 0
