"""`NoteStore` on Redis."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from indexer.rpc.trace import TRACEPARENT
from indexer.types import IndexedVector
from model.note import Note
from model.text.hashtags import fold
from service.errors import NotAsExpected, QueueFull, StoreUnavailable
from service.store.attribution.exposure import ask_for_notes, notes_of
from service.store.cluster.replicas import acknowledged
from service.store.connection import redis_errors
from service.store.idempotency import REQUEST
from service.store.interfaces import (
    Counts,
    Expected,
    Page,
    Refusal,
    Suggestion,
    View,
)
from service.store.records import StoredFailure, StoredNote, StoredPrediction
from service.store.schema import ATTRIBUTES, COUNTS, FAILED, JOBS, MODELS, NOTE, READINGS, TAG, WRITES
from service.store.scripts.notes import DELETE, LISTED, PAGE, PUT, refusal

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

# A cache that is further behind starts empty.
WRITES_READ = 1000
SCAN_COUNT = 500


class RedisStore:
    """`NoteStore` on Redis. Every write is one script: a note and its job are stored both or not at all."""

    def __init__(self, redis: "Redis", max_queue: int) -> None:
        self._redis = redis
        self._max_queue = max_queue
        self._put = acknowledged(redis, PUT)
        self._delete = acknowledged(redis, DELETE)
        self._page = redis.register_script(PAGE)
        self._listed = redis.register_script(LISTED)

    async def put(self, notes: Sequence[StoredNote], expected: Expected = None) -> list[int | Refusal]:
        """See `NoteStore`. Notes of one call are stored in order, in one transaction; ``expected`` is for one note."""
        if not notes:
            return []
        assert expected is None or len(notes) == 1
        records = [replace(note, version=0, deleted=False).encode() for note in notes]
        with redis_errors():
            own = self._max_queue, _word(expected), TRACEPARENT.get() or ""
            versions = await self._put(args=[*REQUEST.get(), *own, *records])
        if versions is None:
            raise QueueFull("too many notes wait to be embedded")
        if versions == 0:
            raise NotAsExpected("the note is not at the version that the request names")
        return [refusal(version) if isinstance(version, list) else int(version) for version in versions]

    async def delete(self, note_id: str, expected: Expected = None) -> bool:
        """See `NoteStore`."""
        tombstone = StoredNote(Note(note_id), version=0, deleted=True).encode()
        with redis_errors():
            outcome = await self._delete(args=[*REQUEST.get(), note_id, tombstone, _word(expected)])
        if outcome < 0:
            raise NotAsExpected("the note is not at the version that the request names")
        return bool(outcome)

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        """See `NoteStore`."""
        if not note_ids:
            return []
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                ask_for_notes(pipe, note_ids)
                return notes_of(*await pipe.execute())

    async def view(self, note_ids: Sequence[str], since: str | None) -> View:
        """See `NoteStore`."""
        with redis_errors():
            if since and not note_ids:  # as nearly every call of a warm cache does
                log: Any = await self._redis.xrange(WRITES, min=since, count=WRITES_READ)
                return View([], *_written(log, since))
            async with self._redis.pipeline(transaction=True) as pipe:
                if since:
                    pipe.xrange(WRITES, min=since, count=WRITES_READ)
                else:
                    pipe.xrevrange(WRITES, count=1)
                if note_ids:
                    ask_for_notes(pipe, note_ids)
                entries, *found = await pipe.execute()
        return View(notes_of(*found) if found else [], *_written(entries, since))

    async def page(self, after: str, limit: int) -> Page:
        """See `NoteStore`. Raises StoreUnavailable until `index_ids` is through."""
        with redis_errors():
            found = await self._page(args=[f"({after}" if after else "-", limit + 1])
        if found is None:
            raise StoreUnavailable("the list of notes is being made")
        ids, records, counts = found
        live = []
        for note_id, record, count in zip(ids[:limit], records, counts, strict=False):
            try:
                live.append(StoredNote.decode(record or b"", int(count or 0)))
            except ValueError:
                log.warning("record_malformed", extra={"note_id": note_id.decode()})
        return Page(live, ids[limit - 1].decode() if len(ids) > limit else None)

    async def index_ids(self) -> None:
        """List the ids of a store that an older release filled or writes to; at once where all are listed.

        May be repeated, and run by several processes at once. Raises StoreUnavailable.
        """
        with redis_errors():
            cursor = 0
            while not await self._listed(args=[]):
                cursor, keys = await self._redis.scan(cursor, match=NOTE + "*", count=SCAN_COUNT)
                await self._listed(args=[key[len(NOTE) :] for key in keys])
                if not cursor:
                    return

    async def suggestion(self, note_id: str, fingerprint: str) -> Suggestion | None:
        """See `NoteStore`."""
        [suggestion] = await self.suggestions([note_id], fingerprint)
        return suggestion

    async def suggestions(self, note_ids: Sequence[str], fingerprint: str) -> list[Suggestion | None]:
        """See `NoteStore`. Of a prediction and a failure the newer one counts."""
        if not note_ids:
            return []
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hmget(READINGS + fingerprint, list(note_ids))
                pipe.hmget(FAILED + fingerprint, list(note_ids))
                predicted, failed = await pipe.execute()
        return [_suggestion(*records) for records in zip(predicted, failed, strict=True)]

    async def vector(self, note_id: str, fingerprint: str) -> IndexedVector | None:
        """See `NoteStore`."""
        with redis_errors():
            predicted: Any = await self._redis.hget(READINGS + fingerprint, note_id)
        if predicted is None:
            return None
        prediction = StoredPrediction.decode(predicted)
        return IndexedVector(prediction.version, prediction.vector)

    async def counts(self, fingerprint: str) -> Counts:
        """See `NoteStore`. The oldest job's age is by Redis' own clock."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(COUNTS, "live")
                pipe.hlen(FAILED + fingerprint)
                pipe.hexists(MODELS, fingerprint)
                pipe.xlen(JOBS + fingerprint)
                pipe.xrange(JOBS + fingerprint, count=1)
                pipe.time()
                live, failed, registered, jobs, oldest, (seconds, _) = await pipe.execute()
        age_s = max(0.0, seconds - int(oldest[0][0].split(b"-")[0]) / 1000) if oldest else 0.0
        return Counts(int(live or 0), failed, jobs if registered else int(live or 0), age_s)

    async def attribute_types(self) -> dict[str, str]:
        """See `NoteStore`."""
        with redis_errors():
            typed: list[Any] = await self._redis.hkeys(ATTRIBUTES)
        return {name: kind for kind, name in (field.decode().split(":", 1) for field in typed)}

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


def _suggestion(predicted: bytes | None, failed: bytes | None) -> Suggestion | None:
    prediction = None if predicted is None else StoredPrediction.decode(predicted)
    failure = None if failed is None else StoredFailure.decode(failed)
    if failure and (prediction is None or failure.version >= prediction.version):
        return Suggestion(failure.version, "", failure=failure.reason)
    if prediction:
        return Suggestion(prediction.version, prediction.fingerprint, prediction.hashtags, prediction.category)
    return None


def _word(expected: Expected) -> str:
    return "" if expected is None else str(expected)


def _written(entries: Sequence[tuple[bytes, Any]], since: str | None) -> tuple[list[str] | None, str | None]:
    """The ids later than the entry ``since``, which has to be the first, and the next cursor."""
    if since is None:
        return None, entries[-1][0].decode() if entries else None
    if not entries or entries[0][0].decode() != since or len(entries) == WRITES_READ:
        return None, None
    return [fields[b"id"].decode() for _, fields in entries[1:]], entries[-1][0].decode()
