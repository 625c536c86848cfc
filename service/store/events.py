"""`EventLog` on Redis. Pairs are made of its events (eq. 1)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.store.connection import redis_errors
from service.store.idempotency import OUTCOME, REQUEST
from service.store.records import Event
from service.store.schema import EVENT, EVENTS, UNLESS_RESTORING

if TYPE_CHECKING:
    from redis.asyncio import Redis

# How long an event's id is remembered: longer than any client retries.
REMEMBERED_S = 7 * 24 * 3600

# ARGV: those of `OUTCOME`, seconds, then id and record of each event. Answers 1 for each event that is new.
APPEND = (
    UNLESS_RESTORING
    + OUTCOME
    + f"""
local new = {{}}
for i = 2, #ARGV, 2 do
  local first = redis.call('SET', '{EVENT}' .. ARGV[i], '', 'NX', 'EX', ARGV[1])
  if first then redis.call('XADD', '{EVENTS}', '*', 'event', ARGV[i + 1]) end
  new[#new + 1] = first and 1 or 0
end
return remember(new)
"""
)


class RedisEvents:
    """`EventLog` as a stream."""

    def __init__(self, redis: "Redis") -> None:
        self._append = redis.register_script(APPEND)

    async def append(self, events: Sequence[Event]) -> int:
        """See `EventLog`."""
        if not events:
            return 0
        arguments = [part for event in events for part in (event.event_id, event.encode())]
        with redis_errors():
            return sum(await self._append(args=[*REQUEST.get(), REMEMBERED_S, *arguments]))
