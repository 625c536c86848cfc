"""The gateway's policy: what to answer from the store, the index and the workers, and what without one.

No HTTP here and no concrete storage. Every public call ends within its deadline: a part that hangs costs
half of the time that is left and no more, so that what still works can be answered.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.types import Found, Held, Searcher, ShardStatus, ShardUnavailable
from model.backends.base import Reading
from model.note import Note
from model.suggestions import VOTERS, Neighbors, Scores, Uncalibrated
from service import metrics
from service.errors import (
    IndexUnavailable,
    NoteNotFound,
    NotePending,
    StoreUnavailable,
    Unavailable,
    WorkerUnavailable,
)
from service.settings import Settings
from service.store import Counts, NoteStore, StoredNote, Suggestion
from service.tags import Tag, suggest
from service.vocabulary import Vocabulary, in_use

log = logging.getLogger(__name__)

NoteStatus = Literal["pending", "searchable", "failed"]

MAX_HASHTAGS = 10
_WORKER_PART = 0.8
_SLACK = 5
_WIDENINGS = 3
_WIDER = 4
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.1
_REASON_CHARS = 300
_FRESHNESS_SAMPLE = 1000


class Drafter(Protocol):
    """What the gateway sees of the workers."""

    async def read(self, note: Note, max_hashtags: int, *, timeout_s: float) -> Reading:
        """Vector, hashtags and category of a draft, of the model whose fingerprint the gateway was given.

        Raises WorkerUnavailable when no worker of that model answers in time.
        """
        ...

    async def ready(self, *, timeout_s: float) -> bool:
        """Whether at least one worker answers."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """A related note. ``note`` is None when the store does not answer: only id and score are known then."""

    note_id: str
    score: float
    note: Note | None


@dataclass(frozen=True, slots=True)
class Related:
    """The notes related to one, closest first."""

    note_id: str
    items: list[Item]
    generation: int
    degraded: bool
    shards_ok: int
    shards_total: int


@dataclass(frozen=True, slots=True)
class Tagged:
    """What is suggested for a draft. ``category`` is a name and a probability."""

    hashtags: list[Tag]
    category: tuple[str, float] | None
    related: list[Item]


@dataclass(frozen=True, slots=True)
class Written:
    """An acknowledged write."""

    note_id: str
    version: int
    status: NoteStatus


@dataclass(frozen=True, slots=True)
class Described:
    """A note with what became of its current version. ``suggestion`` is of that version, or None."""

    record: StoredNote
    status: NoteStatus
    suggestion: Suggestion | None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Figures for `/status`; ``shards`` holds those that answered."""

    counts: Counts
    shards: list[ShardStatus]
    shards_total: int
    freshness_s: list[float]

    def freshness(self, quantile: float) -> float | None:
        """The nearest-rank quantile of ``freshness_s``, which is sorted; None when it is empty."""
        if not self.freshness_s:
            return None
        return self.freshness_s[math.ceil(quantile * len(self.freshness_s)) - 1]

    @property
    def searchable(self) -> int:
        """Notes that the answering shards can find."""
        return sum(shard.notes for shard in self.shards)

    @property
    def pending(self) -> int:
        """Live notes that wait for a worker or for the index; an estimate while notes are being written."""
        behind = self.counts.live - self.counts.failed - self.searchable
        return max(0, min(self.counts.live, max(behind, self.counts.queue_depth)))


@dataclass(frozen=True, slots=True)
class _Hits:
    """Found neighbors as items, without deleted ones; ``hydrated`` is False when the store did not answer."""

    items: list[Item]
    found: Found
    hydrated: bool


