"""What a store of an older release lacks: the orders of its hashtags, and the days of its notes.

`Completion` fills it in while the service runs. Every step may come twice, so that one which was interrupted begins
anew, and several gateways may do it at once.
"""

import logging
from typing import TYPE_CHECKING, Any

from service.store.connection import redis_errors
from service.store.schema import COMPLETED, LUA, NOTE, TAG

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

NAME = "hashtags"
_SCANNED = 500

# ARGV: keys of hashtags.
RANK_TAGS = LUA + "for i = 1, #ARGV do rank_tag(ARGV[i]) end"

# ARGV: ids. A note without created_at is taken for an old one.
COUNT_DAYS = (
    LUA
    + """
for i = 1, #ARGV do
  local record = redis.call('GET', NOTE .. ARGV[i])
  if record and #record > 26 and not redis.call('ZSCORE', NEW_NOTES, ARGV[i]) then  -- not a damaged one
    local note = cmsgpack.unpack(record)
    local now = today()
    if note.created_at and not note.hidden then count_day(note, math.min(day_of(note.created_at), now), now, 1) end
    settle()
  end
end
"""
)


class Completion:
    """Completes a store, once; a call that fails is to be repeated. Raises StoreUnavailable."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._rank_tags = redis.register_script(RANK_TAGS)
        self._count_days = redis.register_script(COUNT_DAYS)
        self._done = False

    async def __call__(self) -> None:
        """Returns when the store is complete."""
        if self._done:
            return
        with redis_errors():
            if not await self._redis.sismember(COMPLETED, NAME):
                # One connection: a scan that goes on elsewhere would miss keys.
                async with self._redis.client() as connection:
                    await self._scan(connection, TAG, self._rank_tags)
                    await self._scan(connection, NOTE, self._count_days)
                    await connection.sadd(COMPLETED, NAME)
                log.info("hashtags_completed")
        self._done = True

    async def _scan(self, connection: "Redis", prefix: str, script: Any) -> None:
        cursor = 0
        while True:
            cursor, keys = await connection.scan(cursor, match=prefix + "*", count=_SCANNED)
            if keys:
                await script(args=[key[len(prefix) :] for key in keys])
            if not cursor:
                return
