"""What an indexer's metrics show of its index, and where they take it from."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from service import metrics
from service.errors import StoreUnavailable

if TYPE_CHECKING:
    from indexer.follow import Follower
    from indexer.index import VectorIndex
    from indexer.types import Change, Tally
    from service.changes import RedisChangeStream


def count_changes(shard: int) -> "Callable[[Sequence[Change], Tally], None]":
    """The ``on_batch`` of a follower: counts what became of its changes, and how old they were."""
    freshness = metrics.INDEX_FRESHNESS_SECONDS.labels(str(shard))

    def count(changes: "Sequence[Change]", tally: "Tally") -> None:
        metrics.INDEX_CHANGES.labels(str(shard), "applied").inc(tally.applied)
        metrics.INDEX_CHANGES.labels(str(shard), "stale").inc(tally.stale)
        for _, reason in tally.refused:
            metrics.INDEX_CHANGES.labels(str(shard), reason).inc()
        for change in changes:
            if age_s := _age_s(change.cursor):  # what comes from the store has no place in the stream
                freshness.observe(age_s)

    return count


def watch_index(shard: int, index: "VectorIndex", follower: "Follower") -> None:
    """Show the state of an index and of what keeps it in step, as it is whenever somebody looks."""
    name = str(shard)
    metrics.INDEX_NOTES.labels(name).set_function(lambda: len(index))
    metrics.INDEX_GENERATION.labels(name).set_function(lambda: index.generation)
    metrics.INDEX_CURSOR_AGE_SECONDS.labels(name).set_function(lambda: _age_s(follower.cursor))
    metrics.INDEX_RECALL.labels(name).set_function(lambda: follower.recall)
    metrics.INDEX_IMBALANCE.labels(name).set_function(index.imbalance)
    metrics.INDEX_BYTES_PER_NOTE.labels(name).set_function(lambda: _own_memory_bytes() / max(len(index), 1))
    for part in ("base", "delta", "dead", "tombstones"):
        metrics.INDEX_ROWS.labels(name, part).set_function(partial(_figure, index, part))


async def measure_lag(shard: int, stream: "RedisChangeStream", follower: "Follower") -> None:
    """Show how far behind the stream an index is; what was shown last stays while Redis is silent."""
    with contextlib.suppress(StoreUnavailable):
        changes, age_s = await asyncio.to_thread(stream.lag, follower.cursor)
        metrics.INDEX_LAG_CHANGES.labels(str(shard)).set(changes)
        metrics.INDEX_LAG_SECONDS.labels(str(shard)).set(age_s)


def _figure(index: "VectorIndex", part: str) -> int:
    figure: int = getattr(index.figures, part)
    return figure


def _own_memory_bytes() -> int:
    """Anonymous memory of this process."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:  # noqa: PTH123
        for line in status:
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def _age_s(cursor: str) -> float:
    milliseconds = int(cursor.partition("-")[0])
    return max(0.0, time.time() - milliseconds / 1000) if milliseconds else 0.0
