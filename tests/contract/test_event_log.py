"""What every EventLog promises."""

import asyncio

import msgpack
import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.store.connection import open_redis
from service.store.events import RedisEvents
from service.store.interfaces import EventLog
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
