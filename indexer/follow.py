"""Keeps one shard's index in step with the stream of changes: read, apply, snapshot, compact.

The follower's thread is the index's one writer. Compaction and snapshots run beside it, one at a time.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import faiss

from indexer.index import Contents, VectorIndex, due
from indexer.shards import shard_of
from indexer.snapshot import Snapshots
from indexer.types import Change, Tally

log = logging.getLogger(__name__)

BATCH = 512
BLOCK_S = 0.5
LONGEST_WAIT_S = 5.0
CHORE_RETRY_S = 10.0


class ChangeStream(Protocol):
    """The ordered, replayable stream of changes of all shards. Synchronous; used by one thread."""

    def read(self, after: str, limit: int, block_s: float) -> list[Change]:
        """Up to ``limit`` changes behind the cursor ``after``, oldest first.

        Waits up to ``block_s`` seconds for the first one. May raise any exception when out of reach.
        """
        ...


def wait_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.1, 0.2, 0.4, ... and never more than 5."""
    return float(min(0.1 * 2 ** min(failures - 1, 10), LONGEST_WAIT_S))


class Follower:
    """Applies the shard's share of a stream to an index from a cursor on, in a thread of its own.

    The shard is the one the snapshots are for. ``caught_up`` is set once the stream was read to its end.
    ``on_batch`` is called in that thread with the tally of every batch that was not empty.
    """

    def __init__(
        self,
        index: VectorIndex,
        stream: ChangeStream,
        snapshots: Snapshots,
        cursor: str,
        *,
        snapshot_every_s: float = 60.0,
        on_batch: Callable[[Tally], None] = lambda _: None,
    ) -> None:
        self.cursor = cursor
        self.caught_up = threading.Event()
        self._index = index
        self._stream = stream
        self._snapshots = snapshots
        self._snapshot_every_s = snapshot_every_s
        self._on_batch = on_batch
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        # One thread: building a base must leave the other cores to the searches.
        self._chores = ThreadPoolExecutor(1, "chores", faiss.omp_set_num_threads, (1,))
        self._chore: Future[None] | None = None
        self._no_chore_before_s = 0.0
        self._saved_cursor = cursor
        self._saved_at_s = time.monotonic()

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch at hand, take a last snapshot if anything changed, and end."""
        self._stopping.set()
        self._thread.join()
        self._chores.shutdown()
        if self.cursor == self._saved_cursor:
            return
        try:
            self._save(self._index.contents(), self.cursor)
        except OSError:
            # An older snapshot and the stream still hold everything.
            log.exception("last_snapshot_failed")

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._step()
                failures = 0
            except Exception as error:
                # Whatever the stream raises, and our own bugs: to end here would serve stale vectors unseen.
                failures += 1
                log.warning(
                    "follow_failed",
                    extra={"cursor": self.cursor, "error": type(error).__name__, "failures": failures},
                    exc_info=failures == 1,
                )
                self._stopping.wait(wait_s(failures))

    def _step(self) -> None:
        changes = self._stream.read(self.cursor, BATCH, BLOCK_S)
        if changes:
            own = [change for change in changes if self._is_own(change)]
            tally = self._index.apply(own)
            self.cursor = changes[-1].cursor
            self._on_batch(tally)
        if len(changes) < BATCH:
            self.caught_up.set()
        self._start_chore()

    def _is_own(self, change: Change) -> bool:
        return shard_of(change.id, self._snapshots.shards) == self._snapshots.shard

    def _start_chore(self) -> None:
        now_s = time.monotonic()
        if self._chore is not None:
            if not self._chore.done():
                return
            if error := self._chore.exception():
                log.error("chore_failed", exc_info=error)
                self._no_chore_before_s = now_s + CHORE_RETRY_S
            self._chore = None
        if now_s < self._no_chore_before_s:
            return
        figures = self._index.figures
        if self.cursor != self._saved_cursor and now_s - self._saved_at_s >= self._snapshot_every_s:
            self._chore = self._chores.submit(self._save, self._index.contents(), self.cursor)
        elif due(figures.base, figures.delta, figures.dead):
            self._chore = self._chores.submit(self._index.compact)

    def _save(self, contents: Contents, cursor: str) -> None:
        """The contents were taken at this cursor, in the thread that applies changes."""
        self._snapshots.save(contents, cursor)
        self._saved_cursor, self._saved_at_s = cursor, time.monotonic()