class _Deadline:
    """Hands out time: each step gets a part of what is left, so that a slow one leaves some for the next."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    def share_s(self, part: float = 0.5) -> float:
        return max(0.001, (self._end - asyncio.get_running_loop().time()) * part)


class Recommender:
    """Answers the routes. ``fingerprint`` names the model whose vectors are in the index, ``scores`` what it says."""

    def __init__(
        self,
        store: NoteStore,
        searcher: Searcher,
        drafter: Drafter,
        settings: Settings,
        fingerprint: str,
        scores: Scores | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self._scores = scores or Uncalibrated()
        self._store = store
        self._searcher = searcher
        self._drafter = drafter
        self._http = settings.http
        self._shards = len(settings.index.addresses)
        self._freshness_s: deque[float] = deque(maxlen=_FRESHNESS_SAMPLE)

    async def related(self, note_id: str, k: int) -> Related:
        """Up to k live notes closest to the note by cosine, never itself.

        Without the store or with a shard down the answer is degraded, not refused. Raises NoteNotFound,
        NotePending, StoreUnavailable (nobody knows the note) and IndexUnavailable.
        """
        async with _within(self._http.related_s, IndexUnavailable) as deadline:
            record, held = await self._note_and_vector(note_id, deadline)
            hits = await self._nearest(held.vector, k, note_id, hydrate=record is not None, deadline=deadline)
        found = hits.found
        if not found.shards_ok:
            raise IndexUnavailable("no shard of the index answers")
        degraded = not hits.hydrated or found.shards_ok < found.shards_total
        if degraded:
            metrics.RELATED_DEGRADED.inc()
        return Related(note_id, hits.items[:k], found.generation, degraded, found.shards_ok, found.shards_total)

    async def tags(self, draft: Note, *, max_hashtags: int, vocabulary: Vocabulary, related: int) -> Tagged:
        """Hashtags, category and related notes for a draft that is not stored.

        Without the index or the store's records the model speaks alone. Raises WorkerUnavailable, and
        StoreUnavailable when the vocabulary is needed and not there.
        """
        wanted = max_hashtags + len(draft.hashtags) if vocabulary == "open" else MAX_HASHTAGS
        async with _within(self._http.tags_s, WorkerUnavailable) as deadline:
            timeout_s = deadline.share_s(_WORKER_PART)
            reading = await self._drafter.read(draft, min(wanted, MAX_HASHTAGS), timeout_s=timeout_s)
            count = max(VOTERS, related)
            hits = await self._nearest(reading.vector, count, None, hydrate=True, deadline=deadline)
            generated = [(tag.name, tag.score) for tag in reading.hashtags]
            suggested = suggest(generated, _voters(hits), draft.hashtags, self._scores)
            chosen = await self._in_use(suggested, max_hashtags, vocabulary, deadline)
        for tag in chosen:
            metrics.TAGS_SUGGESTED.labels(tag.source).inc()
        named = reading.category
        category = (named.name, self._scores.category(named.score)) if named else None
        return Tagged(chosen, category, hits.items[:related])

    async def put(self, record: StoredNote, wait_s: float = 0.0) -> Written:
        """Store a note; with ``wait_s``, wait up to that long for this version to become searchable.

        Raises StoreUnavailable and QueueFull.
        """
        [version] = await self.put_many([record])
        searchable = wait_s > 0 and await self._becomes_searchable(record.note.id, version, wait_s)
        return Written(record.note.id, version, "searchable" if searchable else "pending")

    async def put_many(self, records: Sequence[StoredNote]) -> list[int]:
        """Store notes and return their versions; of two with one id the later wins."""
        async with _within(self._http.write_s, StoreUnavailable):
            versions = await self._store.put(records)
        metrics.NOTES_ACCEPTED.inc(len(versions))
        return versions

    async def delete(self, note_id: str) -> None:
        """Delete a note; a second time changes nothing. Raises NoteNotFound for an id never seen."""
        async with _within(self._http.write_s, StoreUnavailable):
            known = await self._store.delete(note_id)
        if not known:
            raise NoteNotFound("no note of this id was ever stored")

    async def describe(self, note_id: str) -> Described:
        """The note, its status and the model's suggestions. Raises NoteNotFound and StoreUnavailable."""
        async with _within(self._http.related_s, StoreUnavailable) as deadline:
            record, suggestion, held = await asyncio.gather(
                self._records([note_id], deadline),
                self._suggestion(note_id, deadline),
                self._held(note_id, deadline),
            )
        note = _live(record[0])
        current = self._scored(suggestion) if suggestion and suggestion.version == note.version else None
        return Described(note, _status(note, held, current), current)

    async def status(self) -> ServiceStatus:
        """The service's figures. Raises StoreUnavailable."""
        async with _within(self._http.related_s, StoreUnavailable) as deadline:
            counts, shards = await asyncio.gather(
                self._store.counts(), self._searcher.status(timeout_s=deadline.share_s())
            )
        return ServiceStatus(counts, shards, self._shards, sorted(self._freshness_s))

    async def _note_and_vector(self, note_id: str, deadline: _Deadline) -> tuple[StoredNote | None, Held]:
        """The record, None if the store does not answer, and what the index holds for it."""
        records, held = await asyncio.gather(self._records_if_up([note_id], deadline), self._held(note_id, deadline))
        if isinstance(held, ShardUnavailable):
            raise IndexUnavailable("the shard of this note does not answer")
        if records is None:
            if held is None:
                raise StoreUnavailable("the store does not answer, and the index does not hold this note")
            return None, held
        record = _live(records[0])
        if held is None or held.version < record.version:
            raise NotePending(await self._why_pending(record, deadline))
        return record, held

    async def _why_pending(self, record: StoredNote, deadline: _Deadline) -> str:
        try:
            suggestion = await self._suggestion(record.note.id, deadline)
        except StoreUnavailable:
            suggestion = None
        if suggestion and suggestion.version == record.version and suggestion.failure:
            return f"the model could not read this version of the note: {suggestion.failure[:_REASON_CHARS]}"
        return "the note is accepted but not searchable yet"

    async def _nearest(
        self, vector: NDArray[np.float32], k: int, own_id: str | None, *, hydrate: bool, deadline: _Deadline
    ) -> _Hits:
        """At least k items if that many live notes exist, closest first.

        The index may still hold notes whose delete was acknowledged. They are dropped here, and when that
        leaves too few the search is repeated wider, a bounded number of times.
        """
        exclude = () if own_id is None else (own_id,)
        fetch = k + _SLACK
        for _ in range(1 + _WIDENINGS):
            found = await self._searcher.search(vector, fetch, exclude, timeout_s=deadline.share_s())
            ids = [neighbor.id for neighbor in found.neighbors]
            records = await self._records_if_up(ids, deadline) if hydrate else None
            hits = _hits(found, records)
            if len(hits.items) >= k or len(found.neighbors) < fetch:
                break
            fetch *= _WIDER
        return hits

    def _scored(self, said: Suggestion) -> Suggestion:
        hashtags = tuple((tag, self._scores.alone(score)) for tag, score in said.hashtags)
        category = said.category and (said.category[0], self._scores.category(said.category[1]))
        return replace(said, hashtags=hashtags, category=category)

    async def _in_use(
        self, suggested: Sequence[Tag], count: int, vocabulary: Vocabulary, deadline: _Deadline
    ) -> list[Tag]:
        try:
            async with _within(deadline.share_s(), StoreUnavailable):
                return await in_use(suggested, count, vocabulary, self._store)
        except StoreUnavailable:
            if vocabulary == "known":
                raise
            log.warning("store_unavailable", extra={"hashtags": count})
            return list(suggested[:count])

    async def _becomes_searchable(self, note_id: str, version: int, wait_s: float) -> bool:
        clock = asyncio.get_running_loop()
        accepted = clock.time()
        pause_s = _FIRST_POLL_S
        polls = 0
        while (left_s := accepted + wait_s - clock.time()) > 0:
            held = await self._lookup(note_id, left_s)
            if isinstance(held, Held) and held.version >= version:
                if polls:  # at once means that the write changed nothing
                    self._observe_freshness(clock.time() - accepted)
                return True
            polls += 1
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LAST_POLL_S)
        return False

    def _observe_freshness(self, seconds: float) -> None:
        self._freshness_s.append(seconds)
        metrics.FRESHNESS_SECONDS.observe(seconds)

    async def _records(self, note_ids: Sequence[str], deadline: _Deadline) -> list[StoredNote | None]:
        async with _within(deadline.share_s(), StoreUnavailable):
            return await self._store.get(note_ids)

    async def _records_if_up(self, note_ids: Sequence[str], deadline: _Deadline) -> list[StoredNote | None] | None:
        try:
            return await self._records(note_ids, deadline)
        except StoreUnavailable:
            log.warning("store_unavailable", extra={"records": len(note_ids)})
            return None

    async def _suggestion(self, note_id: str, deadline: _Deadline) -> Suggestion | None:
        async with _within(deadline.share_s(), StoreUnavailable):
            return await self._store.suggestion(note_id)

    async def _held(self, note_id: str, deadline: _Deadline) -> Held | ShardUnavailable | None:
        return await self._lookup(note_id, deadline.share_s())

    async def _lookup(self, note_id: str, timeout_s: float) -> Held | ShardUnavailable | None:
        try:
            return await self._searcher.lookup(note_id, timeout_s=timeout_s)
        except ShardUnavailable as error:
            return error


