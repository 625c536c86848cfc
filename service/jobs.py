"""The job queue as a worker sees it.

A job stays pending under the worker that claimed it until one script publishes its result and takes the job
away. Whatever crashes in between, the job is claimed again; the script's version check makes that harmless.
A worker that lives says so about the jobs it holds, and one that ends in order hands back what it did not begin.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack
from redis.exceptions import ResponseError

from service.errors import StoreUnavailable
from service.messages import (
    FAILED,
    FINGERPRINT,
    JOBS,
    LUA,
    NOTE,
    READING,
    WORKERS,
    EmbedJob,
    Failure,
    Fields,
    StoredNote,
    StoredReading,
    pack_vector,
)
from service.store import redis_errors

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

R = TypeVar("R", StoredNote, StoredReading)

# What a Redis says that has lost the group, and what it says to a client that is waiting for a job at that moment.
_GROUP_GONE = ("NOGROUP", "UNBLOCKED")
# Idle for longer than any `take_over_s`: free for whoever looks first.
_LONG_AGO_MS = 24 * 3600 * 1000

# ARGV: the packed fingerprint, then for each job: entry, id, version, reading, fingerprint, vector.
# Publishes what is the reading of a live note's present version and not published yet. Returns how many.
PUBLISH = (
    LUA
    + """
