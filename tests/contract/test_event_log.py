"""What every EventLog promises, and what a write with an idempotency key is promised."""

import asyncio

import msgpack
import pytest
from redis.asyncio import Redis

from service.errors import BadRequest, KeyReused, StillRunning, StoreUnavailable
from service.store.connection import open_redis
from service.store.events import RedisEvents
from service.store.idempotency import RedisAnswers
from service.store.interfaces import Answer, EventLog
from service.store.memory import MemoryEvents
from service.store.records import Event
from service.store.schema import EVENTS

CLICK = Event("e1", "u1", "n2", "click", 1767225600.5, "n1")
SAVE = Event("e2", "u1", "n2", "save", 1767225601.0)


@pytest.fixture(params=["memory", "redis"])
def log(request: pytest.FixtureRequest) -> EventLog:
    return MemoryEvents() if request.param == "memory" else RedisEvents(request.getfixturevalue("redis"))


async def test_an_event_counts_once(log):
    assert await log.append([CLICK, SAVE, CLICK]) == 2
    assert await log.append([SAVE]) == 0
    assert await log.append([]) == 0


async def test_events_are_kept_in_order_as_they_were(redis: Redis):
    await RedisEvents(redis).append([CLICK, SAVE])

    kept = [msgpack.unpackb(fields[b"event"]) for _, fields in await redis.xrange(EVENTS)]

    assert [Event(**event) for event in kept] == [CLICK, SAVE]


async def test_many_deliveries_at_once_count_each_event_once(redis: Redis):
    log = RedisEvents(redis)

    accepted = await asyncio.gather(*(log.append([CLICK, SAVE]) for _ in range(20)))

    assert sum(accepted) == 2
    assert await redis.xlen(EVENTS) == 2


async def test_without_redis_there_is_no_log():
    with pytest.raises(StoreUnavailable):
        await RedisEvents(open_redis("unix:///nowhere")).append([CLICK])


class Work:
    """Something that must happen once, and that ends when it may."""

    def __init__(self) -> None:
        self.done = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> Answer:
        self.done += 1
        await self.may_end.wait()
        return Answer(202, b'{"version":%d}' % self.done, f'"{self.done}"')


async def test_the_same_request_again_gets_the_first_answer(redis: Redis):
    answers, work = RedisAnswers(redis), Work()

    first = await answers.once("k", b"request", work)
    again = await answers.once("k", b"request", work)

    assert first == (Answer(202, b'{"version":1}', '"1"'), False)
    assert again == (first[0], True)
    assert work.done == 1


async def test_another_request_with_the_same_key_is_refused_and_not_run(redis: Redis):
    answers, work = RedisAnswers(redis), Work()
    await answers.once("k", b"request", work)

    with pytest.raises(KeyReused):
        await answers.once("k", b"other", work)
    assert work.done == 1


async def test_of_many_at_once_one_runs_and_the_others_are_told_to_wait(redis: Redis):
    answers, work = RedisAnswers(redis), Work()
    work.may_end.clear()

    calls = {asyncio.create_task(answers.once("k", b"request", work)) for _ in range(10)}
    while len(running := {call for call in calls if not call.done()}) > 1:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    work.may_end.set()

    assert (await running.pop())[0].status == 202
    assert work.done == 1
    assert sum(isinstance(call.exception(), StillRunning) for call in calls) == 9


async def test_a_request_that_failed_can_be_sent_again(redis: Redis):
    answers = RedisAnswers(redis)

    async def fails() -> Answer:
        raise BadRequest("not this time")

    with pytest.raises(BadRequest):
        await answers.once("k", b"request", fails)
    assert (await answers.once("k", b"request", Work()))[0].status == 202
