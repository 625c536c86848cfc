"""What every Answers promises about writes with an idempotency key."""

import asyncio

import pytest
from redis.asyncio import Redis

from service.errors import BadRequest, KeyReused, StillRunning, StoreUnavailable
from service.store.connection import open_redis
from service.store.idempotency import RedisAnswers
from service.store.interfaces import Answer, Answers
from service.store.memory import MemoryAnswers
from service.store.schema import ANSWER


@pytest.fixture(params=["memory", "redis"])
def answers(request: pytest.FixtureRequest) -> Answers:
    return MemoryAnswers() if request.param == "memory" else RedisAnswers(request.getfixturevalue("redis"))


class Write:
    """A write that must happen once, and that ends when it may."""

    def __init__(self) -> None:
        self.runs = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> Answer:
        self.runs += 1
        await self.may_end.wait()
        return Answer(202, b'{"version":%d}' % self.runs, f'"{self.runs}"')


async def test_the_same_request_again_gets_the_first_answer(answers):
    write = Write()

    first = await answers.once("k", b"request", write)
    repeated = await answers.once("k", b"request", write)

    assert first == (Answer(202, b'{"version":1}', '"1"'), False)
    assert repeated == (first[0], True)
    assert write.runs == 1


async def test_another_key_runs_the_same_request_again(answers):
    write = Write()

    assert [await answers.once(key, b"request", write) for key in ("a", "b")] == [
        (Answer(202, b'{"version":1}', '"1"'), False),
        (Answer(202, b'{"version":2}', '"2"'), False),
    ]


async def test_another_request_with_the_same_key_is_refused_and_not_run(answers):
    write = Write()
    await answers.once("k", b"request", write)

    with pytest.raises(KeyReused):
        await answers.once("k", b"other", write)
    assert write.runs == 1


async def test_another_request_is_refused_while_the_first_runs_too(answers):
    write = Write()
    write.may_end.clear()
    first = asyncio.create_task(answers.once("k", b"request", write))
    while not write.runs:
        await asyncio.sleep(0.001)

    with pytest.raises(KeyReused):
        await answers.once("k", b"other", write)
    write.may_end.set()
    await first


async def test_of_many_at_once_one_runs_and_the_others_are_told_to_wait(answers):
    write = Write()
    write.may_end.clear()

    calls = {asyncio.create_task(answers.once("k", b"request", write)) for _ in range(10)}
    while len(running := {call for call in calls if not call.done()}) > 1:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    write.may_end.set()

    assert (await running.pop())[0].status == 202
    assert write.runs == 1
    assert sum(isinstance(call.exception(), StillRunning) for call in calls) == 9


async def test_a_request_that_failed_can_be_sent_again(answers):
    async def fails() -> Answer:
        raise BadRequest("not this time")

    with pytest.raises(BadRequest):
        await answers.once("k", b"request", fails)
    assert (await answers.once("k", b"request", Write()))[0].status == 202


async def test_the_mark_of_a_request_whose_gateway_was_killed_expires_soon_and_an_answer_after_a_day(redis: Redis):
    answers, write = RedisAnswers(redis), Write()
    write.may_end.clear()
    call = asyncio.create_task(answers.once("k", b"request", write))
    while not (keys := await redis.keys(ANSWER + "*")):
        await asyncio.sleep(0.001)
    assert 0 < await redis.ttl(keys[0]) <= 5

    write.may_end.set()
    await call
    assert 23 * 3600 < await redis.ttl(keys[0]) <= 24 * 3600


async def test_without_redis_no_write_runs():
    write = Write()

    with pytest.raises(StoreUnavailable):
        await RedisAnswers(open_redis("unix:///nowhere")).once("k", b"request", write)
    assert write.runs == 0
