"""The metrics of an indexer's indexes."""

import asyncio
import contextlib
import math
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
    from service.store.changes import RedisChangeStream

PARTS = ("base", "delta", "dead", "tombstones")


def count_changes(shard: int, fingerprint: str) -> "Callable[[Sequence[Change], Tally], None]":
    """The ``on_batch`` of a follower: counts its changes by outcome, and observes their age."""
    own = str(shard), fingerprint
    freshness = metrics.INDEX_FRESHNESS_SECONDS.labels(*own)
    from_write = metrics.NOTE_FRESHNESS_SECONDS.labels(*own)

    def count(changes: "Sequence[Change]", tally: "Tally") -> None:
        metrics.INDEX_CHANGES.labels(*own, "applied").inc(tally.applied)
        metrics.INDEX_CHANGES.labels(*own, "stale").inc(tally.stale)
        for _, reason in tally.refused:
            metrics.INDEX_CHANGES.labels(*own, reason).inc()
        for change in changes:
            if age_s := _age_s(change.cursor):  # a change from the store is at no place of the stream
                freshness.observe(age_s)
                if change.written_ms is not None:
                    from_write.observe(_since_s(change.written_ms))

    return count


def watch_index(shard: int, index: "VectorIndex", follower: "Follower") -> None:
    """Show the state of an index and its follower at each scrape."""
    own = str(shard), index.fingerprint
    metrics.INDEX_NOTES.labels(*own).set_function(lambda: len(index))
    metrics.INDEX_GENERATION.labels(*own).set_function(lambda: index.generation)
    metrics.INDEX_CURSOR_AGE_SECONDS.labels(*own).set_function(lambda: _age_s(follower.cursor))
    metrics.INDEX_SNAPSHOT_AGE_SECONDS.labels(*own).set_function(lambda: follower.unsaved_s)
    metrics.INDEX_RECALL.labels(*own).set_function(lambda: math.nan if follower.recall is None else follower.recall)
    metrics.INDEX_IMBALANCE.labels(*own).set_function(index.imbalance)
    for part in PARTS:
        metrics.INDEX_ROWS.labels(*own, part).set_function(partial(_figure, index, part))


def watch_memory(shard: int, notes: Callable[[], int]) -> None:
    """Show an indexer's memory by notes of all its indexes."""
    of_shard = metrics.INDEX_BYTES_PER_NOTE.labels(str(shard))
    of_shard.set_function(lambda: _own_memory_bytes() / max(notes(), 1))


def forget_index(shard: int, fingerprint: str) -> None:
    """Remove the metrics of an index, and with them their references to it."""
    own = str(shard), fingerprint
    gauges = (
        *(metrics.INDEX_NOTES, metrics.INDEX_GENERATION, metrics.INDEX_CURSOR_AGE_SECONDS, metrics.INDEX_RECALL),
        *(metrics.INDEX_IMBALANCE, metrics.INDEX_LAG_CHANGES, metrics.INDEX_LAG_SECONDS),
        metrics.INDEX_SNAPSHOT_AGE_SECONDS,
    )
    for gauge in gauges:
        gauge.remove(*own)
    for part in PARTS:
        metrics.INDEX_ROWS.remove(*own, part)


async def measure_lag(shard: int, fingerprint: str, stream: "RedisChangeStream", follower: "Follower") -> None:
    """Show how far an index lags behind the stream; the last figures stay while Redis does not answer."""
    with contextlib.suppress(StoreUnavailable):
        changes, age_s = await asyncio.to_thread(stream.lag, follower.cursor)
        metrics.INDEX_LAG_CHANGES.labels(str(shard), fingerprint).set(changes)
        metrics.INDEX_LAG_SECONDS.labels(str(shard), fingerprint).set(age_s)


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
    """Of the last change before the cursor; of several cells it stands in front, behind the number of its cell."""
    own = cursor.partition("-")[0]
    milliseconds = int(own.rpartition(":")[2])
    return _since_s(milliseconds) if milliseconds else 0.0


def _since_s(milliseconds: int) -> float:
    return max(0.0, time.time() - milliseconds / 1000)
