"""The job queue of one model over several cells, as one worker sees it.

An entry is named by its stream and the number of its cell: ``<milliseconds>-<number>@<cell>``.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from service.store.cells.ring import Cells, gathered
from service.store.jobs import Claimed, JobQueue
from service.store.records import StoredNote, StoredPrediction

if TYPE_CHECKING:
    from redis.asyncio import Redis

# A worker that waits asks all cells at once, and as long again: no job waits longer for those that have none.
_ASK_S = 0.05


class CellQueue(JobQueue):
    """A `JobQueue` that claims of the cells in turn. All calls raise StoreUnavailable."""

    def __init__(
        self, cells: "Cells[Redis]", consumer: str, fingerprint: str, dim: int, *, take_over_s: float = 30.0
    ) -> None:
        super().__init__(cells.first, consumer, fingerprint, dim, take_over_s=take_over_s)
        self._cells = cells.map(lambda redis: JobQueue(redis, consumer, fingerprint, dim, take_over_s=take_over_s))
        self._turn = 0
        self._abandoned_in = 0

    async def open(self) -> int:
        """See `JobQueue`. The first cell is first: it says which models there are."""
        return sum([await queue.open() for queue in self._cells])

    async def claim(self, limit: int, block_s: float) -> list[Claimed]:
        """See `JobQueue`. A cell that had its turn is the last one next time."""
        until, wait_s = time.monotonic() + block_s, 0.0
        while True:
            asked = self._in_turn()[:limit]
            part = limit // len(asked)
            found = await gathered(self._cells.each[cell].claim(part, wait_s) for cell in asked)
            claimed = [_named(item, cell) for cell, some in zip(asked, found, strict=True) for item in some]
            left_s = until - time.monotonic()
            if claimed or left_s <= 0:
                return claimed
            wait_s = min(_ASK_S, left_s)

    async def has_abandoned(self) -> bool:
        """See `JobQueue`."""
        for cell, queue in enumerate(self._cells):
            if await queue.has_abandoned():
                self._abandoned_in = cell
                return True
        return False

    async def reclaim(self, limit: int) -> list[Claimed]:
        """See `JobQueue`: those of the cell in which `has_abandoned` found some."""
        cell = self._abandoned_in
        return [_named(item, cell) for item in await self._cells.each[cell].reclaim(limit)]

    async def heartbeat(self, entries: Sequence[str]) -> None:
        """See `JobQueue`."""
        await gathered(queue.heartbeat(own) for queue, own in self._by_cell(entries))

    async def release(self, entries: Sequence[str]) -> None:
        """See `JobQueue`."""
        await gathered(queue.release(own) for queue, own in self._by_cell(entries))

    async def finish(self, entries: Sequence[str]) -> None:
        """See `JobQueue`."""
        await gathered(queue.finish(own) for queue, own in self._by_cell(entries))

    async def notes(self, claimed: Sequence[Claimed]) -> list[StoredNote | None]:
        """See `JobQueue`."""
        return await self._cells.routed(claimed, _note_of, lambda queue, some: queue.notes(some))

    async def predictions(self, claimed: Sequence[Claimed]) -> list[StoredPrediction | None]:
        """See `JobQueue`."""
        return await self._cells.routed(claimed, _note_of, lambda queue, some: queue.predictions(some))

    async def publish(self, results: Sequence[tuple[Claimed, StoredPrediction]]) -> int:
        """See `JobQueue`; in one step in each cell."""
        split = self._cells.split(results, lambda result: result[0].job.note_id)
        own = ((queue, [results[place] for place in places]) for queue, places in split)
        return sum(
            await gathered(queue.publish([(_unnamed(item), said) for item, said in some]) for queue, some in own)
        )

    async def dead_letter(self, item: Claimed, reason: str) -> None:
        """See `JobQueue`."""
        await self._cells.of_note(item.job.note_id).dead_letter(_unnamed(item), reason)

    def _in_turn(self) -> list[int]:
        self._turn = (self._turn + 1) % len(self._cells)
        return [(self._turn + cell) % len(self._cells) for cell in range(len(self._cells))]

    def _by_cell(self, entries: Sequence[str]) -> list[tuple[JobQueue, list[str]]]:
        own: dict[int, list[str]] = {}
        for entry in entries:
            name, _, cell = entry.partition("@")
            own.setdefault(int(cell), []).append(name)
        return [(self._cells.each[cell], names) for cell, names in own.items()]


def _note_of(item: Claimed) -> str:
    return item.job.note_id


def _named(item: Claimed, cell: int) -> Claimed:
    return replace(item, entry=f"{item.entry}@{cell}")


def _unnamed(item: Claimed) -> Claimed:
    return replace(item, entry=item.entry.partition("@")[0])
