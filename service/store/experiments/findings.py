"""What commands find elsewhere and gateways show: reports of experiments, and turns of learning.

A hash of kind and name to JSON, as `service.contract` has it. The field ``""`` counts the changes, so that gateways see
them by one number.
"""

from typing import TYPE_CHECKING, Any, Literal

from service.store.connection import redis_errors
from service.store.schema import FINDINGS, UNLESS_RESTORING

if TYPE_CHECKING:
    from redis.asyncio import Redis

REVISION = ""
# Of each kind; the ones that were told longest ago go.
MOST = {"experiment": 100, "turn": 20}

Kind = Literal["experiment", "turn"]

# ARGV: kind, name, JSON or "" to remove it, and how many of the kind to keep. The order in which they were told stands
# before the JSON.
TELL = (
    UNLESS_RESTORING
    + f"""
local prefix, field = ARGV[1] .. ' ', ARGV[1] .. ' ' .. ARGV[2]
local number = redis.call('HINCRBY', '{FINDINGS}', '{REVISION}', 1)
if ARGV[3] == '' then return redis.call('HDEL', '{FINDINGS}', field) end
redis.call('HSET', '{FINDINGS}', field, string.format('%d ', number) .. ARGV[3])
local kept = {{}}
local all = redis.call('HGETALL', '{FINDINGS}')
for i = 1, #all, 2 do
  if string.sub(all[i], 1, #prefix) == prefix then
    kept[#kept + 1] = {{all[i], tonumber(string.match(all[i + 1], '^%d+'))}}
  end
end
table.sort(kept, function(one, other) return one[2] > other[2] end)
for i = tonumber(ARGV[4]) + 1, #kept do redis.call('HDEL', '{FINDINGS}', kept[i][1]) end
"""
)


class Findings:
    """All of them. Every call is atomic and raises StoreUnavailable."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._tell = redis.register_script(TELL)

    async def tell(self, kind: Kind, name: str, record: str) -> None:
        """Keep a record in the place of the last one of this name."""
        with redis_errors():
            await self._tell(args=[kind, name, record, MOST[kind]])

    async def forget(self, kind: Kind, name: str) -> None:
        """Remove the record of this name."""
        await self.tell(kind, name, "")

    async def changed(self, revision: int | None) -> tuple[int, dict[tuple[str, str], bytes]] | None:
        """All records by kind and name, and their revision; None if it is still this one: then it asks for a number.

        In the order in which they were told, the last one first.
        """
        with redis_errors():
            if revision is not None and int(await self._redis.hget(FINDINGS, REVISION) or 0) == revision:
                return None
            kept: Any = await self._redis.hgetall(FINDINGS)
        current = int(kept.pop(REVISION.encode(), 0))
        told = {name: value.partition(b" ") for name, value in kept.items()}
        names = sorted(told, key=lambda name: int(told[name][0]), reverse=True)
        return current, {(kind, name): told[field][2] for field in names for kind, _, name in [_parts(field)]}


def _parts(field: bytes) -> tuple[str, str, str]:
    return field.decode().partition(" ")
