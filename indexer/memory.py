"""The stream of changes in memory: for tests of what follows it."""

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from indexer.follow import START
from indexer.types import Change


def _place(cursor: str) -> int:
    """Number of changes before the cursor."""
    return int(cursor.partition("-")[0])


class MemoryChangeStream:
    """`ChangeStream` over a list of one model's changes: the cursor is the number of changes before it.

    The first ``cut`` of them can no longer be read; each of ``failures`` is raised once. The store behind it holds the
    newest change of every id.
    """

    def __init__(self, fingerprint: str = "m") -> None:
        self.fingerprint = fingerprint
        self.entries: list[Change] = []
        self.failures: list[Exception] = []
        self.cut = 0
        self.reads = 0
        self.refused: list[tuple[str, str]] = []
        self.kept: list[str] = []
        self._news = threading.Condition()

    @property
    def end(self) -> str:
        """The cursor behind all of them."""
        return str(len(self.entries)) if self.entries else START

    def add(self, id_: str, version: int, vector: NDArray[np.float32] | None) -> None:
        """What a worker publishes, or a delete leaves."""
        with self._news:
            self.entries.append(Change(str(len(self.entries) + 1), id_, version, self.fingerprint, vector))
            self._news.notify_all()

    def read(self, after: str, limit: int, block_s: float) -> list[Change]:
        """See `ChangeStream`."""
        self.reads += 1
        if self.failures:
            raise self.failures.pop()
        with self._news:
            self._news.wait_for(lambda: len(self.entries) > _place(after), timeout=min(block_s, 0.05))
            first = max(_place(after), self.cut)
            return self.entries[first : first + limit]

    def holds(self, cursor: str) -> bool:
        """See `ChangeStream`."""
        return self.cut <= _place(cursor) <= len(self.entries)

    def everything(self) -> tuple[str, Iterator[Change]]:
        """See `ChangeStream`."""
        newest = {change.id: change for change in self.entries}
        return self.end, iter([change for change in newest.values() if change.vector is not None])

    def refuse(self, change: Change, reason: str) -> None:
        """See `ChangeStream`."""
        self.refused.append((change.id, reason))

    def keep(self, cursor: str) -> None:
        """See `ChangeStream`."""
        self.kept.append(cursor)
