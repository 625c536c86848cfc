"""The registered models of several cells. The first cell says which there are and which is active; the others follow.

A model is registered in the first cell first (`cells.jobs`) and retired there last, so that a command that was
interrupted can be repeated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.errors import StoreUnavailable
from service.store.cells.ring import Cells, gathered
from service.store.connection import redis_errors
from service.store.registry import Progress, Registry
from service.store.schema import EXPERIMENTS, LUA

if TYPE_CHECKING:
    from redis.asyncio import Redis

# ARGV: the model that is active in the first cell. A write to a cell queues for all models alike; which one is active
# decides whose queue is full, and which index hears of a delete first.
FOLLOW = (
    LUA
    + """
if registered(ARGV[1]) and redis.call('GET', ACTIVE) ~= ARGV[1] then redis.call('SET', ACTIVE, ARGV[1]) end
"""
)

# ARGV: the model. 1 when it is neither active nor in an experiment that runs.
MAY_RETIRE = (
    LUA
    + f"""
if redis.call('GET', ACTIVE) == ARGV[1] then return 0 end
local kept = redis.call('HGETALL', '{EXPERIMENTS}')
for i = 1, #kept, 2 do
  if kept[i] ~= '' then
    local experiment = cjson.decode(kept[i + 1])
    for _, arm in ipairs(experiment.arms) do
      if experiment.ended_at == cjson.null and arm.model == ARGV[1] then return 0 end
    end
  end
end
return 1
"""
)


class CellRegistry(Registry):
    """The models of several cells."""

    def __init__(self, cells: "Cells[Redis]") -> None:
        super().__init__(cells.first)
        self._cells = cells.map(Registry)
        self._may_retire = cells.first.register_script(MAY_RETIRE)
        self._follow = [redis.register_script(FOLLOW) for redis in cells.others]

    async def progress(self, fingerprint: str) -> Progress:
        """See `Registry`; ``idle_s`` is of the cell that no worker has asked for longest."""
        found = await gathered(cell.progress(fingerprint) for cell in self._cells)
        idle = [progress.idle_s for progress in found]
        return Progress(
            sum(progress.predicted for progress in found),
            sum(progress.dead_lettered for progress in found),
            sum(progress.waiting for progress in found),
            all(progress.filled for progress in found),
            None if None in idle else max(idle_s for idle_s in idle if idle_s is not None),
        )

    async def dead_lettered(self, fingerprint: str, note_ids: Sequence[str]) -> int:
        """See `Registry`."""
        split = self._cells.split(note_ids, str)
        found = await gathered(
            cell.dead_lettered(fingerprint, [note_ids[place] for place in own]) for cell, own in split
        )
        return sum(found)

    async def activate(self, fingerprint: str) -> bool:
        """See `Registry`."""
        done = await super().activate(fingerprint)
        await self.follow()
        return done

    async def follow(self) -> None:
        """Make the active model of the first cell that of all; workers do so all the time. Raises StoreUnavailable."""
        active = await self.active()
        if active is not None:
            with redis_errors():
                await gathered(follow(args=[active]) for follow in self._follow)

    async def retire(self, fingerprint: str) -> bool:
        """See `Registry`."""
        with redis_errors():
            if not await self._may_retire(args=[fingerprint]):
                return False
        await self.follow()
        if not all(await gathered(cell.retire(fingerprint) for cell in self._cells.others)):
            raise StoreUnavailable("the model is active in one of the cells: repeat it")
        return await super().retire(fingerprint)
