"""A fast clock for what Redis keeps by its own: the counts and the watch of a model are moved into the past."""

from redis.asyncio import Redis

from service.store.schema import ANSWERED, WATCH

# ARGV: seconds.
_AGE = f"""
local slots = redis.call('KEYS', '{ANSWERED}*')
table.sort(slots)
for _, slot in ipairs(slots) do redis.call('RENAME', slot, '{ANSWERED}' .. string.match(slot, '%d+$') - ARGV[1]) end
for _, name in ipairs({{'since', 'ended', 'worker'}}) do
  local time = redis.call('HGET', '{WATCH}', name)
  if time and time ~= '' then redis.call('HSET', '{WATCH}', name, time - ARGV[1]) end
end
"""


async def grow_older(redis: Redis, seconds: int) -> None:
    """So many seconds have gone by since everything that is kept."""
    await redis.eval(_AGE, 0, seconds)
