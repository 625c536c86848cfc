"""The stream of changes in memory, for tests of its followers."""

import threading
from collections.abc import Iterator

from indexer.follow import START
from indexer.types import Change, Fields, Floats

# So that a follower's thread, which may wait in `read`, ends soon.
LONGEST_BLOCK_S = 0.05


def _entries_before(cursor: str) -> int:
    return int(cursor.partition("-")[0])


class MemoryChangeStream:
    """`ChangeStream` over a list of one model's changes: the cursor is the number of changes up to it.

    The first ``cut`` of them can no longer be read. Each of ``failures`` is raised once, by `read`. The store is the
    newest change of every id. ``refused`` and ``kept`` record the follower's reports.
    """

    def __init__(self, fingerprint: str = "m") -> None:
        self.fingerprint = fingerprint
        self.entries: list[Change] = []
        self.failures: list[Exception] = []
        self.cut = 0
        self.reads = 0
        self.refused: list[tuple[str, str]] = []
        self.kept: list[str] = []
        self._added = threading.Condition()

    @property
    def end(self) -> str:
        """The cursor of the newest change."""
        return str(len(self.entries)) if self.entries else START

    def add(
        self, id_: str, version: int, vector: Floats | None, fields: Fields | None = None, *, hidden: bool = False
    ) -> None:
        """Append an upsert, or without a vector a delete."""
        with self._added:
            cursor = str(len(self.entries) + 1)
            change = Change(cursor, id_, version, self.fingerprint, vector, fields=fields or {}, hidden=hidden)
            self.entries.append(change)
            self._added.notify_all()

    def read(self, after: str, limit: int, block_s: float) -> list[Change]:
        """See `ChangeStream`; waits at most `LONGEST_BLOCK_S`."""
        self.reads += 1
        if self.failures:
            raise self.failures.pop()
        start = _entries_before(after)
        with self._added:
            self._added.wait_for(lambda: len(self.entries) > start, timeout=min(block_s, LONGEST_BLOCK_S))
            start = max(start, self.cut)
            return self.entries[start : start + limit]

    def holds(self, cursor: str) -> bool:
        """See `ChangeStream`."""
        return self.cut <= _entries_before(cursor) <= len(self.entries)

    def everything(self) -> tuple[str, Iterator[Change]]:
        """See `ChangeStream`."""
        newest = {change.id: change for change in self.entries}
        return self.end, iter([change for change in newest.values() if change.vector is not None])

    def refuse(self, change: Change, reason: str) -> None:
        """See `ChangeStream`."""
        if (change.id, reason) not in self.refused:
            self.refused.append((change.id, reason))

    def keep(self, cursor: str) -> None:
        """See `ChangeStream`; cuts nothing off."""
        self.kept.append(cursor)
