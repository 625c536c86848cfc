"""The embeddings stream as an indexer sees it, and the store behind it."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from indexer.types import Change
from service.store.connection import redis_errors
from service.store.records import Failure, Fields, StoredNote, StoredPrediction, decode_change
from service.store.schema import EMBEDDINGS, LUA, NOTE, READINGS

if TYPE_CHECKING:
    from redis import Redis as SyncRedis


log = logging.getLogger(__name__)

# ARGV: the model, id, version, failure, reason. The same refusal again, by a replica or a replay, changes nothing.
REFUSE = (
    LUA
    + """
local model, id, failure = ARGV[1], ARGV[2], ARGV[4]
if registered(model) and live(redis.call('GET', NOTE .. id), tonumber(ARGV[3]))
    and redis.call('HGET', FAILED .. model, id) ~= failure then
  redis.call('HSET', FAILED .. model, id, failure)
  redis.call('XADD', DEAD, '*', 'id', id, 'version', ARGV[3], 'fingerprint', model, 'reason', ARGV[5])
end
"""
)

# ARGV: the model, the follower, its cursor, seconds of silence after which a follower no longer counts.
KEEP = (
    LUA
    + """
if not registered(ARGV[1]) then return end
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', CURSORS, ARGV[2], ARGV[3] .. ' ' .. now)
local oldest, oldest_ms, oldest_number
local held = redis.call('HGETALL', CURSORS)
for i = 1, #held, 2 do
  local cursor, ms, number, seen = string.match(held[i + 1], '^((%d+)-(%d+)) (%d+)$')
  ms, number = tonumber(ms), tonumber(number)
  if now - tonumber(seen) > tonumber(ARGV[4]) then
    redis.call('HDEL', CURSORS, held[i])
  elseif not oldest or ms < oldest_ms or (ms == oldest_ms and number < oldest_number) then
    oldest, oldest_ms, oldest_number = cursor, ms, number
  end
end
redis.call('XTRIM', EMBEDDINGS, 'MINID', oldest)
"""
)

# ARGV: where to begin, how many to count at most.
LAG = (
    LUA
    + """
local entries = redis.call('XRANGE', EMBEDDINGS, ARGV[1], '+', 'COUNT', ARGV[2])
if #entries == 0 then return {0, 0} end
local now = redis.call('TIME')
local first = tonumber(string.match(entries[1][1], '^%d+'))
return {#entries, math.max(0, math.floor(now[1] * 1000 + now[2] / 1000) - first)}
"""
)

START = "0-0"
SCANNED = 512
COUNTED = 10_000
FORGOTTEN_S = 7 * 24 * 3600


class RedisChangeStream:
    """The embeddings stream, read in order from any cursor; the `ChangeStream` of `indexer.follow`.

    It is followed for the index of one model, by the ``indexer`` of this name, which must be the same after a
    restart and differ between indexers. Not thread-safe: one follower, one stream; only `lag` may be called beside
    it. ``malformed`` counts the entries and records that were skipped. All calls raise StoreUnavailable.
    """

    def __init__(self, redis: "SyncRedis", fingerprint: str, indexer: str = "indexer") -> None:
        self._redis = redis
        self._model = fingerprint
        self._follower = f"{indexer}/{fingerprint}"
        self._skipped = ("", "")
        self._refuse = redis.register_script(REFUSE)
        self._keep = redis.register_script(KEEP)
        self._lag = redis.register_script(LAG)
        self.malformed = 0

    def read(self, after: str, limit: int, block_s: float) -> list[Change]:
        """Changes behind the cursor ``after``, oldest first; "0-0" is the start. Waits at most ``block_s``.

        After StoreUnavailable a later call with the same cursor misses nothing.
        """
        asked, start = self._skipped
        entries = self._entries(start if asked == after else after, limit, block_s)
        changes = []
        for cursor, fields in entries:
            try:
                changes.append(decode_change(cursor.decode(), fields))
            except ValueError as error:
                self.malformed += 1
                log.warning("change_malformed", extra={"cursor": cursor.decode(), "problem": str(error)[:200]})
        if entries and not changes:
            # The follower's cursor stays where it was, and would lead to the same entries for ever.
            self._skipped = (after, entries[-1][0].decode())
        return changes

    def holds(self, cursor: str) -> bool:
        """Whether the cursor's own entry is there: not if the stream was cut, made anew, or restored older.

        ids of entries alone would not tell: after a restore, new entries soon have higher ones.
        """
        with redis_errors():
            return cursor == START or bool(self._redis.xrange(EMBEDDINGS, cursor, cursor, count=1))

    def everything(self) -> tuple[str, Iterator[Change]]:
        """The newest entry's cursor, and a change for everything that the model read of a live note.

        The cursor is taken first, and every change behind it will be read again: versions sort them out. Deletes
        need no mention: whatever they were to undo lies before the cursor.
        """
        with redis_errors():
            newest: Any = self._redis.xrevrange(EMBEDDINGS, count=1)
        return (newest[0][0].decode() if newest else START), self._readings()

    def refuse(self, change: Change, reason: str) -> None:
        """Give this version of the note up, as a worker would: marked failed, and in the dead-letter stream."""
        failure = Failure(change.version, f"index: {reason}")
        with redis_errors():
            self._refuse(args=[self._model, change.id, change.version, failure.encode(), failure.reason])

    def keep(self, cursor: str) -> None:
        """Cut off what lies before the oldest cursor of all followers; the entry of that cursor stays.

        A follower unheard of for a week no longer counts; if it comes back, it rebuilds from the store.
        """
        with redis_errors():
            self._keep(args=[self._model, self._follower, cursor, FORGOTTEN_S])

    def lag(self, cursor: str) -> tuple[int, float]:
        """How many entries lie behind the cursor, counted up to 10,000, and the age of the first in seconds.

        Counted inside Redis, by whose clock the age is, too: the vectors do not travel.
        """
        with redis_errors():
            entries, age_ms = self._lag(args=[f"({cursor}", COUNTED])
        return int(entries), int(age_ms) / 1000

    def _entries(self, after: str, limit: int, block_s: float) -> list[tuple[bytes, Fields]]:
        # BLOCK 0 would wait for ever.
        block = max(1, int(block_s * 1000)) if block_s > 0 else None
        with redis_errors():
            answer: Any = self._redis.xread({EMBEDDINGS: after}, count=limit, block=block)
        return list(answer[0][1]) if answer else []

    def _readings(self) -> Iterator[Change]:
        at = 0
        while True:
            with redis_errors():
                found: Any = self._redis.hscan(READINGS + self._model, at, count=SCANNED)
                at, predictions = found
                notes: Any = self._redis.mget([NOTE.encode() + id_ for id_ in predictions]) if predictions else []
            for (id_, prediction), note in zip(predictions.items(), notes, strict=True):
                if change := self._change(id_.decode(), prediction, note):
                    yield change
            if not at:
                return

    def _change(self, id_: str, prediction: bytes, note: bytes | None) -> Change | None:
        """What the stream said last of a note, unless it was deleted meanwhile."""
        if note is None:
            return None
        try:
            held, read = StoredNote.decode(note), StoredPrediction.decode(prediction)
        except ValueError as error:
            self.malformed += 1
            log.warning("reading_malformed", extra={"problem": str(error)[:200]})
            return None
        if held.deleted or held.version < read.version:
            return None
        category, author = held.note.category, held.author
        return Change(START, id_, read.version, read.fingerprint, read.vector, category, author)
