"""What readers did with notes: the seam `EventLog`, and its one implementation on Redis.

Events are what pairs are made of (eq. 1). Each counts once, however often it is sent.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import msgpack

from service.messages import EVENT, EVENTS, UNLESS_RESTORING
from service.redis_errors import redis_errors

if TYPE_CHECKING:
    from redis.asyncio import Redis

EventType = Literal["view", "click", "like", "save"]

# How long an event is known by its id: longer than any client goes on sending.
REMEMBERED_S = 7 * 24 * 3600

# ARGV: seconds, then id and record of each event. Answers 1 for each event that is new.
APPEND = (
    UNLESS_RESTORING
    + f"""
local new = {{}}
for i = 2, #ARGV, 2 do
  local first = redis.call('SET', '{EVENT}' .. ARGV[i], '', 'NX', 'EX', ARGV[1])
  if first then redis.call('XADD', '{EVENTS}', '*', 'event', ARGV[i + 1]) end
  new[#new + 1] = first and 1 or 0
end
return new
"""
)


@dataclass(frozen=True, slots=True)
class Event:
    """A reader did something with a note, having come from another (``source_note_id``) or from elsewhere.

    ``ts`` is in seconds since 1970.
    """

    event_id: str
    user_id: str
    note_id: str
    type: EventType
    ts: float
    source_note_id: str | None = None

    def encode(self) -> bytes:
        """The record: a msgpack map."""
        record: bytes = msgpack.packb(asdict(self))
        return record


class EventLog(Protocol):
    """Where events are kept until they are learned from."""

    async def append(self, events: Sequence[Event]) -> int:
        """Keep those whose ids are new, all in one step, and return how many. Raises StoreUnavailable."""
        ...


class RedisEvents:
    """`EventLog` as a stream of Redis."""

    def __init__(self, redis: "Redis") -> None:
        self._append = redis.register_script(APPEND)

    async def append(self, events: Sequence[Event]) -> int:
        """See `EventLog`."""
        if not events:
            return 0
        arguments = [part for event in events for part in (event.event_id, event.encode())]
        with redis_errors():
            return sum(await self._append(args=[REMEMBERED_S, *arguments]))
