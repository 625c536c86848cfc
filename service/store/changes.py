"""The embeddings stream as an indexer follows it, and the stored predictions that an index is rebuilt from."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from indexer.types import Change
from service.store.connection import redis_errors
from service.store.records import Fields, StoredFailure, StoredNote, StoredPrediction, decode_change, fields_of
from service.store.schema import CURSORS, EMBEDDINGS, EXPOSURE, LUA, NOTE, READINGS

if TYPE_CHECKING:
    from redis import Redis as SyncRedis


log = logging.getLogger(__name__)

# ARGV: the model, id, version, failure, reason. The same refusal by a replica or a replay changes nothing.
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

# ARGV: the model, the follower, its cursor, seconds after which a silent follower is forgotten.
KEEP = (
    LUA
    + """
if not registered(ARGV[1]) then return end
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', CURSORS, ARGV[2], ARGV[3] .. ' ' .. now)
local oldest, oldest_ms, oldest_number
local followers = redis.call('HGETALL', CURSORS)
for i = 1, #followers, 2 do
  local cursor, ms, number, seen = string.match(followers[i + 1], '^((%d+)-(%d+)) (%d+)$')
  ms, number = tonumber(ms), tonumber(number)
  if now - tonumber(seen) > tonumber(ARGV[4]) then
    redis.call('HDEL', CURSORS, followers[i])
  elseif not oldest or ms < oldest_ms or (ms == oldest_ms and number < oldest_number) then
    oldest, oldest_ms, oldest_number = cursor, ms, number
  end
end
redis.call('XTRIM', EMBEDDINGS, 'MINID', oldest)
"""
)

# ARGV: the first entry, how many to count at most.
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
SCAN_COUNT = 512
LAG_LIMIT = 10_000
FORGOTTEN_S = 7 * 24 * 3600


class RedisChangeStream:
    """The `ChangeStream` of `indexer.follow` on Redis, for the index of one model.

    ``indexer`` names the follower: the same after a restart, another for each indexer. Not thread-safe, but for `lag`.
    ``malformed`` counts the entries and records that were skipped. All calls raise StoreUnavailable.
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
        """Changes later than the cursor ``after``, oldest first; "0-0" is the start. Waits at most ``block_s``.

        After StoreUnavailable a later call with the same cursor misses nothing.
        """
        cursor_before, cursor_after = self._skipped
        entries = self._entries(cursor_after if cursor_before == after else after, limit, block_s)
        changes = []
        for cursor, fields in entries:
            try:
                changes.append(decode_change(cursor.decode(), fields))
            except ValueError as error:
                self.malformed += 1
                log.warning("change_malformed", extra={"cursor": cursor.decode(), "problem": str(error)[:200]})
        if entries and not changes:
            # The follower's cursor does not move, and would lead to the same entries for ever.
            self._skipped = (after, entries[-1][0].decode())
        return changes

    def holds(self, cursor: str) -> bool:
        """Whether the cursor's entry is in the stream: not if the stream was cut, made anew, or restored older.

        Comparing ids would not tell: after a restore, new entries soon have higher ones.
        """
        with redis_errors():
            return cursor == START or bool(self._redis.xrange(EMBEDDINGS, cursor, cursor, count=1))

    def is_known(self) -> bool:
        """Whether the stream is kept for this follower, since `keep`."""
        with redis_errors():
            return bool(self._redis.hexists(CURSORS, self._follower))

    def everything(self) -> tuple[str, Iterator[Change]]:
        """The newest entry's cursor, and a change for every prediction of the model for a live note.

        The cursor is taken first, so that changes later than it come again: versions sort them out. Deletes need no
        change: a rebuilt index holds no earlier version of the note.
        """
        with redis_errors():
            newest: Any = self._redis.xrevrange(EMBEDDINGS, count=1)
        return (newest[0][0].decode() if newest else START), self._predictions()

    def refuse(self, change: Change, reason: str) -> None:
        """Dead-letter this version of the note, as a worker would."""
        failure = StoredFailure(change.version, f"index: {reason}")
        with redis_errors():
            self._refuse(args=[self._model, change.id, change.version, failure.encode(), failure.reason])

    def keep(self, cursor: str) -> None:
        """Trim the stream to the oldest cursor of all followers, whose entry stays.

        A follower that was silent for a week is forgotten; if it comes back, it rebuilds from the store.
        """
        with redis_errors():
            self._keep(args=[self._model, self._follower, cursor, FORGOTTEN_S])

    def lag(self, cursor: str) -> tuple[int, float]:
        """How many entries are later than the cursor, counted up to 10,000, and the age of the first in seconds.

        Counted inside Redis and by its clock: the vectors do not travel.
        """
        with redis_errors():
            entries, age_ms = self._lag(args=[f"({cursor}", LAG_LIMIT])
        return int(entries), int(age_ms) / 1000

    def _entries(self, after: str, limit: int, block_s: float) -> list[tuple[bytes, Fields]]:
        block = max(1, int(block_s * 1000)) if block_s > 0 else None  # BLOCK 0 would wait for ever
        with redis_errors():
            answer: Any = self._redis.xread({EMBEDDINGS: after}, count=limit, block=block)
        return list(answer[0][1]) if answer else []

    def _predictions(self) -> Iterator[Change]:
        cursor = 0
        with redis_errors():  # one connection: a scan that goes on elsewhere would miss notes
            connection = self._redis.client()  # type: ignore[no-untyped-call]
        with connection:
            while True:
                with redis_errors():
                    page: Any = connection.hscan(READINGS + self._model, cursor, count=SCAN_COUNT)
                    cursor, predictions = page
                    notes: Any = connection.mget([NOTE.encode() + id_ for id_ in predictions]) if predictions else []
                    counts: Any = connection.hmget(EXPOSURE, list(predictions)) if predictions else []
                for (id_, prediction), note, count in zip(predictions.items(), notes, counts, strict=True):
                    if change := self._change(id_.decode(), prediction, note, int(count or 0)):
                        yield change
                if not cursor:
                    return

    def _change(self, id_: str, prediction: bytes, note: bytes | None, shown: int) -> Change | None:
        """The last change of a note, unless it was deleted meanwhile."""
        if note is None:
            return None
        try:
            stored, predicted = StoredNote.decode(note, shown), StoredPrediction.decode(prediction)
        except ValueError as error:
            self.malformed += 1
            log.warning("reading_malformed", extra={"problem": str(error)[:200]})
            return None
        if stored.deleted or stored.version < predicted.version:
            return None
        return Change(
            START,
            id_,
            predicted.version,
            predicted.fingerprint,
            predicted.vector,
            fields=fields_of(stored),
            hidden=stored.hidden,
        )
