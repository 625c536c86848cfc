"""The power fails under load: Redis keeps what its disk had at the last fsync, and clients keep what they were told."""

import time
from collections.abc import Iterator
from pathlib import Path

from support.clients import Clients
from support.ledger import Ledger, stored_events
from support.power import PowerCut
from support.service import Gateway, until


def cut(appendfsync: str, folder: Path, checkpoint: Path, rounds: Iterator, figures: dict[str, object]) -> list[str]:
    """Problems of all rounds."""
    redis, ledger = PowerCut(appendfsync), Ledger()
    problems: list[str] = []
    forgotten = cuts = 0
    redis.start()
    try:
        with Gateway(folder, checkpoint, redis.url) as gateway, gateway.client(patience_s=30) as notellm:
            for one in rounds:
                cuts += 1
                with Clients(gateway.api, ledger, one.seed) as clients:
                    time.sleep(one.chance.uniform(0.3, 1.3))
                    now = time.monotonic()  # clients that wait write nothing that could be lost
                    until(lambda clients=clients, now=now: clients.worked("put", now))
                    forgotten += redis.cut()
                    redis.start()
                    back = time.monotonic()
                    until(lambda clients=clients, back=back: clients.worked("put", back))
                problems += ledger.check(notellm, indexed=False)
            problems += ledger.check_events(stored_events(redis.url, folder / "events"))
    finally:
        redis.close()
    figures |= {"cuts": cuts, **ledger.acknowledged, "bytes forgotten": forgotten, "problems": len(problems)}
    return problems


def test_nothing_that_was_acknowledged_is_lost(tmp_path, checkpoint, rounds, figures):
    assert cut("always", tmp_path, checkpoint, rounds(2, 100), figures) == []


def test_the_twin_that_syncs_every_second_loses(tmp_path, checkpoint, rounds, figures):
    problems = cut("everysec", tmp_path, checkpoint, rounds(2, 10), figures)
    assert any(problem.startswith("lost: ") for problem in problems)
