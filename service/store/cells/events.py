"""`EventLog` of a store of several cells: the log is in the first, what it says of a note's exposure in the note's.

The second comes a moment after the first. Where a gateway ends in between, the notes of other cells were shown once
more than they tell.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.store.attribution.exposure import SHOWN, Exposure
from service.store.cells.ring import Cells, gathered
from service.store.cluster.replicas import acknowledged
from service.store.connection import redis_errors
from service.store.events import RedisEvents
from service.store.idempotency import OUTCOME, REQUEST
from service.store.interfaces import AnswerLog
from service.store.records import Event
from service.store.schema import UNLESS_RESTORING

if TYPE_CHECKING:
    from redis.asyncio import Redis

# ARGV: those of `OUTCOME`, then events that were not seen before.
COUNT_SHOWN = (
    UNLESS_RESTORING
    + OUTCOME
    + SHOWN
    + """
for _, record in ipairs(ARGV) do
  local whole, event = pcall(cmsgpack.unpack, record)
  if whole then shown(event) end
end
return remember(1)
"""
)


class CellEvents(RedisEvents):
    """`EventLog` of a store of several cells."""

    def __init__(self, cells: "Cells[Redis]", answers: AnswerLog | None = None) -> None:
        super().__init__(cells.first, answers)
        self._count_shown = cells.map(lambda redis: acknowledged(redis, COUNT_SHOWN))

    async def append(self, events: Sequence[Event]) -> int:
        """See `EventLog`."""
        new = [event for event, is_new in zip(events, await self.appended(events), strict=True) if is_new]
        split = self._count_shown.split(new, lambda event: event.note_id)
        with redis_errors():
            await gathered(
                count(args=[*REQUEST.get(), *(new[place].encode() for place in own)])
                for count, own in split
                if count is not self._count_shown.first
            )
        return len(new)


class CellExposure:
    """`Exposure` of each cell."""

    def __init__(self, cells: "Cells[Redis]") -> None:
        self._cells = cells.map(Exposure)

    async def __call__(self) -> None:
        """See `Exposure`."""
        await gathered(announce() for announce in self._cells)
