"""The job queue of one model.

A job is pending under the worker that claimed it until one script publishes its prediction and removes the job. After
a crash in between, the job is claimed again; the script's version check makes that harmless. A worker sends heartbeats
for its claimed jobs, and releases those that it did not begin when it is stopped.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import ResponseError

from service.errors import StoreUnavailable
from service.store.connection import redis_errors
from service.store.records import EmbedJob, Fields, StoredFailure, StoredNote, StoredPrediction, pack_vector
from service.store.schema import FILLED, JOBS, LUA, NOTE, READINGS, WORKERS

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

R = TypeVar("R", StoredNote, StoredPrediction)

# Errors of a Redis that has lost the consumer group: of a new call, and of one that waits for a job at that moment.
_GROUP_GONE = ("NOGROUP", "UNBLOCKED")
# Idle for longer than any `take_over_s`: abandoned at once.
_LONG_AGO_MS = 24 * 3600 * 1000
SCAN_COUNT = 1000
# Behind every entry: a read of the pending ones from here on touches none.
_LAST_ENTRY = f"{2**64 - 1}-0"

# ARGV: the model, the dimension of its vectors. A store's first model is active. 1 when all notes are queued for it.
REGISTER = (
    LUA
    + """
local model = ARGV[1]
redis.call('HSETNX', MODELS, model, ARGV[2])
redis.call('SETNX', ACTIVE, model)
return redis.call('SISMEMBER', FILLED, model)
"""
)

# ARGV: the model, then ids. Queues the live notes without a prediction or failure for their present version.
FILL = (
    LUA
    + """
local model, queued = ARGV[1], 0
if not registered(model) then return 0 end
for i = 2, #ARGV do
  local id = ARGV[i]
  local note = redis.call('GET', NOTE .. id)
  if note and #note > 26 and not deleted(note) then  -- not a damaged one
    local number = version(note)
    local predicted = redis.call('HGET', READINGS .. model, id)
    local failed = redis.call('HGET', FAILED .. model, id)
    if not (predicted and version(predicted) == number) and not (failed and version(failed) == number) then
      queue(model, id, number)
      queued = queued + 1
    end
  end
end
return queued
"""
)

# Stores a prediction for this version of a live note and announces it to the indexes, unless it was before; how often.
# The announcement carries the note, unpacked in ``stored``, without its text: an older release's with so much of it as
# tells its language, cut between characters.
PUBLISH_PREDICTION = """
local function without_text(stored)
  local note = {}
  for name, value in pairs(stored) do note[name] = value end
  note.tags = nil
  if note.language or note.detected or not note.content then
    note.title, note.content = '', ''
  else
    note.content = string.gsub(string.sub(note.content, 1, 1200), '[\\192-\\255][\\128-\\191]*$', '')
  end
  return cmsgpack.pack(note)
