"""The wall clock jumps by an hour under load, forward and backward, for Redis and for every process of ours.

Deadlines within a process go by clocks that only run. By the wall clock go: ids of stream entries and expiry in Redis
(ids of events are kept for a week, answers to idempotency keys for a day), how long nothing was heard of a job, of a
follower of the changes, and the times that are shown.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clients import Clients
from support.clock import Clock
from support.ledger import Ledger, stored_events
from support.redis import RedisServer
from support.service import Service, running, until

from service.client import NoteLLMClient
from service.store.connection import open_redis
from service.store.events import RedisEvents
from service.store.records import Event

HOUR_S = 3600
BACK_WITHIN_S = 30.0
KNOWN = [f"known{number}" for number in range(20)]


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def service(tmp_path: Path, checkpoint: Path, clock: Clock) -> Iterator[Service]:
    service = Service(tmp_path, checkpoint)
    service.environment |= clock.environment
    with running(service):
        yield service
        service.stop(signal.SIGKILL)


def test_nothing_is_lost_and_nothing_doubled(service, clock, rounds, figures):
    """Right behind every other jump the worker is killed: its successor must not wait for the clock to come back."""
    ledger, problems, back_s, jumps = Ledger(), [], [], 0
    with service.client(patience_s=30) as notellm:
        ledger.begin_events(KNOWN)
        assert accepted(notellm) == len(KNOWN)
        ledger.acknowledge_events(KNOWN)
        for number, one in enumerate(rounds(1, 20)):
            for ahead_s in (-HOUR_S if number % 2 else HOUR_S, 0):
                jumps += 1
                with Clients(service.api, ledger, one.seed + jumps, notes=10, readers=1) as clients:
                    time.sleep(one.chance.uniform(0.2, 0.5))
                    clock.jump(ahead_s)
                    jumped = time.monotonic()
                    if jumps % 2 == 0:
                        os.kill(service.children()["worker"], signal.SIGKILL)
                    until(lambda clients=clients, jumped=jumped: clients.worked("put", jumped + 0.2), BACK_WITHIN_S)
                    back_s.append(time.monotonic() - jumped)
                problems += [f"{answer.kind}: 500" for answer in clients.answers if answer.status == 500]
                problems += ledger.check(notellm)
                problems += ["duplicate: events were accepted twice"] * bool(accepted(notellm))
    socket = (service.state / "run").resolve() / "redis.sock"
    problems += ledger.check_events(stored_events(f"unix://{socket}", service.folder / "events"))
    figures |= {"jumps": jumps, **ledger.acknowledged, "problems": len(problems)}
    figures |= {"writing again after s, worst": f"{max(back_s):.1f}"}
    assert problems == []


def accepted(notellm: NoteLLMClient) -> int:
    """How many of the known events were new."""
    events = [{"event_id": one, "user_id": "u", "note_id": "n", "type": "click", "ts": 1.0} for one in KNOWN]
    return notellm.record(events).accepted


@pytest.mark.parametrize(("remembered_s", "stored"), [(None, 1), (HOUR_S // 2, 2)], ids=["ours", "twin"])
def test_an_event_is_counted_once_though_its_writer_repeats_it_an_hour_later(
    remembered_s, stored, clock, tmp_path, monkeypatch
):
    """The twin forgets ids after half an hour: the jump is one for Redis, too."""
    if remembered_s:
        monkeypatch.setattr("service.store.events.REMEMBERED_S", remembered_s)
    server = RedisServer(before=["env", *(f"{name}={value}" for name, value in clock.environment.items())])
    server.start()

    async def append() -> None:
        redis = open_redis(server.url)
        await RedisEvents(redis).append([Event("e", "u", "n", "click", 1.0)])
        await redis.aclose()

    try:
        asyncio.run(append())
        clock.jump(HOUR_S)
        time.sleep(0.3)  # Redis looks at its clock ten times a second
        asyncio.run(append())
        assert len(stored_events(server.url, tmp_path / "events")) == stored
    finally:
        server.close()
