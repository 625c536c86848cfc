"""Keeps one shard's index in step with the stream of changes.

The follower's thread is the index's one writer. Another thread runs the chores, one at a time: compaction, snapshots
and probes of recall.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import Protocol

from indexer.index import Contents, VectorIndex, compaction_due
from indexer.low_priority import set_niceness
from indexer.shards import shard_of
from indexer.snapshot import KEPT, Snapshots
from indexer.types import Change, Tally

log = logging.getLogger(__name__)

START = "0-0"
BATCH = 512
BLOCK_S = 0.5
GATHER_S = 0.02
LONGEST_BACKOFF_S = 5.0
CHORE_RETRY_S = 10.0
CHORE_NICENESS = 10


class ChangeStream(Protocol):
    """The ordered, replayable stream of changes of all shards, and the store behind it.

    Synchronous; used by one thread. Every method may raise any exception when the stream is unreachable.
    """

    def read(self, after: str, limit: int, block_s: float) -> list[Change]:
        """Up to ``limit`` changes after a cursor, oldest first. Waits up to ``block_s`` seconds for the first."""
        ...

    def holds(self, cursor: str) -> bool:
        """Whether every change that was written after this cursor can still be read."""
        ...

    def everything(self) -> tuple[str, Iterator[Change]]:
        """A cursor, and from the store the newest change of every live note, at that moment or later.

        To apply them and then follow from the cursor misses nothing.
        """
        ...

    def refuse(self, change: Change, reason: str) -> None:
        """Report a vector that no index can hold. A second report changes nothing."""
        ...

    def keep(self, cursor: str) -> None:
        """This follower needs only the changes after the cursor: earlier ones may be cut off."""
        ...


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.1, 0.2, 0.4, ... and never more than 5."""
    return float(min(0.1 * 2 ** min(failures - 1, 10), LONGEST_BACKOFF_S))


