"""The wire between the whole service and Redis fails in every way: requests end in time, and the service comes back."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.clients import KEPT, Answered, Clients, keep
from support.ledger import Ledger
from support.redis import RedisServer
from support.service import Service, running, until
from support.wire import Fault, Wire

FAULTS: tuple[Fault, ...] = ("pause", "cut", "slow", "half-open", "reset")
# Deadlines of the service, and what the way to it may add.
LATEST_S = {"related": 1.0, "patch": 2.0, "put": 2.0, "delete": 2.0, "bulk": 2.0, "events": 2.0}
ADDED_S = 0.25
RECOVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Wired:
    """A whole service whose Redis is at the other end of a wire."""

    wire: Wire
    service: Service


@contextmanager
def wired_service(folder: Path, checkpoint: Path, **environment: str) -> Iterator[Wired]:
    redis = RedisServer()
    redis.start()
    try:
        with Wire(redis.socket) as wire:
            service = Service(folder, checkpoint)
            service.environment |= {"NOTELLM_REDIS_URL": wire.url, **environment}
            with running(service):
                yield Wired(wire, service)
                service.stop(signal.SIGKILL)
    finally:
        redis.close()


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Wired]:
    with wired_service(tmp_path_factory.mktemp("wired"), checkpoint) as wired:
        yield wired


@pytest.fixture(scope="module")
def ledger(wired: Wired) -> Ledger:
    ledger = Ledger()
    with wired.service.client() as notellm:
        keep(notellm, ledger)
    return ledger


def strain(
    wired: Wired, ledger: Ledger, fault: Fault, rounds: Iterator, asked: Sequence[str] = KEPT
) -> tuple[list[Answered], list[float], list[str]]:
    """All answers, the time that the service took to come back each round, and problems."""
    answers: list[Answered] = []
    recoveries: list[float] = []
    problems: list[str] = []
    for one in rounds:
        with Clients(wired.service.api, ledger, one.seed, notes=15, readers=2, pause_s=0.03, asked=asked) as clients:
            time.sleep(0.7)
            wired.wire.set(fault)
            time.sleep(one.chance.uniform(2.5, 3.5))
            wired.wire.set("none")
            mended = time.monotonic()
            until(lambda c=clients, m=mended: c.worked("put", m) and c.worked("related", m), 30)
            recoveries.append(time.monotonic() - mended)
        answers += clients.answers
        with wired.service.client(patience_s=20) as notellm:
            problems += ledger.check(notellm)
    return answers, recoveries, problems


@pytest.mark.parametrize("fault", FAULTS)
def test_every_request_ends_in_time_and_nothing_is_lost(wired, ledger, fault, rounds, figures):
    answers, recoveries, problems = strain(wired, ledger, fault, rounds(1, 20))

    late = [answer for answer in answers if answer.seconds > LATEST_S[answer.kind] + ADDED_S]
    wrong = [answer for answer in answers if answer.status == 0 or (answer.status >= 500 and answer.status != 503)]
    wrong += [answer for answer in answers if answer.kind == "related" and answer.status != 200]
    figures |= {"requests": len(answers), "503": sum(answer.status == 503 for answer in answers), "late": len(late)}
    figures |= {"slowest s": f"{max(answer.seconds for answer in answers):.2f}", "wrong": len(wrong)}
    figures |= {"degraded": sum(b'"degraded":true' in answer.body for answer in answers), "problems": len(problems)}
    figures |= {"recovery s, worst": f"{max(recoveries):.1f}"}
    assert wrong == []
    assert late == []
    assert problems == []
    assert max(recoveries) < RECOVERY_S


def test_the_twin_without_deadlines_hangs(tmp_path, checkpoint, rounds):
    with wired_service(tmp_path, checkpoint, NOTELLM_HTTP__WRITE_S="60") as wired:
        answers, _, _ = strain(wired, Ledger(), "pause", rounds(1, 1), asked=())
    assert any(answer.seconds > LATEST_S[answer.kind] + ADDED_S for answer in answers)
