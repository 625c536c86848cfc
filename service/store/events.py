"""`EventLog` on Redis. Pairs are made of its events (eq. 1)."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from service.store.attribution.exposure import SHOWN
from service.store.attribution.outcomes import ATTRIBUTED, Outcomes, outcomes_of
from service.store.cluster.replicas import acknowledged
from service.store.connection import redis_errors
from service.store.idempotency import OUTCOME, REQUEST
from service.store.interfaces import AnswerLog
from service.store.records import SEEN_MOST, SEEN_S, Event, digest_of
from service.store.schema import COMPLETED, ERASING, EVENT, EVENTS, OUTCOMES, SEEN, UNLESS_RESTORING

if TYPE_CHECKING:
    from redis.asyncio import Redis

# How long an event's id is remembered: longer than any client retries.
REMEMBERED_S = 7 * 24 * 3600
# Entries that one script looks at, or takes in: nothing else in Redis runs beside it. A few milliseconds.
_BATCH, _TAKEN_IN = 1000, 200
# An erasure that was interrupted goes on where it was, if it is repeated by then.
_ERASING_S = 24 * 3600
_COMPLETION = "seen"

# Keeps the note of an event (a record) as seen by its reader, and returns the event. What is older than 90 days is not
# read (`seen`), and goes when there is more than enough, or when the reader was away for so long.
_SEE = f"""
local now = tonumber(redis.call('TIME')[1])
local function see(record)
  local whole, event = pcall(cmsgpack.unpack, record)
  if not whole then return nil end
  if event.type == 'impression' or event.ts <= now - {SEEN_S} then return event end
  local key = '{SEEN}' .. event.user_id
  redis.call('ZADD', key, 'GT', math.min(event.ts, now), event.note_id)
  if redis.call('ZCARD', key) > {SEEN_MOST} then redis.call('ZREMRANGEBYRANK', key, 0, -{SEEN_MOST + 1}) end
  redis.call('EXPIRE', key, {SEEN_S})
  return event
end
"""

# The entries behind one, as id and name and value of their field.
_ENTRIES = f"""
local function entries(after, count)
  return redis.call('XRANGE', '{EVENTS}', '(' .. after, '+', 'COUNT', count)
end
"""

# ARGV: those of `OUTCOME`, seconds, then id and record of each event. Answers 1 for each event that is new.
APPEND = (
    UNLESS_RESTORING
    + OUTCOME
    + _SEE
    + SHOWN
    + ATTRIBUTED
    + f"""
local new = {{}}
for i = 2, #ARGV, 2 do
  local first = redis.call('SET', '{EVENT}' .. ARGV[i], '', 'NX', 'EX', ARGV[1])
  if first then
    redis.call('XADD', '{EVENTS}', '*', 'event', ARGV[i + 1])
    local event = see(ARGV[i + 1])
    if event then
      shown(event)
      attributed(event)
    end
  end
  new[#new + 1] = first and 1 or 0
end
return remember(new)
"""
)

# ARGV: the last entry that was looked at, how many to look at. Returns the last of these; nil if there are no others.
SEE = (
    UNLESS_RESTORING
    + _SEE
    + _ENTRIES
    + """
local last
for _, entry in ipairs(entries(ARGV[1], ARGV[2])) do
  if entry[2][1] == 'event' then see(entry[2][2]) end
  last = entry[1]
end
return last
"""
)

# ARGV: the reader, their digest, how many entries to look at, seconds. Removes the reader's events among the next
# entries. 1 once it has looked at all: then nothing of the reader is left, and the log says so.
ERASE = (
    UNLESS_RESTORING
    + _ENTRIES
    + f"""
local user, mark, count = ARGV[1], '{ERASING}' .. ARGV[2], tonumber(ARGV[3])
local found = entries(redis.call('GET', mark) or '0-0', count)
for _, entry in ipairs(found) do
  local name, record = entry[2][1], entry[2][2]
  -- Most records need not be unpacked.
  if name == 'event' and string.find(record, user, 1, true) then
    local whole, event = pcall(cmsgpack.unpack, record)
    if whole and event.user_id == user then redis.call('XDEL', '{EVENTS}', entry[1]) end
  end
end
if #found == count then
  redis.call('SET', mark, found[count][1], 'EX', ARGV[4])
  return 0
end
redis.call('DEL', mark, '{SEEN}' .. user)
redis.call('XADD', '{EVENTS}', '*', 'erased', ARGV[2])
return 1
"""
)


class RedisEvents:
    """`EventLog` as a stream, with a sorted set of what each reader has seen."""

    def __init__(self, redis: "Redis", answers: AnswerLog | None = None) -> None:
        """``answers`` loses a reader who is erased, too."""
        self._redis = redis
        self._answers = answers
        self._append = acknowledged(redis, APPEND)
        self._see = redis.register_script(SEE)
        self._erase = acknowledged(redis, ERASE)
        self._completed = False

    async def append(self, events: Sequence[Event]) -> int:
        """See `EventLog`."""
        return sum(await self.appended(events))

    async def appended(self, events: Sequence[Event]) -> list[int]:
        """Append the events that are new; for each whether it is, as 1 or 0. Raises StoreUnavailable."""
        if not events:
            return []
        arguments = [part for event in events for part in (event.event_id, event.encode())]
        with redis_errors():
            return list(await self._append(args=[*REQUEST.get(), REMEMBERED_S, *arguments]))

    async def seen(self, user_id: str) -> list[str]:
        """See `EventLog`."""
        since = f"({time.time() - SEEN_S}"
        with redis_errors():
            notes: Any = await self._redis.zrevrangebyscore(SEEN + user_id, "+inf", since, start=0, num=SEEN_MOST)
        return [note_id.decode() for note_id in notes]

    async def outcomes(self, days: int) -> Outcomes:
        """See `EventLog`."""
        with redis_errors():
            today = (await self._redis.time())[0] // 86_400
            async with self._redis.pipeline(transaction=False) as pipe:
                for day in range(days):
                    pipe.hgetall(f"{OUTCOMES}{today - day}")
                counted = await pipe.execute()
        return outcomes_of({name.decode(): int(count) for name, count in day.items()} for day in counted)

    async def erase(self, user_id: str) -> None:
        """See `EventLog`."""
        if self._answers:
            await self._answers.erase(user_id)
        with redis_errors():
            while not await self._erase(args=[user_id, digest_of(user_id), _BATCH, _ERASING_S]):
                pass

    async def complete(self) -> None:
        """Fill in what readers have seen by the events of an older release, or of a backup; once.

        A call that fails is to be repeated: it begins anew, which changes nothing. Raises StoreUnavailable.
        """
        if self._completed:
            return
        with redis_errors():
            if not await self._redis.sismember(COMPLETED, _COMPLETION):
                last: Any = b"0-0"
                while last:
                    last = await self._see(args=[last, _TAKEN_IN])
                await self._redis.sadd(COMPLETED, _COMPLETION)
        self._completed = True
