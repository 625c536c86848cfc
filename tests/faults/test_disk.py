"""The disk under Redis: full, or with an fsync that fails. Redis gives up then, and is started again."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clients import KEPT, Answered, Clients, keep
from support.disk import SmallDisk, small_disk
from support.ledger import Ledger, stored_events
from support.redis import RedisServer
from support.service import Gateway, Service, running, until

from service.client import NoteLLMClient

FAILING_FSYNC = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO"]
FULL_S = 3.0
REFUSED_WITHIN_S = 1.0
BACK_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk") / "small") as disk:
        yield disk


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, disk: SmallDisk) -> Iterator[Service]:
    """Its Redis, and nothing else, is on the small disk."""
    service = Service(tmp_path_factory.mktemp("service"), checkpoint)
    service.state.mkdir(mode=0o700)
    (service.state / "redis").symlink_to(disk.folder)
    with running(service):
        yield service
        service.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def notellm(service: Service) -> Iterator[NoteLLMClient]:
    with service.client(patience_s=30) as notellm:
        yield notellm


@pytest.fixture(scope="module")
def ledger(notellm: NoteLLMClient) -> Ledger:
    """With the notes that are read."""
    ledger = Ledger()
    keep(notellm, ledger)
    return ledger


def test_a_full_disk_refuses_writes_answers_reads_and_loses_nothing(service, disk, notellm, ledger, rounds, figures):
    problems: list[str] = []
    while_full, back_s = [], []
    for one in rounds(1, 10):
        with Clients(service.api, ledger, one.seed, notes=20, readers=1, asked=KEPT) as clients:
            time.sleep(one.chance.uniform(0.2, 0.5))
            disk.fill()
            full = time.monotonic()
            until(
                lambda clients=clients, full=full: any(a.status == 503 and a.at > full for a in list(clients.answers))
            )
            time.sleep(FULL_S)
            disk.free()
            freed = time.monotonic()
            until(lambda clients=clients, freed=freed: clients.worked("put", freed), BACK_WITHIN_S)
            back_s.append(time.monotonic() - freed)
        while_full += [answer for answer in clients.answers if full <= answer.at < freed - REFUSED_WITHIN_S]
        problems += ledger.check(notellm)
    problems += ledger.check_events(events_of(service))
    reads = [answer for answer in while_full if answer.kind == "related"]
    refused = [answer for answer in while_full if answer.kind != "related" and not answer.ok and not is_absent(answer)]
    figures |= {**ledger.acknowledged, "problems": len(problems), "related while full": len(reads)}
    figures |= {"of them 200": sum(answer.status == 200 for answer in reads), "writes refused": len(refused)}
    figures |= {"slowest refusal s": f"{max(answer.seconds for answer in refused):.2f}"}
    figures |= {"back after s, worst": f"{max(back_s):.1f}"}
    assert problems == []
    assert {answer.status for answer in reads} == {200}
    assert {answer.status for answer in refused} == {503}
    assert max(answer.seconds for answer in refused) < REFUSED_WITHIN_S + 0.25


def test_an_fsync_that_fails_acknowledges_nothing(service, notellm, ledger, rounds, figures):
    problems: list[str] = []
    for one in rounds(1, 20):
        before = service.children()["redis"]
        with Clients(service.api, ledger, one.seed, notes=20) as clients:
            time.sleep(one.chance.uniform(0.1, 0.4))
            subprocess.run([*FAILING_FSYNC, "-p", str(before)], check=False, timeout=30)  # ends with Redis
            ended = time.monotonic()
            until(lambda clients=clients, ended=ended: clients.worked("put", ended), BACK_WITHIN_S)
        problems += ledger.check(notellm)
        problems += [f"{answer.kind}: {answer.status}" for answer in clients.answers if answer.status == 500]
    problems += ledger.check_events(events_of(service))
    figures |= {**ledger.acknowledged, "problems": len(problems)}
    assert problems == []


def test_the_twin_that_does_not_wait_for_the_disk_loses(tmp_path, disk, checkpoint, rounds):
    """Redis refuses writes once one has failed: what was in its hands then is lost, often one write or event."""
    ledger = Ledger()
    problems: list[str] = []
    (disk.folder / "twin").mkdir()
    redis = RedisServer("--appendfsync", "no", "--dir", str(disk.folder / "twin"))
    redis.start()
    try:
        with Gateway(tmp_path, checkpoint, redis.url) as gateway, gateway.client(patience_s=30) as notellm:
            for one in rounds(5, 5):
                with Clients(gateway.api, ledger, one.seed):
                    time.sleep(0.3)
                    disk.fill()
                    time.sleep(0.5)
                    redis.kill()
                    disk.free()
                redis.start()
                problems += ledger.check(notellm, indexed=False)
                problems += ledger.check_events(stored_events(redis.url, tmp_path / "events"))
                if problems:
                    break
    finally:
        redis.close()
    assert any(problem.startswith(("lost: ", "resurrected: ")) for problem in problems)


def is_absent(answer: Answered) -> bool:
    """A delete of a note that there is not: it writes nothing, whatever the disk."""
    return answer.kind == "delete" and answer.status == 404


def events_of(service: Service) -> list[str]:
    return stored_events(f"unix://{(service.state / 'run').resolve()}/redis.sock", service.folder / "events")