class Follower:
    """Applies the changes of one shard and one model to an index from a cursor on, in a thread of its own.

    The shard is that of the snapshots. Without a cursor, and whenever the stream no longer holds all changes after it,
    the index is rebuilt from the store; until that is done, searches find the old rows.
    ``caught_up`` is set once the stream was read to its end; ``recall`` is the last one measured, if any. The thread
    calls ``on_batch`` with this shard's changes of every batch and their tally, and ``on_failure`` with the name of a
    chore that failed.
    """

    def __init__(
        self,
        index: VectorIndex,
        stream: ChangeStream,
        snapshots: Snapshots,
        cursor: str | None,
        *,
        snapshot_every_s: float = 60.0,
        probe_every_s: float = 300.0,
        on_batch: Callable[[Sequence[Change], Tally], None] = lambda *_: None,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.cursor = cursor or START
        self.caught_up = threading.Event()
        self.rebuilds = 0
        self.recall: float | None = None
        self._complete = cursor is not None
        self._index = index
        self._stream = stream
        self._snapshots = snapshots
        self._snapshot_every_s = snapshot_every_s
        self._on_batch = on_batch
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._chores = ThreadPoolExecutor(1, "chores", set_niceness, (CHORE_NICENESS,))
        self._chore: tuple[str, Future[None]] | None = None
        self._no_chore_before_s = 0.0
        self._retained_from: str | None = None
        self._probe_every_s = probe_every_s
        self._probed_at_s = -math.inf
        self._saved_cursor = cursor
        self._saved_at_s = time.monotonic()

    @property
    def unsaved_s(self) -> float:
        """Seconds since the last snapshot, or since the start, while changes are not in it; else 0."""
        return time.monotonic() - self._saved_at_s if self._has_unsaved() else 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, *, save: bool = True) -> None:
        """Finish the batch in progress, save a last snapshot if anything changed, and end the threads."""
        self._stopping.set()
        self._thread.join()
        self._chores.shutdown()
        if not (save and self._has_unsaved()):
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
                # Any error of the stream, and our own bugs: a dead thread would leave the index stale unseen.
                failures += 1
                log.warning(
                    "follow_failed",
                    extra={"cursor": self.cursor, "error": type(error).__name__, "failures": failures},
                    exc_info=failures == 1,
                )
                self._stopping.wait(backoff_s(failures))

    def _step(self) -> None:
        if not self._complete:
            self._rebuild()
            return
        changes = self._stream.read(self.cursor, BATCH, BLOCK_S)
        # Checked after reading: if the stream holds the cursor now, it did so then.
        if not self._stream.holds(self.cursor):
            log.warning("stream_gap", extra={"cursor": self.cursor})
            self._discard_snapshots()
            self._complete = False
            return
        if changes:
            self._apply(self._index, changes)
            self.cursor = changes[-1].cursor
        if len(changes) < BATCH:
            self.caught_up.set()
        self._retain_stream()
        self._start_chore()
        if changes and len(changes) < BATCH:
            # Let changes gather: a round trip and a turn in Python for each would slow the searches.
            self._stopping.wait(GATHER_S)

    def _discard_snapshots(self) -> None:
        """Also one in progress: their cursors belong to a stream that was cut or replaced."""
        if self._chore is not None:
            wait([self._chore[1]])
        self._snapshots.discard()
        self._saved_cursor = self._retained_from = None

    def _rebuild(self) -> None:
        """Fill an empty index from the store, then swap; after a failure, `_run` begins again."""
        cursor, changes = self._stream.everything()
        self._stream.keep(cursor)
        fresh = self._index.empty_like()
        for batch in _batches(changes):
            self._apply(fresh, batch)
            if self._stopping.is_set():
                return
        self._index.replace_with(fresh)
        self.rebuilds += 1
        self.cursor, self._complete = cursor, True
        log.info("index_rebuilt", extra={"cursor": cursor, "notes": len(fresh)})

    def _apply(self, index: VectorIndex, changes: Sequence[Change]) -> None:
        own = [change for change in changes if self._is_own(change)]
        tally = index.apply(own)
        for change, reason in tally.refused:
            self._stream.refuse(change, reason)
        self._on_batch(own, tally)

    def _is_own(self, change: Change) -> bool:
        if change.vector is not None and change.fingerprint != self._index.fingerprint:
            return False
        return shard_of(change.id, self._snapshots.shards) == self._snapshots.shard

    def _retain_stream(self) -> None:
        """Once for each snapshot: the oldest one needs the changes after its cursor."""
        if self._retained_from != self._saved_cursor:
            self._retained_from = self._saved_cursor
            self._stream.keep(self._snapshots.oldest_cursor() or START)

    def _start_chore(self) -> None:
        """Start the chore that is due, if any, unless one runs."""
        if self._chore is not None and not self._chore[1].done():
            return
        now_s = time.monotonic()
        self._finish_chore(now_s)
        if now_s < self._no_chore_before_s:
            return
        figures = self._index.figures
        if self._has_unsaved() and now_s - self._saved_at_s >= self._snapshot_every_s:
            self._submit("snapshot", partial(self._save, self._index.contents(), self.cursor))
        elif compaction_due(figures.base, figures.delta, figures.dead):
            self._submit("compaction", self._index.compact)
        elif now_s - self._probed_at_s >= self._probe_every_s:
            self._probed_at_s = now_s
            self._submit("probe", self._probe)

    def _finish_chore(self, now_s: float) -> None:
        if self._chore is not None:
            name, chore = self._chore
            if error := chore.exception():
                log.error("chore_failed", extra={"chore": name}, exc_info=error)
                self._on_failure(name)
                self._no_chore_before_s = now_s + CHORE_RETRY_S
            self._chore = None

    def _submit(self, name: str, chore: Callable[[], None]) -> None:
        def timed() -> None:
            start_s = time.monotonic()
            chore()
            log.info("chore_done", extra={"chore": name, "seconds": round(time.monotonic() - start_s, 3)})

        self._chore = name, self._chores.submit(timed)

    def _probe(self) -> None:
        """Measure recall, and retrain the index if it has declined."""
        self.recall = recall = self._index.recall()
        if self._index.has_declined(recall):
            log.warning("recall_declined", extra={"recall": recall})
            self._index.compact(retrain=True)
            self.recall = self._index.recall()

    def _has_unsaved(self) -> bool:
        """Whether changes are missing from the last snapshot, and a new one could be resumed from.

        Not one at the start of the stream: a cut after it could not be noticed.
        """
        return self._complete and self.cursor not in (self._saved_cursor, START)

    def _save(self, contents: Contents, cursor: str) -> None:
        """The contents were copied at this cursor, by the thread that applies changes."""
        self._snapshots.save(contents, cursor)
        self._index.snapshot_written(KEPT)
        self._saved_cursor, self._saved_at_s = cursor, time.monotonic()


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    remaining = iter(changes)
    while batch := list(islice(remaining, BATCH)):
        yield batch
