"""Where notes live: the seam `NoteStore`, and its one implementation on Redis."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from model.note import Note
from model.tags import fold
from service.errors import QueueFull, StoreUnavailable
from service.messages import (
    COUNTS,
    FAILED,
    JOBS,
    LUA,
    NOTE,
    READING,
    TAG,
    Failure,
    StoredNote,
    StoredReading,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Counts", "NoteStore", "RedisStore", "StoredNote", "Suggestion", "open_redis", "redis_errors"]

# ARGV: most jobs that may wait, then one record a note, its version not yet known. Nil when too many wait.
PUT = (
    LUA
    + """
if redis.call('XLEN', JOBS) + #ARGV - 1 > tonumber(ARGV[1]) then return nil end
local versions = {}
for i = 2, #ARGV do
  local note = cmsgpack.unpack(ARGV[i])
  local held = redis.call('GET', NOTE .. note.id)
  local number = held and version(held) or 0
  if not held or body(held) ~= body(ARGV[i]) then
    number = number + 1
    redis.call('SET', NOTE .. note.id, with_version(ARGV[i], number))
    if not held or deleted(held) then redis.call('HINCRBY', COUNTS, 'live', 1) end
    if held then
      if deleted(held) then redis.call('HINCRBY', COUNTS, 'deleted', -1) end
      count_tags(held, -1)
    end
    count_tags(ARGV[i], 1)
    forget_failure(note.id)
    redis.call('XADD', JOBS, '*', 'id', note.id, 'version', string.format('%.0f', number))
  end
  versions[i - 1] = number
end
return versions
"""
)

# ARGV: the id, its tombstone, version not yet known. 0 when the id was never seen.
DELETE = (
    LUA
    + """
local id = ARGV[1]
local held = redis.call('GET', NOTE .. id)
if not held then return 0 end
if deleted(held) then return 1 end
local number = version(held) + 1
redis.call('SET', NOTE .. id, with_version(ARGV[2], number))
redis.call('DEL', READING .. id)
count_tags(held, -1)
forget_failure(id)
redis.call('HINCRBY', COUNTS, 'live', -1)
redis.call('HINCRBY', COUNTS, 'deleted', 1)
redis.call('XADD', EMBEDDINGS, '*', 'id', id, 'version', string.format('%.0f', number),
  'fingerprint', redis.call('GET', FINGERPRINT) or '')
return 1
"""
)

# What a Redis says that is there but cannot serve: no memory, read-only replica, full disk, loading, busy.
CANNOT_SERVE = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "BUSY ", "MASTERDOWN ", "NOREPLICAS ", "NOAUTH ")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the model said about one version of a note: hashtags and category, or why there is nothing."""

    version: int
    fingerprint: str
    hashtags: tuple[tuple[str, float], ...] = ()
    category: tuple[str, float] | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """For `/status`: live and failed notes, jobs waiting, age of the oldest job."""

    live: int
    failed: int
    queue_depth: int
    oldest_job_s: float


class NoteStore(Protocol):
    """Notes and what follows from writing them. Every call is one round trip and atomic.

    Raises `StoreUnavailable` when the store does not answer, `QueueFull` on a write when too many jobs wait.
    """

    async def put(self, notes: Sequence[StoredNote]) -> list[int]:
        """Store notes (their ``version`` is ignored), queue a job for each that changed, return the versions.

        The same body again keeps its version and queues nothing. A deleted note comes back one higher.
        """
        ...

    async def delete(self, note_id: str) -> bool:
        """Leave a tombstone and tell the index. False if the id was never seen; again changes nothing."""
        ...

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        """Records in the order asked for, tombstones included; None for ids never seen."""
        ...

    async def suggestion(self, note_id: str) -> Suggestion | None:
        """What the model last said about the note, whatever version that was."""
        ...

    async def counts(self) -> Counts:
        """Figures for `/status`."""
        ...

    async def spellings(self, tags: Sequence[str]) -> list[str | None]:
        """For each hashtag, in order: how most live notes that carry it write it; None when none carries it.

        Hashtags are one when `fold` says so, a note counts once for each, and a tie goes to the last by code points,
        which prefers small letters. Every spelling is one that an answer may hold.
        """
        ...


