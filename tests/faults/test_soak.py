"""A fault a minute for an hour: memory, files, threads, metric series and Redis end as large as they were.

In the first third of the time processes are killed. Those that live then are watched until the end, while the wire to
Redis fails and processes stand still.
"""

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

import httpx
import pytest
from support.clients import Clients
from support.ledger import Ledger, stored_events
from support.redis import RedisServer
from support.service import Service, running, until
from support.wire import Fault, Wire

from service.store import schema
from service.store.connection import open_sync_redis

SHORT_MINUTE_S, MINUTE_S = 2.5, 60.0
FAULT_S = 2.0
ROLES = ("worker", "indexer", "gateway")
WIRE_FAULTS: tuple[Fault, ...] = ("pause", "cut", "slow", "half-open", "reset")
# Below this, what a process takes at its start hides what it loses each minute.
SHORTEST_SLOPE_MIN = 10
MIB_A_MINUTE = 1.0
# Logs: as long as their bound allows, however few notes there are.
LOGS = (schema.EVENTS, schema.EVENT, schema.EMBEDDINGS, schema.WRITES, schema.DEAD)


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds, ``at`` so many minutes."""

    at: float
    mib: float
    files: int
    threads: int
    series: int


@dataclass(frozen=True, slots=True)
class Soaked:
    """A whole service whose Redis is at the other end of a wire."""

    service: Service
    wire: Wire
    redis: RedisServer


@pytest.fixture
def soaked(tmp_path: Path, checkpoint: Path) -> Iterator[Soaked]:
    redis = RedisServer()
    redis.start()
    try:
        with Wire(redis.socket) as wire:
            service = Service(tmp_path, checkpoint)
            service.environment |= {"NOTELLM_REDIS_URL": wire.url, "NOTELLM_INDEX__ADDRESSES": '["/one.sock"]'}
            with running(service):
                yield Soaked(service, wire, redis)
                service.stop(signal.SIGKILL)
    finally:
        redis.close()


def test_nothing_grows_and_nothing_is_lost(soaked, rounds, figures):
    ledger, began = Ledger(), time.monotonic()
    held, stored = defaultdict[str, list[Held]](list), list[float]()
    every = list(rounds(6, 60))
    minute_s = MINUTE_S if len(every) >= SHORTEST_SLOPE_MIN else SHORT_MINUTE_S
    with Clients(soaked.service.api, ledger, every[0].seed, readers=1, pause_s=0.1) as clients:
        for number, one in enumerate(every):
            ends = began + (number + 1) * minute_s
            kills = number < len(every) // 3
            kill(soaked.service, one.chance) if kills else hinder(soaked, one.chance)
            while time.monotonic() < ends and not kills:
                stored.append(kib_of_notes(soaked.redis))
                for role, one_held in now(soaked.service, (time.monotonic() - began) / 60).items():
                    held[role].append(one_held)
                time.sleep(minute_s / 10)
            time.sleep(max(0, ends - time.monotonic()))
    with soaked.service.client(patience_s=30) as notellm:
        problems = ledger.check(notellm)
    problems += ledger.check_events(stored_events(soaked.redis.url, soaked.service.folder / "events"))
    problems += [f"{answer.kind}: 500" for answer in clients.answers if answer.status == 500]
    figures |= {"faults": len(every), "requests": len(clients.answers), **ledger.acknowledged}
    figures |= {role: shown(samples) for role, samples in held.items()}
    figures |= {"Redis without logs, KiB": f"{stored[0]:.0f} to {stored[-1]:.0f}", "problems": len(problems)}
    assert problems == []
    if len(every) >= SHORTEST_SLOPE_MIN:  # in the seconds of a short run, processes still warm up
        assert {role: growing(samples) for role, samples in held.items()} == {role: [] for role in ROLES}
        assert not grows(stored)


def test_the_check_sees_what_grows():
    flat = [Held(minute / 4, 100 + minute % 3, 20 + minute % 2, 9, 300) for minute in range(160)]

    assert growing(flat) == []
    assert growing([Held(one.at, one.mib + 1.1 * one.at, one.files, 9, 300) for one in flat]) == ["mib"]
    assert growing([Held(one.at, one.mib, one.files + int(one.at / 5), 9, 300) for one in flat]) == ["files"]
    assert growing([Held(one.at, one.mib, 20, int(one.at), 300 + int(one.at)) for one in flat]) == ["threads", "series"]


def kill(service: Service, chance: random.Random) -> None:
    """kill -9 of one process, which is back when this returns."""
    role = chance.choice(ROLES)
    victim = service.children()[role]
    os.kill(victim, signal.SIGKILL)
    until(lambda: service.children().get(role, victim) != victim)


def hinder(soaked: Soaked, chance: random.Random) -> None:
    """For a while, one process stands still or the wire to Redis fails."""
    fault = chance.choice([*WIRE_FAULTS, *ROLES])
    if fault in ROLES:
        os.kill(victim := soaked.service.children()[fault], signal.SIGSTOP)
        time.sleep(FAULT_S)
        os.kill(victim, signal.SIGCONT)
    else:
        soaked.wire.set(fault)
        time.sleep(FAULT_S)
        soaked.wire.set("none")


def now(service: Service, at: float) -> dict[str, Held]:
    """What each process holds. One that does not tell its metrics in time is left out."""
    held = {}
    for role, process in service.children().items():
        with suppress(httpx.HTTPError, OSError):
            told = httpx.get(f"http://127.0.0.1:{ops_port(service, role)}/metrics", trust_env=False).text
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            held[role] = Held(
                at,
                int(status["VmRSS"].split()[0]) / 1024,
                len(list(Path(f"/proc/{process}/fd").iterdir())),
                int(status["Threads"]),
                sum(not line.startswith("#") for line in told.splitlines()),
            )
    return held


def ops_port(service: Service, role: str) -> str:
    [named] = (service.state / "run").glob(f"{role}*.ops")
    return named.read_text()


def kib_of_notes(server: RedisServer) -> float:
    """What Redis holds beside its logs."""
    with open_sync_redis(server.url) as redis:
        kept = (key for key in redis.scan_iter(count=1000) if not key.decode().startswith(LOGS))
        return sum(redis.memory_usage(key) or 0 for key in kept) / 1024


def growing(held: Sequence[Held]) -> list[str]:
    """Of what there is more and more."""
    counted = [name for name in ("files", "threads", "series") if grows([getattr(one, name) for one in held])]
    minutes = held[-1].at - held[0].at
    leaks = minutes >= SHORTEST_SLOPE_MIN and slope(held) > MIB_A_MINUTE
    return ["mib"] * leaks + counted


def grows(values: Sequence[float]) -> bool:
    """Whether the last third commonly has more than the second ever had; the first warms up."""
    third = len(values) // 3
    return median(values[-third:]) > max(values[third : 2 * third])


def slope(held: Sequence[Held]) -> float:
    """MiB a minute, without the first third."""
    warm = held[len(held) // 3 :]
    return linear_regression([one.at for one in warm], [one.mib for one in warm]).slope


def shown(held: Sequence[Held]) -> str:
    first, last = held[len(held) // 3], held[-1]
    return (
        f"{first.mib:.0f} to {last.mib:.0f} MiB ({slope(held):+.2f} a minute), files {first.files} to {last.files}, "
        f"threads {first.threads} to {last.threads}, series {first.series} to {last.series}"
    )
