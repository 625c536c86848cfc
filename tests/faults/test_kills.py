"""kill -9 of each process of `notellm serve` while clients write, delete and read."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clients import Clients
from support.ledger import Ledger, stored_events
from support.redis import RedisServer
from support.service import Gateway, Service, running, until

from service.client import ClientError, NoteLLMClient

ROLES = ("redis", "worker", "indexer", "gateway")
# The promise is 10 s on a machine that does nothing else; tests share theirs.
SEARCHABLE_S = 30


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Service]:
    with running(Service(tmp_path_factory.mktemp("kills"), checkpoint)) as service:
        yield service
        service.stop(signal.SIGKILL)


def test_after_kill_9_nothing_is_lost_and_all_is_searchable_again(service, rounds, figures):
    ledger = Ledger()
    problems: list[str] = []
    took: list[float] = []
    for one in rounds(3, 200):
        role = ROLES[one.seed % len(ROLES)]
        with Clients(service.api, ledger, one.seed, readers=1) as clients:
            time.sleep(one.chance.uniform(0.2, 1.0))
            victim = service.children()[role]
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda victim=victim: victim not in service.children().values())
            time.sleep(one.chance.uniform(0.2, 1.0))
        with service.client(patience_s=10) as notellm:
            until(lambda notellm=notellm: searchable(notellm), SEARCHABLE_S)
            took.append(time.monotonic() - killed)
            problems += ledger.check(notellm)
        problems += [f"{answer.kind}: {answer.status}" for answer in clients.answers if answer.status == 500]
    redis = f"unix://{(service.state / 'run').resolve()}/redis.sock"
    problems += ledger.check_events(stored_events(redis, service.folder / "events"))
    figures |= {"kills": len(took), **ledger.acknowledged, "problems": len(problems)}
    figures |= {"searchable again after s, median": f"{sorted(took)[len(took) // 2]:.1f}", "worst": f"{max(took):.1f}"}
    assert problems == []
    assert ledger.acknowledged["writes"] > 20 * len(took)


def searchable(notellm: NoteLLMClient) -> bool:
    """Whether every shard answers and no note waits."""
    try:
        status = notellm.status()
    except ClientError:
        return False
    return status.index.shards_ok == status.index.shards_total and not status.notes.pending and not status.queue.depth


def test_the_twin_whose_redis_keeps_no_log_loses(tmp_path, checkpoint, rounds):
    redis, ledger = RedisServer("--appendonly", "no"), Ledger()
    redis.start()
    try:
        with Gateway(tmp_path, checkpoint, redis.url) as gateway:
            one = next(rounds(1, 1))
            with Clients(gateway.api, ledger, one.seed):
                time.sleep(0.5)
                redis.kill()
            redis.start()
            with gateway.client(patience_s=30) as notellm:
                problems = ledger.check(notellm, indexed=False)
            problems += ledger.check_events(stored_events(redis.url, tmp_path / "events"))
    finally:
        redis.close()
    assert any(problem.startswith("lost: w") for problem in problems)
    assert any(problem.startswith("lost: event") for problem in problems)