class RedisStore:
    """`NoteStore` on Redis. Every write is one script: a note and its job are stored both or not at all."""

    def __init__(self, redis: "Redis", max_queue: int) -> None:
        self._redis = redis
        self._max_queue = max_queue
        self._put = redis.register_script(PUT)
        self._delete = redis.register_script(DELETE)

    async def put(self, notes: Sequence[StoredNote]) -> list[int]:
        """See `NoteStore`. Notes of one call are stored in order, in one transaction."""
        if not notes:
            return []
        records = [replace(note, version=0, deleted=False).encode() for note in notes]
        with redis_errors():
            versions = await self._put(args=[self._max_queue, *records])
        if versions is None:
            raise QueueFull("too many notes wait to be embedded")
        return [int(version) for version in versions]

    async def delete(self, note_id: str) -> bool:
        """See `NoteStore`."""
        tombstone = StoredNote(Note(note_id), version=0, deleted=True).encode()
        with redis_errors():
            return bool(await self._delete(args=[note_id, tombstone]))

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        """See `NoteStore`."""
        if not note_ids:
            return []
        with redis_errors():
            records: list[Any] = await self._redis.mget([NOTE + note_id for note_id in note_ids])
        return [None if record is None else StoredNote.decode(record) for record in records]

    async def suggestion(self, note_id: str) -> Suggestion | None:
        """See `NoteStore`. A failure counts when it is newer than what the model said before."""
        with redis_errors():
            records: list[Any] = await self._redis.mget(READING + note_id, FAILED + note_id)
        read, failed = records
        reading = None if read is None else StoredReading.decode(read)
        failure = None if failed is None else Failure.decode(failed)
        if failure and (reading is None or failure.version >= reading.version):
            return Suggestion(failure.version, "", failure=failure.reason)
        if reading:
            return Suggestion(reading.version, reading.fingerprint, reading.hashtags, reading.category)
        return None

    async def counts(self) -> Counts:
        """See `NoteStore`. The oldest job's age is by Redis' own clock."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hmget(COUNTS, "live", "failed")
                pipe.xlen(JOBS)
                pipe.xrange(JOBS, count=1)
                pipe.time()
                (live, failed), depth, oldest, (seconds, _) = await pipe.execute()
        age_s = max(0.0, seconds - int(oldest[0][0].split(b"-")[0]) / 1000) if oldest else 0.0
        return Counts(int(live or 0), int(failed or 0), depth, age_s)

    async def spellings(self, tags: Sequence[str]) -> list[str | None]:
        """See `NoteStore`."""
        if not tags:
            return []
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                for tag in tags:
                    pipe.zrevrange(TAG + fold(tag), 0, 0)
                answers = await pipe.execute()
        return [answer[0].decode() if answer else None for answer in answers]


def open_redis(url: str, *, timeout_s: float = 5.0, connections: int = 64) -> "Redis":
    """A client that never retries by itself (a lost reply must not become a second write) and never hangs.

    A call waits for a free connection at most ``timeout_s``, and as long again for the answer.
    """
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return Redis.from_pool(pool)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what a dead, full or read-only Redis says into StoreUnavailable; our own mistakes pass through."""
    from redis.exceptions import ConnectionError as ConnectionFailed
    from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
    from redis.exceptions import TimeoutError as TimedOut

    try:
        yield
    except (ConnectionFailed, TimedOut, OSError) as error:
        raise StoreUnavailable("the store does not answer") from error
    except ResponseError as error:
        # redis-py strips the prefix it knows, and a script's error carries it in the middle.
        if isinstance(error, (OutOfMemoryError, ReadOnlyError)) or any(word in f"{error} " for word in CANNOT_SERVE):
            raise StoreUnavailable("the store takes no writes") from error
        raise