@asynccontextmanager
async def _within(seconds: float, late: type[Unavailable]) -> AsyncIterator[_Deadline]:
    """Raises ``late`` when the body takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield _Deadline(seconds)
    except TimeoutError:
        raise late("no answer in time") from None


def _live(record: StoredNote | None) -> StoredNote:
    if record is None or record.deleted:
        raise NoteNotFound("there is no note of this id")
    return record


def _status(record: StoredNote, held: Held | ShardUnavailable | None, current: Suggestion | None) -> NoteStatus:
    if isinstance(held, Held) and held.version >= record.version:
        return "searchable"
    return "failed" if current and current.failure else "pending"


def _hits(found: Found, records: Sequence[StoredNote | None] | None) -> _Hits:
    if records is None:
        return _Hits([Item(near.id, near.score, None) for near in found.neighbors], found, hydrated=False)
    pairs = zip(found.neighbors, records, strict=True)
    live = [Item(near.id, near.score, kept.note) for near, kept in pairs if kept and not kept.deleted]
    return _Hits(live, found, hydrated=True)


def _voters(hits: _Hits) -> Neighbors | None:
    """The nearest notes with their hashtags; None when the index or the store did not answer."""
    if not (hits.hydrated and hits.found.shards_ok):
        return None
    return [(item.score, item.note.hashtags) for item in hits.items[:VOTERS] if item.note]