end
local function publish(model, id, number, stored, prediction, vector, written_ms)
  local known = redis.call('HGET', READINGS .. model, id)
  if known and version(known) == number then return 0 end
  redis.call('HSET', READINGS .. model, id, prediction)
  redis.call('HDEL', FAILED .. model, id)
  local change = {'id', id, 'version', string.format('%.0f', number), 'fingerprint', model, 'vector', vector}
  change[#change + 1] = 'written_ms'
  change[#change + 1] = written_ms
  change[#change + 1] = 'note'
  change[#change + 1] = without_text(stored)
  local shown = redis.call('HGET', EXPOSURE, id)
  if shown then
    change[#change + 1] = 'exposure'
    change[#change + 1] = shown
  end
  for _, label in ipairs({'category', 'author'}) do
    if type(stored[label]) == 'string' then
      change[#change + 1] = label
      change[#change + 1] = stored[label]
    end
  end
  redis.call('XADD', EMBEDDINGS, '*', unpack(change))
  return 1
end
"""

# ARGV: the model, then for each job: entry, id, version, prediction, vector. Publishes the predictions for the present
# version of a live note that are not published yet, and returns how many; finishes all jobs.
PUBLISH = (
    LUA
    + PUBLISH_PREDICTION
    + """
local model, published = ARGV[1], 0
if not registered(model) then return 0 end
for i = 2, #ARGV, 5 do
  local entry, id, number = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local note = redis.call('GET', NOTE .. id)
  if live(note, number) then
    -- The write itself queued the job, so its entry carries the time of the write.
    local written_ms = string.match(entry, '^%d+')
    local stored = cmsgpack.unpack(note)
    published = published + publish(model, id, number, stored, ARGV[i + 3], ARGV[i + 4], written_ms)
  end
  redis.call('XACK', JOBS .. model, WORKERS, entry)
  redis.call('XDEL', JOBS .. model, entry)
end
return published
"""
)

# ARGV: the model, entry, id, version, failure, reason. A second job of the same version adds no second letter.
DEAD_LETTER = (
    LUA
    + """
local model, entry, id, number = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local failed = redis.call('HGET', FAILED .. model, id)
if registered(model) and live(redis.call('GET', NOTE .. id), number) and not (failed and version(failed) == number) then
  redis.call('HSET', FAILED .. model, id, ARGV[5])
  redis.call('XADD', DEAD, '*', 'id', id, 'version', ARGV[4], 'fingerprint', model, 'reason', ARGV[6])
end
redis.call('XACK', JOBS .. model, WORKERS, entry)
redis.call('XDEL', JOBS .. model, entry)
"""
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that this worker claimed. ``deliveries`` counts its claims, this one included."""

    entry: str
    job: EmbedJob
    deliveries: int = 1

    @property
    def queued_s(self) -> float:
        """Seconds since the job was queued, by the clocks of Redis and of this machine; never negative."""
        return max(0.0, time.time() - int(self.entry.split("-")[0]) / 1000)


class JobQueue:
    """Claims one model's jobs for one worker and publishes their predictions. All calls raise StoreUnavailable.

    ``consumer`` must be the same after a restart and differ between workers; ``dim`` is the length of the model's
    vectors. Jobs without a `heartbeat` for ``take_over_s`` are abandoned, and any worker may reclaim them: one that
    only slept may then publish a second time, which changes nothing.
    """

    def __init__(self, redis: "Redis", consumer: str, fingerprint: str, dim: int, *, take_over_s: float = 30.0) -> None:
        self.take_over_s = take_over_s
        self._redis = redis
        self._consumer = consumer
        self._model = fingerprint
        self._dim = dim
        self._jobs = JOBS + fingerprint
        self._next_look = 0.0
        self._own_pending = True
        self._register = redis.register_script(REGISTER)
        self._fill = redis.register_script(FILL)
        self._publish = redis.register_script(PUBLISH)
        self._dead_letter = redis.register_script(DEAD_LETTER)

    async def open(self) -> int:
        """Register the model and make its consumer group, if need be; returns how many notes were queued for it.

        A model new to the store has every live note queued, and is the active one if there was none. The mark that all
        are queued is written last, so that after a crash this starts over.
        """
        with redis_errors():
            filled = await self._register(args=[self._model, self._dim])
            await self._make_group()
            self._own_pending = True
            if filled:
                return 0
            # One connection: a scan that goes on elsewhere, after a restart or a failover of Redis, would miss notes.
            async with self._redis.client() as connection:
                queued = await self._queue_all(connection)
                await connection.sadd(FILLED, self._model)
        return queued

    async def claim(self, limit: int, block_s: float) -> list[Claimed]:
        """The next new jobs, at most ``limit``, or none after ``block_s``; `Registry.progress` knows that it asked."""
        with _group_errors():
            answer: Any = await self._redis.xreadgroup(
                WORKERS, self._consumer, {self._jobs: ">"}, count=limit, block=max(1, int(block_s * 1000))
            )
            if not answer:
                # Before 7.2 Redis notes down who waits only when there is something to read, as its own past always is.
                await self._redis.xreadgroup(WORKERS, self._consumer, {self._jobs: _LAST_ENTRY}, count=1)
        return await self._decode([(entry, fields, 1) for entry, fields in answer[0][1]]) if answer else []

    async def has_abandoned(self) -> bool:
        """Whether there are abandoned jobs: of this worker's last life, or of any worker without heartbeats.

        Asks Redis after `open`, and then three times in ``take_over_s``.
        """
        with _group_errors():
            if self._own_pending:
                if await self._abandoned(1):
                    return True
                self._own_pending = False
            elif time.monotonic() < self._next_look:
                return False
            if await self._abandoned(1):
                return True
        self._next_look = time.monotonic() + self.take_over_s / 3
        return False

    async def reclaim(self, limit: int) -> list[Claimed]:
        """Claim abandoned jobs. Earlier claims must be finished.

        A job that a worker began comes alone: if it kills this worker, too, no other job's deliveries grow. The one
        with the fewest deliveries comes first, so that workers that die of another cause do not die with the same job
        over and over. Released jobs come together.
        """
        with _group_errors():
            abandoned = await self._abandoned(limit)
            abandoned.sort(key=lambda job: job["times_delivered"])
            jobs = [job for job in abandoned if job["times_delivered"] == 0] or abandoned[:1]
            async with self._redis.pipeline(transaction=False) as pipe:
                for job in jobs:
                    pipe.xclaim(self._jobs, WORKERS, self._consumer, self._idle_ms, [job["message_id"]])
                answers = await pipe.execute() if jobs else []
        entries, gone = [], []
        for job, answer in zip(jobs, answers, strict=True):
            if answer == [(None, None)]:  # Redis 6.2, for a pending entry that was deleted
                gone.append(job["message_id"].decode())
            else:
                entries += [(entry, fields, job["times_delivered"] + 1) for entry, fields in answer]
        await self.finish(gone)
        return await self._decode(entries)

    async def heartbeat(self, entries: Sequence[str]) -> None:
        """Keep claimed jobs from being abandoned for another ``take_over_s``."""
        if entries:
            with _group_errors():
                await self._redis.xclaim(self._jobs, WORKERS, self._consumer, 0, list(entries), justid=True)

    async def release(self, entries: Sequence[str]) -> None:
        """Abandon claimed jobs that were not begun, as if they had never been claimed."""
        if entries:
            with _group_errors():
                await self._redis.xclaim(
                    self._jobs, WORKERS, self._consumer, 0, list(entries), idle=_LONG_AGO_MS, retrycount=0, justid=True
                )

    async def notes(self, claimed: Sequence[Claimed]) -> list[StoredNote | None]:
        """The records of the jobs' notes, in order; None where there is none, or a damaged one."""
        with redis_errors():
            records: list[Any] = await self._redis.mget([NOTE + item.job.note_id for item in claimed])
        return [_decoded(StoredNote, record) for record in records]

    async def predictions(self, claimed: Sequence[Claimed]) -> list[StoredPrediction | None]:
        """The model's last predictions for the jobs' notes, in order, of any version; None where there is none."""
        if not claimed:
            return []
        with redis_errors():
            records: list[Any] = await self._redis.hmget(READINGS + self._model, [item.job.note_id for item in claimed])
        return [_decoded(StoredPrediction, record) for record in records]

    async def publish(self, results: Sequence[tuple[Claimed, StoredPrediction]]) -> int:
        """Store the predictions for present versions, announce them to the indexes, and finish their jobs, in one step.

        Returns how many were published. A second call changes nothing, nor does one for a retired model.
        """
        if not results:
            return 0
        args: list[Any] = [self._model]
        for item, predicted in results:
            args += [item.entry, item.job.note_id, predicted.version]
            args += [predicted.encode(), pack_vector(predicted.vector)]
        with redis_errors():
            return int(await self._publish(args=args))

    async def dead_letter(self, item: Claimed, reason: str) -> None:
        """Mark one version of a note as failed, and move its job to the dead-letter stream."""
        failure = StoredFailure(item.job.version, reason).encode()
        args: list[Any] = [self._model, item.entry, item.job.note_id, item.job.version, failure, reason]
        with redis_errors():
            await self._dead_letter(args=args)

    async def finish(self, entries: Sequence[str]) -> None:
        """Remove jobs without a prediction, whose notes were deleted or written again."""
        if not entries:
            return
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.xack(self._jobs, WORKERS, *entries)
                pipe.xdel(self._jobs, *entries)
                await pipe.execute()

    async def _make_group(self) -> None:
        try:
            # From 0 and not from $: jobs may be queued before the group exists.
            await self._redis.xgroup_create(self._jobs, WORKERS, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _queue_all(self, connection: "Redis") -> int:
        cursor, queued = 0, 0
        while True:
            cursor, keys = await connection.scan(cursor, match=NOTE + "*", count=SCAN_COUNT)
            if keys:
                queued += int(await self._fill(args=[self._model, *(key[len(NOTE) :] for key in keys)]))
            if not cursor:
                return queued

    async def _abandoned(self, limit: int) -> list[Any]:
        """The first abandoned jobs: at first of this worker's last life, then of any worker without heartbeats."""
        consumer = self._consumer if self._own_pending else None
        abandoned: list[Any] = await self._redis.xpending_range(
            self._jobs, WORKERS, "-", "+", limit, consumername=consumer, idle=self._idle_ms or None
        )
        return abandoned

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
    """`redis_errors`, and StoreUnavailable when the consumer group is gone, as when Redis lost all data."""
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
