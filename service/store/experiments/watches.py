"""The watch in Redis, a hash, and the scripts that change it.

Whoever makes a model active starts one in the same script (`POINT`). Gateways compare the two models
(`service.experiments.guard`), one at a time, and may order the way back; they have no right to change which model is
active. A worker of the model before has, and does it (`service.experiments.way_back`).
"""

import json
from typing import TYPE_CHECKING, Any

from service.store.connection import redis_errors
from service.store.experiments.watch import Watch
from service.store.schema import GUARDIAN, LUA, UNLESS_RESTORING, WATCH

if TYPE_CHECKING:
    from redis.asyncio import Redis

# How long a gateway is the one that compares, without a word of it.
LEASE_S = 15

# Makes a model active by somebody's word. To go back to the model before is not watched, nor is a model that was taken
# back and is wanted all the same: they know what they do.
POINT = f"""
local function point(model)
  local before = redis.call('GET', ACTIVE)
  redis.call('SET', ACTIVE, model)
  if not before or before == model then return end
  local last = redis.call('HMGET', '{WATCH}', 'model', 'before', 'state')
  local known = last[2] == model or (last[1] == model and last[3] == 'taken_back')
  redis.call('HSET', '{WATCH}', 'model', model, 'before', before, 'since', redis.call('TIME')[1],
    'state', known and 'unwatched' or 'watching',
    'baseline', '', 'ended', '', 'reason', '', 'detail', '', 'order', '', 'blocked', '', 'worker', '')
end
"""

# ARGV: model and time of a watch, then fields and values to set. 1 if that watch still runs.
WRITE = (
    UNLESS_RESTORING
    + f"""
local watch = redis.call('HMGET', '{WATCH}', 'model', 'since', 'state')
if watch[1] ~= ARGV[1] or watch[2] ~= ARGV[2] or watch[3] ~= 'watching' then return 0 end
for i = 3, #ARGV, 2 do
  if ARGV[i] == 'state' then redis.call('HSET', '{WATCH}', 'ended', redis.call('TIME')[1]) end
  redis.call('HSET', '{WATCH}', ARGV[i], ARGV[i + 1])
end
return 1
"""
)

# ARGV: a model, of which a worker runs. Makes it active again if that is ordered, and nobody activated another one
# since; then, what the one after it was taken back for: the model, the reason, and it in words. Redis before 7.2 does
# not tell of a worker that waits for notes, so it says here that it runs.
TAKE_BACK = (
    LUA
    + f"""
local watch = redis.call('HMGET', '{WATCH}', 'before', 'state', 'order', 'model', 'reason', 'detail')
if watch[1] ~= ARGV[1] or watch[2] ~= 'watching' then return nil end
redis.call('HSET', '{WATCH}', 'worker', redis.call('TIME')[1])
if watch[3] ~= '1' then return nil end
if redis.call('GET', ACTIVE) ~= watch[4] or not registered(watch[1]) then return nil end
redis.call('SET', ACTIVE, watch[1])
redis.call('HSET', '{WATCH}', 'state', 'taken_back', 'ended', redis.call('TIME')[1])
return {{watch[4], watch[5], watch[6]}}
"""
)

# ARGV: who asks, seconds. 1 if nobody else holds the lease.
LEASE = f"""
local holder = redis.call('GET', '{GUARDIAN}')
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', '{GUARDIAN}', ARGV[1], 'EX', ARGV[2])
return 1
"""


class Watches:
    """The last watch. Every call is atomic and raises StoreUnavailable."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._write = redis.register_script(WRITE)
        self._take_back = redis.register_script(TAKE_BACK)
        self._lease = redis.register_script(LEASE)

    async def now(self) -> tuple[Watch | None, float]:
        """The last watch, None before the first; and the time."""
        with redis_errors():
            fields: Any = await self._redis.hgetall(WATCH)
            seconds, microseconds = await self._redis.time()
        return Watch.decode(fields) if fields else None, seconds + microseconds / 1e6

    async def lease(self, holder: str) -> bool:
        """Be the only one for `LEASE_S`, or again; False while another one is."""
        with redis_errors():
            return bool(await self._lease(args=[holder, LEASE_S]))

    async def keep(self, watch: Watch, baseline: dict[str, Any]) -> None:
        """Keep the figures of the model before."""
        await self._set(watch, baseline=json.dumps(baseline, separators=(",", ":")))

    async def order(self, watch: Watch, reason: str, detail: str) -> None:
        """Have the model before made active, by a worker of it."""
        await self._set(watch, order="1", reason=reason, detail=detail, blocked="")

    async def block(self, watch: Watch, reason: str, detail: str, blocked: str) -> None:
        """Say that the model before cannot answer, and why it should."""
        await self._set(watch, order="", reason=reason, detail=detail, blocked=blocked)

    async def clear(self, watch: Watch) -> None:
        """Say that nothing is wrong any longer."""
        await self._set(watch, order="", reason="", detail="", blocked="")

    async def end(self, watch: Watch) -> None:
        """The time is over, and the model stays."""
        await self._set(watch, state="kept")

    async def take_back(self, fingerprint: str) -> tuple[str, str, str] | None:
        """Make this model active again, if that is ordered; returns the model after it, the reason, and it in words."""
        with redis_errors():
            found: Any = await self._take_back(args=[fingerprint])
        return found and tuple(part.decode() for part in found)

    async def _set(self, watch: Watch, **fields: str) -> None:
        with redis_errors():
            await self._write(args=[watch.model, watch.since, *(part for pair in fields.items() for part in pair)])