local published = 0
for i = 2, #ARGV, 6 do
  local entry, id, number, reading = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local note = redis.call('GET', NOTE .. id)
  if live(note, number) then
    local known = redis.call('GET', READING .. id)
    if not (known and version(known) == number and read_by(known, ARGV[1])) then
      redis.call('SET', READING .. id, reading)
      forget_failure(id)
      local change = {'id', id, 'version', ARGV[i + 2], 'fingerprint', ARGV[i + 4], 'vector', ARGV[i + 5]}
      local held = cmsgpack.unpack(note)
      for _, label in ipairs({'category', 'author'}) do
        if type(held[label]) == 'string' then
          change[#change + 1] = label
          change[#change + 1] = held[label]
        end
      end
      redis.call('XADD', EMBEDDINGS, '*', unpack(change))
      published = published + 1
    end
  end
  redis.call('XACK', JOBS, WORKERS, entry)
  redis.call('XDEL', JOBS, entry)
end
return published
"""
)

# ARGV: entry, id, version, failure, reason.
FAIL = (
    LUA
    + """
local entry, id, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
if live(redis.call('GET', NOTE .. id), number) then
  if redis.call('EXISTS', FAILED .. id) == 0 then redis.call('HINCRBY', COUNTS, 'failed', 1) end
  redis.call('SET', FAILED .. id, ARGV[4])
  redis.call('XADD', DEAD, '*', 'id', id, 'version', ARGV[3], 'reason', ARGV[5])
end
redis.call('XACK', JOBS, WORKERS, entry)
redis.call('XDEL', JOBS, entry)
"""
)

# ARGV: the packed fingerprint of the new model, then ids. A note neither read nor failed has its job already.
REQUEUE = (
    LUA
    + """
local queued = 0
for i = 2, #ARGV do
  local id = ARGV[i]
  local note, reading, failed = unpack(redis.call('MGET', NOTE .. id, READING .. id, FAILED .. id))
  local number = note and version(note)
  local outdated = reading and version(reading) == number and not read_by(reading, ARGV[1])
  if note and not deleted(note) and (outdated or failed) then
    forget_failure(id)
    redis.call('XADD', JOBS, '*', 'id', id, 'version', string.format('%.0f', number))
    queued = queued + 1
  end
end
return queued
"""
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job in this worker's hands. ``deliveries`` counts the workers that had it, this one included."""

    entry: str
    job: EmbedJob
    deliveries: int = 1

    @property
    def queued_s(self) -> float:
        """Seconds since the job was queued, by the clocks of Redis and of this machine; never negative."""
        return max(0.0, time.time() - int(self.entry.split("-")[0]) / 1000)


class JobQueue:
    """Claims jobs for one worker and publishes what became of them. All calls raise StoreUnavailable.

    ``consumer`` must be the same after a restart and differ between workers. Jobs that nobody held (`hold`) for
    ``take_over_s`` are left behind, and anybody's: a worker that only slept may then find its notes already read,
    which does no harm.
    """

    def __init__(self, redis: "Redis", consumer: str, *, take_over_s: float = 30.0) -> None:
        self.take_over_s = take_over_s
        self._redis = redis
        self._consumer = consumer
        self._next_look = 0.0
        self._own_pending = True
        self._publish = redis.register_script(PUBLISH)
        self._fail = redis.register_script(FAIL)
        self._requeue = redis.register_script(REQUEUE)

    async def open(self, fingerprint: str) -> int:
        """Make sure of the consumer group and of the active model; returns how many notes were queued again.

        When another model was active, the notes it read and those that were given up are queued again. The
        new fingerprint is written last, so that a crash on the way starts this over.
        """
        with redis_errors():
            await self._make_group()
            self._own_pending = True
            if await self._redis.get(FINGERPRINT) == fingerprint.encode():
                return 0
            queued = await self._requeue_all(READING, fingerprint) + await self._requeue_all(FAILED, fingerprint)
            await self._redis.set(FINGERPRINT, fingerprint)
        return queued

    async def claim(self, limit: int, block_s: float) -> list[Claimed]:
        """The next new jobs, at most ``limit``, or none after ``block_s``."""
        with _group_errors():
            answer: Any = await self._redis.xreadgroup(
                WORKERS, self._consumer, {JOBS: ">"}, count=limit, block=max(1, int(block_s * 1000))
            )
        return await self._decode([(entry, fields, 1) for entry, fields in answer[0][1]]) if answer else []

    async def left_behind(self) -> bool:
        """Whether a job was claimed before, by this worker's last life or by a worker that is gone.

        Asks Redis only now and then, and after `open`. Whatever this worker holds must be held (`hold`) by then.
        """
        with _group_errors():
            if self._own_pending:
                if await self._pending(1):
                    return True
                self._own_pending = False
            elif time.monotonic() < self._next_look:
                return False
            if await self._pending(1):
                return True
        self._next_look = time.monotonic() + self.take_over_s / 3
        return False

    async def claim_left(self, limit: int) -> list[Claimed]:
        """Jobs that were left behind. Earlier claims must be dealt with.

        One that a worker began comes alone: should it be the one that killed the worker, its count of deliveries
        grows and no other's. Those that were in the fewest hands come first, so that workers that die of something
        else do not die with the same job in hand over and over. Those that were handed back come together.
        """
        with _group_errors():
            pending = await self._pending(limit)
            pending.sort(key=lambda job: job["times_delivered"])
            jobs = [job for job in pending if job["times_delivered"] == 0] or pending[:1]
            async with self._redis.pipeline(transaction=False) as pipe:
                for job in jobs:
                    pipe.xclaim(JOBS, WORKERS, self._consumer, self._idle_ms, [job["message_id"]])
                answers = await pipe.execute() if jobs else []
        entries, gone = [], []
        for job, answer in zip(jobs, answers, strict=True):
            if answer == [(None, None)]:  # Redis 6.2, for an entry that was deleted but never finished
                gone.append(job["message_id"].decode())
            else:
                entries += [(entry, fields, job["times_delivered"] + 1) for entry, fields in answer]
        await self.finish(gone)
        return await self._decode(entries)

    async def hold(self, entries: Sequence[str]) -> None:
        """Say of claimed jobs that this worker lives and deals with them, so that no other takes them over."""
        if entries:
            with _group_errors():
                await self._redis.xclaim(JOBS, WORKERS, self._consumer, 0, list(entries), justid=True)

    async def hand_back(self, entries: Sequence[str]) -> None:
        """Leave claimed jobs that were not begun to whoever looks first, as if they had never been claimed."""
        if entries:
            with _group_errors():
                await self._redis.xclaim(
                    JOBS, WORKERS, self._consumer, 0, list(entries), idle=_LONG_AGO_MS, retrycount=0, justid=True
                )

    async def notes(self, claimed: Sequence[Claimed]) -> list[StoredNote | None]:
        """The records of the jobs' notes, in order; None where there is none, or none that can be read."""
        with redis_errors():
            records: list[Any] = await self._redis.mget([NOTE + item.job.note_id for item in claimed])
        return [_decoded(StoredNote, record) for record in records]

    async def readings(self, claimed: Sequence[Claimed]) -> list[StoredReading | None]:
        """What the model last said about the jobs' notes, in order, whatever version that was; None where nothing."""
        if not claimed:
            return []
        with redis_errors():
            records: list[Any] = await self._redis.mget([READING + item.job.note_id for item in claimed])
        return [_decoded(StoredReading, record) for record in records]

    async def publish(self, results: Sequence[tuple[Claimed, StoredReading]]) -> int:
        """Store and announce the readings that are still wanted, and finish their jobs, in one transaction.

        Readings of one call are of one model. Returns how many were published; again changes nothing.
        """
        args: list[Any] = [msgpack.packb(results[0][1].fingerprint)] if results else []
        for item, reading in results:
            args += [item.entry, item.job.note_id, reading.version, reading.encode()]
            args += [reading.fingerprint, pack_vector(reading.vector)]
        if not results:
            return 0
        with redis_errors():
            return int(await self._publish(args=args))

    async def fail(self, item: Claimed, reason: str) -> None:
        """Give one version of a note up: it is marked, and the job moves to the dead-letter stream."""
        failure = Failure(item.job.version, reason)
        with redis_errors():
            await self._fail(args=[item.entry, item.job.note_id, item.job.version, failure.encode(), failure.reason])

    async def finish(self, entries: Sequence[str]) -> None:
        """Take jobs away without a result: their notes were deleted or written again."""
        if not entries:
            return
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.xack(JOBS, WORKERS, *entries)
                pipe.xdel(JOBS, *entries)
                await pipe.execute()

    async def _make_group(self) -> None:
        try:
            # From 0 and not from $: what was queued before the first worker came is work, too.
            await self._redis.xgroup_create(JOBS, WORKERS, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _requeue_all(self, prefix: str, fingerprint: str) -> int:
        cursor, queued = 0, 0
        while True:
            cursor, keys = await self._redis.scan(cursor, match=prefix + "*", count=1000)
            if keys:
                ids = [key[len(prefix) :] for key in keys]
                queued += int(await self._requeue(args=[msgpack.packb(fingerprint), *ids]))
            if not cursor:
                return queued

    async def _pending(self, limit: int) -> list[Any]:
        """The first jobs left behind: this worker's own as long as it has not begun, then those nobody holds."""
        consumer = self._consumer if self._own_pending else None
        pending: list[Any] = await self._redis.xpending_range(
            JOBS, WORKERS, "-", "+", limit, consumername=consumer, idle=self._idle_ms or None
        )
        return pending

    @property
    def _idle_ms(self) -> int:
        return 0 if self._own_pending else int(self.take_over_s * 1000)

    async def _decode(self, entries: Sequence[tuple[bytes, Fields, int]]) -> list[Claimed]:
        claimed, malformed = [], []
        for entry, fields, deliveries in entries:
            try:
                claimed.append(Claimed(entry.decode(), EmbedJob.decode(fields), deliveries))
            except ValueError:
                malformed.append(entry.decode())
        if malformed:
            log.warning("jobs_malformed", extra={"entries": malformed[:10], "count": len(malformed)})
            await self.finish(malformed)
        return claimed


@contextmanager
def _group_errors() -> Iterator[None]:
    """`redis_errors`, and StoreUnavailable when the consumer group is gone, as after the loss of all data."""
    try:
        with redis_errors():
            yield
    except ResponseError as error:
        if any(word in str(error) for word in _GROUP_GONE):
            raise StoreUnavailable("the consumer group is gone") from error
        raise


def _decoded(kind: type[R], record: bytes | None) -> R | None:
    try:
        return None if record is None else kind.decode(record)
    except ValueError:
        log.exception("record_malformed", extra={"kind": kind.__name__})
        return None
