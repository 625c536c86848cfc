"""`AnswerLog` on Redis: a stream with a compressed batch of records in each entry."""

import asyncio
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgpack

from service.store.attribution.answers import ServedAnswer, holds, pack, unpack
from service.store.attribution.readers import key_of, name_of
from service.store.cluster.replicas import acknowledged
from service.store.connection import redis_errors
from service.store.schema import COUNTS, FORGOTTEN, LISTED, READER_KEY, SERVED, SERVED_COUNTS, UNLESS_RESTORING

if TYPE_CHECKING:
    from redis.asyncio import Redis

DAY_S = 24 * 3600
# Notes whose places in lists are counted: of more, as many as these by their hashes. A batch of long lists names
# many, and while a script counts them Redis answers nobody: 7 ms for these.
SAMPLED = 10_000
# Batches that an erasure looks at in one go: some megabytes, some milliseconds.
_BATCHES = 64

# ARGV: a batch and its number of answers, how many answers to keep, for how many milliseconds, the number of erasures
# that its maker knew of, how many notes one counted note stands for, and in how many lists of the batch they stood,
# packed: a client encodes arguments one by one. 0 if there were more erasures since, of readers who may be in it. Ten
# old entries go with each new one at most, so that a bound that was lowered holds nobody up.
APPEND = (
    UNLESS_RESTORING
    + f"""
if (redis.call('HGET', '{SERVED_COUNTS}', 'erasures') or '0') ~= ARGV[5] then return 0 end
redis.call('XADD', '{SERVED}', '*', 'answers', ARGV[1], 'count', ARGV[2])
local kept, now = redis.call('HINCRBY', '{SERVED_COUNTS}', 'answers', ARGV[2]), redis.call('TIME')
local oldest_ms = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[4])
for _ = 1, 10 do
  local entry = redis.call('XRANGE', '{SERVED}', '-', '+', 'COUNT', 1)[1]
  if not entry or kept <= tonumber(ARGV[3]) and tonumber(string.match(entry[1], '^%d+')) >= oldest_ms then break end
  redis.call('XDEL', '{SERVED}', entry[1])
  kept = redis.call('HINCRBY', '{SERVED_COUNTS}', 'answers', -tonumber(entry[2][4]))
end
local listed = '{LISTED}' .. math.floor(now[1] / 86400) .. ':' .. ARGV[6]
for id, times in pairs(cmsgpack.unpack(ARGV[7])) do redis.call('HINCRBY', listed, id, times) end
redis.call('EXPIRE', listed, {2 * DAY_S})
return 1
"""
)

# ARGV: a reader's name, seconds. From now on nothing of the time before is logged of them, though gateways may hold it
# yet. Returns the last entry that may hold more.
FORGET = (
    UNLESS_RESTORING
    + f"""
redis.call('HSET', '{FORGOTTEN}', ARGV[1], redis.call('TIME')[1])
redis.call('EXPIRE', '{FORGOTTEN}', ARGV[2])
redis.call('HINCRBY', '{SERVED_COUNTS}', 'erasures', 1)
local newest = redis.call('XREVRANGE', '{SERVED}', '+', '-', 'COUNT', 1)[1]
return newest and newest[1]
"""
)

# ARGV: an entry, the rest of its batch and the number of its answers, the same number before. The rest stands behind
# the last entry, for an entry cannot be changed: who had the batch before has those answers twice. Nothing if the entry
# is gone.
REPLACE = (
    UNLESS_RESTORING
    + f"""
if redis.call('XDEL', '{SERVED}', ARGV[1]) == 0 then return end
redis.call('HINCRBY', '{SERVED_COUNTS}', 'answers', ARGV[3] - ARGV[4])
if tonumber(ARGV[3]) > 0 then
  redis.call('XADD', '{SERVED}', '*', 'answers', ARGV[2], 'count', ARGV[3])
end
"""
)

# ARGV: the last entry to remove, how many at most. Returns how many it removed.
REMOVE = (
    UNLESS_RESTORING
    + f"""
local entries = redis.call('XRANGE', '{SERVED}', '-', ARGV[1], 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
  redis.call('XDEL', '{SERVED}', entry[1])
  redis.call('HINCRBY', '{SERVED_COUNTS}', 'answers', -tonumber(entry[2][4]))
end
return #entries
"""
)


