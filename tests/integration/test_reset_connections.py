"""Connections to Redis that are reset under load, as by a failover: unavailable, and never an error of ours.

uvloop, which gateways and indexers run on, says it in its own way, and only over TCP.
"""

import asyncio
from collections import Counter

import pytest
import uvloop
from support.redis import RedisServer
from support.wire import Wire

from model.note import Note
from service.errors import StoreUnavailable
from service.store import connection
from service.store.notes import RedisStore
from service.store.records import StoredNote

CALLERS, RESETS, EVERY_S = 48, 30, 0.05


async def outcomes(wire: Wire) -> Counter[str]:
    """How calls of many callers ended while all connections were reset over and over; and whether they go on."""
    redis = connection.open_redis(f"redis://127.0.0.1:{wire.port}/0", timeout_s=2)
    store = RedisStore(redis, 1_000_000)
    seen: Counter[str] = Counter()
    ended = asyncio.Event()

    async def call(caller: int) -> None:
        calls = [
            lambda: store.put([StoredNote(Note(f"n{caller}", str(seen["ok"])), 0)]),
            lambda: store.get([f"n{caller}"]),
            lambda: store.view([f"n{caller}"], None),
        ]
        while not ended.is_set():
            try:
                await calls[caller % 3]()
                seen["ok"] += 1
            except StoreUnavailable:
                seen["unavailable"] += 1
                await asyncio.sleep(0.001)
            except RuntimeError:
                seen["error"] += 1

    async with asyncio.TaskGroup() as tasks:
        for caller in range(CALLERS):
            tasks.create_task(call(caller))
        for _ in range(RESETS):
            await asyncio.sleep(EVERY_S)
            wire.reset()
        answered = seen["ok"]
        async with asyncio.timeout(5):
            while seen["ok"] < answered + CALLERS:
                await asyncio.sleep(0.01)
        ended.set()
    await redis.aclose()
    return seen


def run(redis_server: RedisServer) -> Counter[str]:
    with Wire(redis_server.socket) as wire, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(outcomes(wire))


def test_what_meets_a_reset_connection_is_unavailable_and_later_calls_go_through(redis_server):
    seen = run(redis_server)

    assert seen["error"] == 0
    assert seen["unavailable"] > CALLERS


def test_the_same_load_finds_the_error_that_uvloop_raises(redis_server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "CLOSED", "something else")

    assert run(redis_server)["error"] > 0
