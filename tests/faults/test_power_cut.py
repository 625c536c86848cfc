"""The power fails under load: Redis keeps what its disk had at the last fsync, and clients keep what they were told."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clients import Clients
from support.ledger import Ledger, stored_events
from support.power import PowerCut, bytes_of
from support.service import Gateway, until

TRACE = """\
812   write(8</r/appendonlydir/appendonly.aof.1.incr.aof>, ""..., 70) = 70
812   write(9<socket:[77]>, ""..., 5) = 5
815   fdatasync(8</r/appendonlydir/appendonly.aof.1.incr.aof> <unfinished ...>
812   write(8</r/appendonlydir/appendonly.aof.1.incr.aof>, ""..., 30 <unfinished ...>
815   <... fdatasync resumed>)          = 0
812   <... write resumed>)              = 30
812   write(8</r/appendonlydir/appendonly.aof.1.incr.aof>, ""..., 9) = -1 ENOSPC (No space left on device)
812   fdatasync(8</r/appendonlydir/appendonly.aof.1.incr.aof>) = -1 EIO (Input/output error)
815   fdatasync(8</r/appendonlydir/appendonly.aof.1.incr.aof> <unfinished ...>
812   +++ killed by SIGKILL +++
"""


def cut(
    appendfsync: str,
    folder: Path,
    checkpoint: Path,
    rounds: Iterator,
    figures: dict[str, object],
    *,
    until_one_is_lost: bool = False,
) -> list[str]:
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
                if until_one_is_lost and any(problem.startswith("lost: ") for problem in problems):
                    break
            problems += ledger.check_events(stored_events(redis.url, folder / "events"))
    finally:
        redis.close()
    figures |= {"cuts": cuts, **ledger.acknowledged, "bytes forgotten": forgotten, "problems": len(problems)}
    return problems


def test_nothing_that_was_acknowledged_is_lost(tmp_path, checkpoint, rounds, figures):
    assert cut("always", tmp_path, checkpoint, rounds(2, 100), figures) == []


def test_the_twin_that_syncs_every_second_loses(tmp_path, checkpoint, rounds, figures):
    """A cut right behind an fsync takes nothing away: one in thirty, hence more than one round."""
    problems = cut("everysec", tmp_path, checkpoint, rounds(5, 10), figures, until_one_is_lost=True)
    assert any(problem.startswith("lost: ") for problem in problems)


@pytest.mark.parametrize("process", ["812  ", "10812"])
def test_a_trace_tells_what_was_written_and_what_of_it_is_on_disk(process):
    """Process ids below 10,000 are padded: once they were overlooked, so that no cut took anything away."""
    trace = TRACE.replace("812  ", process)
    assert bytes_of(trace, "appendonly.aof.1.incr.aof") == (100, 70)
    assert bytes_of(trace, "appendonly.aof.2.incr.aof") == (0, 0)
