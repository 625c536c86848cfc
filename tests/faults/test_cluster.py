"""A Redis Cluster under load: the primary of the cell fails or hands over, and the cell's slot moves.

A primary that is killed has not told its replica of its last writes, and the replica takes over: so a write that did
not wait for it is lost, as the twin shows.
"""

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from support.clients import Answered, Clients
from support.cluster import Cluster
from support.ledger import Ledger, stored_events
from support.service import Gateway, Service, running, until

WRITES = ("put", "patch", "delete", "bulk", "events")


@pytest.fixture
def service(cluster: Cluster, tmp_path: Path, checkpoint: Path) -> Iterator[Service]:
    service = Service(tmp_path, checkpoint)
    service.environment["NOTELLM_REDIS_URL"] = cluster.url
    with running(service):
        yield service
        children = service.children().values()
        service.stop(signal.SIGKILL)
        for child in children:  # or they write into the next test's cluster
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def fail(cluster: Cluster, chance: random.Random) -> None:
    """kill -9 of the primary, whose replica did not hear of its last writes; it comes back as a replica."""
    primary = cluster.primary()
    primary.hold_back()
    time.sleep(chance.uniform(0.1, 0.5))
    cluster.replace_primary()


def hand_over(cluster: Cluster, _: random.Random) -> None:
    cluster.fail_over()


def move(cluster: Cluster, chance: random.Random) -> None:
    cluster.move(chance.uniform(0, 0.01))


FAULTS = (fail, hand_over, move)


def test_the_twin_that_waits_for_no_replica_loses(cluster, tmp_path, checkpoint, rounds, figures):
    ledger = Ledger()
    problems: list[str] = []
    with Gateway(tmp_path, checkpoint, cluster.url, NOTELLM_REDIS_WAIT="0") as gateway:
        for one in rounds(1, 10):
            with Clients(gateway.api, ledger, one.seed):
                time.sleep(0.3)
                fail(cluster, one.chance)
            cluster.settle()
            with gateway.client(patience_s=30) as notellm:
                problems += ledger.check(notellm, indexed=False)
    lost = sum(problem.startswith("lost: w") for problem in problems)
    figures |= {**ledger.acknowledged, "notes that lost writes": lost, "other problems": len(problems) - lost}
    assert lost


def test_nothing_that_was_acknowledged_is_lost_and_nothing_comes_back(cluster, service, rounds, figures):
    ledger = Ledger()
    problems: list[str] = []
    without = {kind.__name__: [] for kind in FAULTS}
    for one in rounds(len(FAULTS), 75):
        kind = FAULTS[one.seed % len(FAULTS)]
        with Clients(service.api, ledger, one.seed, readers=1) as clients:
            time.sleep(one.chance.uniform(0.2, 0.5))
            kind(cluster, one.chance)
            done = time.monotonic()
            until(lambda clients=clients, done=done: clients.worked("put", done))
        cluster.settle()
        with service.client(patience_s=10) as notellm:
            problems += ledger.check(notellm, indexed=False)
        problems += [f"{answer.kind}: {answer.status}" for answer in clients.answers if answer.status == 500]
        without[kind.__name__].append(longest_without(clients.answers))
    with service.client(patience_s=10) as notellm:
        problems += ledger.check(notellm)
    problems += ledger.check_events(stored_events(cluster.url, service.folder / "events"))
    figures |= {**ledger.acknowledged, "problems": len(problems)}
    for name, seconds in without.items():
        figures[f"{name}, s without a write, median and worst of {len(seconds)}"] = shown(seconds)
    assert problems == []
    assert ledger.acknowledged["writes"] > 20


def longest_without(answers: Sequence[Answered]) -> float:
    """Seconds between two acknowledged writes, at most."""
    ends = sorted(answer.at + answer.seconds for answer in answers if answer.kind in WRITES and answer.ok)
    return max(later - earlier for earlier, later in pairwise(ends))


def shown(seconds: Sequence[float]) -> str:
    """Median and worst."""
    return f"{sorted(seconds)[len(seconds) // 2]:.2f} {max(seconds):.2f}" if seconds else ""