class RedisAnswerLog:
    """`AnswerLog` as a stream of at most ``most`` answers, and of those of the last ``days``.

    The notes of the store are about ``cells`` times those of this cell.
    """

    def __init__(self, redis: "Redis", most: int, days: float, *, cells: int = 1) -> None:
        self._redis = redis
        self._cells = cells
        self._most = most
        self._kept_ms = int(days * DAY_S * 1000)
        self._append = redis.register_script(APPEND)
        self._forget = acknowledged(redis, FORGET)
        self._replace = acknowledged(redis, REPLACE)

    async def append(self, answers: Sequence[ServedAnswer]) -> None:
        """See `AnswerLog`."""
        if not answers:
            return
        logged = False
        while not logged:
            with redis_errors():
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.hgetall(FORGOTTEN)
                    pipe.hget(SERVED_COUNTS, "erasures")
                    pipe.hget(COUNTS, "live")
                    pipe.get(READER_KEY)
                    forgotten, erasures, live, key = await pipe.execute()
                until = {name.decode(): int(time_s) + 1 for name, time_s in forgotten.items()}
                key = key or await key_of(self._redis)
                batch, count = await asyncio.to_thread(_packed, answers, key, until)
                stands_for, listed = await asyncio.to_thread(_listed, answers, self._cells * int(live or 0))
                own = self._most, self._kept_ms, erasures or 0
                logged = not count or await self._append(args=[batch, count, *own, stands_for, listed])

    async def listed(self) -> tuple[list[int], int]:
        """In how many lists notes stood, today and yesterday (UTC), and of how many notes these are.

        Of a catalog of more than `SAMPLED` notes, a sample. Raises StoreUnavailable.
        """
        times: Counter[bytes] = Counter()
        with redis_errors():
            live = self._cells * int(await self._redis.hget(COUNTS, "live") or 0)
            today = (await self._redis.time())[0] // DAY_S
            for day in (today, today - 1):
                async for note_id, count in self._redis.hscan_iter(f"{LISTED}{day}:{_stands_for(live)}", count=1000):
                    times[note_id] += int(count)
        return list(times.values()), max(1, live // _stands_for(live))

    async def erase(self, reader: str) -> None:
        """See `AnswerLog`."""
        name = name_of(reader, await key_of(self._redis))
        with redis_errors():
            last: Any = await self._forget(args=[name, DAY_S])
            after = b"-"
            while last:
                entries: Any = await self._redis.xrange(SERVED, after, last, count=_BATCHES)
                for entry, batch, rest, before in await asyncio.to_thread(_without, name, entries):
                    await self._replace(args=[entry, batch, rest, before])
                if len(entries) < _BATCHES:
                    break
                after = b"(" + entries[-1][0]


def _stands_for(live: int) -> int:
    """How many notes one of the sample stands for: a power of two, so that a smaller sample is part of a larger."""
    return 1 << max(0, (live - 1) // SAMPLED).bit_length()


def _listed(answers: Sequence[ServedAnswer], live: int) -> tuple[int, bytes]:
    """How many notes each of the sample stands for; packed, its ids and in how many of these lists they stand."""
    stands_for = _stands_for(live)
    lists = (answer.ids for answer in answers if answer.scenario in ("related", "search"))
    times = Counter(chain.from_iterable(lists))
    if stands_for > 1:
        times = Counter({id_: times[id_] for id_ in times if zlib.crc32(id_.encode()) % stands_for == 0})
    return stands_for, msgpack.packb(dict(times))


def _packed(answers: Sequence[ServedAnswer], key: bytes, until: Mapping[str, float]) -> tuple[bytes, int]:
    """A batch of the answers, and their number, without those to readers who were erased after them."""
    names = {reader: name_of(reader, key) for reader in {answer.reader for answer in answers} if reader}
    named = [answer._replace(reader=names[answer.reader]) if answer.reader else answer for answer in answers]
    kept = [answer for answer in named if answer.time > until.get(answer.reader, 0)] if until else named
    return pack(kept), len(kept)


def _without(name: str, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[tuple[bytes, bytes, int, int]]:
    """The entries that hold answers to a reader: the entry, the others of its batch, their number, and that before."""
    changed = []
    for entry, fields in entries:
        if holds(fields[b"answers"], name):
            answers = unpack(fields[b"answers"])
            rest = [answer for answer in answers if answer.reader != name]
            changed.append((entry, pack(rest), len(rest), len(answers)))
    return changed
