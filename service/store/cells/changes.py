"""The streams of changes of several cells as one, whose cursor has one a cell.

It is written ``<cell>:<entry>,...``, the cell of the last change in front, so that its time is that of the change;
``0-0`` is the start of all. A cursor of a store with another number of cells is none that is held.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from indexer.types import Change
from service.store.cells.ring import Cells
from service.store.changes import START, RedisChangeStream

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

# Between two looks at all streams while none has anything.
_LOOK_S = 0.02


class CellChangeStream(RedisChangeStream):
    """The `ChangeStream` of `indexer.follow` over several cells. All calls raise StoreUnavailable."""

    def __init__(self, cells: "Cells[SyncRedis]", fingerprint: str, indexer: str = "indexer") -> None:
        self._streams = cells.map(lambda redis: RedisChangeStream(redis, fingerprint, indexer))
        self._first = 0

    @property
    def malformed(self) -> int:  # type: ignore[override]
        """See `RedisChangeStream`."""
        return sum(stream.malformed for stream in self._streams)

    def read(self, after: str, limit: int, block_s: float) -> list[Change]:
        """See `RedisChangeStream`; those of each cell in order. Which one begins takes turns."""
        until = time.monotonic() + block_s
        while True:
            changes = self._read(after, limit)
            left_s = until - time.monotonic()
            if changes or left_s <= 0:
                return changes
            time.sleep(min(_LOOK_S, left_s))

    def holds(self, cursor: str) -> bool:
        """See `RedisChangeStream`.

        A cell that had no change yet has no entry that could be gone: as long as it knows this follower, nothing was
        cut.
        """
        if cursor == START:
            return True
        entries = self._entries_of(cursor)
        return sorted(cursor.split(",")) == sorted(_parts(entries)) and all(
            stream.holds(entry) and (entry != START or stream.is_known())
            for stream, entry in zip(self._streams, entries, strict=True)
        )

    def everything(self) -> tuple[str, Iterator[Change]]:
        """See `RedisChangeStream`."""
        found = [stream.everything() for stream in self._streams]
        cursor = _joined([entry for entry, _ in found], 0)
        return cursor, chain.from_iterable(changes for _, changes in found)

    def refuse(self, change: Change, reason: str) -> None:
        """See `RedisChangeStream`."""
        self._streams.of_note(change.id).refuse(change, reason)

    def keep(self, cursor: str) -> None:
        """See `RedisChangeStream`."""
        for stream, entry in zip(self._streams, self._entries_of(cursor), strict=True):
            stream.keep(entry)

    def lag(self, cursor: str) -> tuple[int, float]:
        """See `RedisChangeStream`: the entries of all, and the age of the oldest."""
        found = [stream.lag(entry) for stream, entry in zip(self._streams, self._entries_of(cursor), strict=True)]
        return sum(entries for entries, _ in found), max(age_s for _, age_s in found)

    def _read(self, after: str, limit: int) -> list[Change]:
        entries, changes = self._entries_of(after), list[Change]()
        count = len(self._streams)
        self._first = (self._first + 1) % count
        for cell in ((self._first + place) % count for place in range(count)):
            if len(changes) < limit:
                for change in self._streams.each[cell].read(entries[cell], limit - len(changes), 0):
                    entries[cell] = change.cursor
                    changes.append(replace(change, cursor=_joined(entries, cell)))
        return changes

    def _entries_of(self, cursor: str) -> list[str]:
        """The entry of each cell, in order; the start where the cursor has none."""
        known = {cell: entry for cell, _, entry in (part.partition(":") for part in cursor.split(",")) if entry}
        return [known.get(str(cell), START) for cell in range(len(self._streams))]


def _joined(entries: Sequence[str], last: int) -> str:
    if all(entry == START for entry in entries):
        return START
    parts = _parts(entries)
    return ",".join((parts[last], *parts[:last], *parts[last + 1 :]))


def _parts(entries: Sequence[str]) -> list[str]:
    return [f"{cell}:{entry}" for cell, entry in enumerate(entries)]
