"""The gateway's policy: what to answer from the store, the index and the workers, and what without one.

No HTTP here and no concrete storage. Every public call ends within its deadline: a part that hangs costs
half of the time that is left and no more, so that what still works can be answered.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from indexer.types import IndexedVector, Searcher, ShardStatus, ShardUnavailable
from model.note import Note
from model.text.suggestions import VOTERS, Scores, TaggedNeighbors, Uncalibrated
from service import metrics
from service.contract.notes import NoteStatus
from service.contract.tags import Vocabulary
from service.deadlines import Deadline, within
from service.errors import IndexUnavailable, NoteNotFound, StoreUnavailable, WorkerUnavailable
from service.recommend.hashtags import Tag, in_use, suggest
from service.recommend.note_cache import NoteCache
from service.recommend.related import Neighborhood, Neighbors, RelatedNote, RelatedNotes, RelatedQuery
from service.recommend.workers import Drafter
from service.settings import Settings
from service.store.interfaces import Counts, EventLog, Expected, NoteStore, Suggestion
from service.store.records import Event, StoredNote

log = logging.getLogger(__name__)

MAX_HASHTAGS = 10
_WORKER_PART = 0.8
# Twice that is half of the time: a request may wait for one question before its own.
_STORE_PART = 0.25
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.1
_FRESHNESS_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class TagSuggestions:
    """What is suggested for a draft. ``category`` is a name and a probability."""

    hashtags: list[Tag]
    category: tuple[str, float] | None
    related: list[RelatedNote]


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """An acknowledged write."""

    note_id: str
    version: int
    status: NoteStatus


@dataclass(frozen=True, slots=True)
class NoteDetails:
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


class Recommender:
    """Answers the routes for one model, the one of ``fingerprint``: searcher and drafter are of that model, too.

    ``scores`` says what the model's figures mean.
    """

    def __init__(
        self,
        store: NoteStore,
        events: EventLog,
        searcher: Searcher,
        drafter: Drafter,
        settings: Settings,
        fingerprint: str,
        scores: Scores | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self._scores = scores or Uncalibrated()
        self._events = events
        self._store = store
        self._searcher = searcher
        self._neighborhood = Neighborhood(
            store,
            NoteCache(store, settings.http.cached_notes, _STORE_PART * settings.http.related_s),
            searcher,
            fingerprint,
            popularity_weight=settings.http.popularity_weight,
            capacity=settings.http.cached_notes,
        )
        self._drafter = drafter
        self._http = settings.http
        self._shards = len(settings.index.addresses)
        self._freshness_s: deque[float] = deque(maxlen=_FRESHNESS_SAMPLE)

    async def related(self, note_id: str, wanted: RelatedQuery) -> RelatedNotes:
        """Live notes closest to the note, never itself.

        Without the store or with a shard down the answer is degraded, not refused. Raises NoteNotFound,
        NotePending, StoreUnavailable (nobody knows the note) and IndexUnavailable.
        """
        async with within(self._http.related_s, IndexUnavailable) as deadline:
            related = await self._neighborhood.of_note(note_id, wanted, deadline)
        if related.degraded:
            metrics.RELATED_DEGRADED.inc()
        return related

    async def tags(self, draft: Note, *, max_hashtags: int, vocabulary: Vocabulary, related: int) -> TagSuggestions:
        """Hashtags, category and related notes for a draft that is not stored.

        Without the index or the store's records the model speaks alone. Raises WorkerUnavailable, and
        StoreUnavailable when the vocabulary is needed and not there.
        """
        wanted = max_hashtags + len(draft.hashtags) if vocabulary == "open" else MAX_HASHTAGS
        async with within(self._http.tags_s, WorkerUnavailable) as deadline:
            timeout_s = deadline.share_s(_WORKER_PART)
            prediction = await self._drafter.predict(draft, min(wanted, MAX_HASHTAGS), timeout_s=timeout_s)
            count = max(VOTERS, related)
            around = await self._neighborhood.of_vector(prediction.vector, RelatedQuery(count), deadline)
            generated = [(tag.name, tag.score) for tag in prediction.hashtags]
            suggested = suggest(generated, _voters(around), draft.hashtags, self._scores)
            chosen = await self._in_use(suggested, max_hashtags, vocabulary, deadline)
        for tag in chosen:
            metrics.TAGS_SUGGESTED.labels(tag.source).inc()
        named = prediction.category
        category = (named.name, self._scores.category(named.score)) if named else None
        return TagSuggestions(chosen, category, around.items[:related])

    async def put(self, record: StoredNote, wait_s: float = 0.0, expected: Expected = None) -> WriteReceipt:
        """Store a note; with ``wait_s``, wait up to that long for this version to become searchable.

        Raises StoreUnavailable, QueueFull and NotAsExpected.
        """
        [version] = await self.put_many([record], expected)
        searchable = wait_s > 0 and await self._becomes_searchable(record.note.id, version, wait_s)
        return WriteReceipt(record.note.id, version, "searchable" if searchable else "pending")

    async def put_many(self, records: Sequence[StoredNote], expected: Expected = None) -> list[int]:
        """Store notes and return their versions; of two with one id the later wins."""
        async with within(self._http.write_s, StoreUnavailable):
            versions = await self._store.put(records, expected)
        metrics.NOTES_ACCEPTED.inc(len(versions))
        return versions

    async def delete(self, note_id: str, expected: Expected = None) -> None:
        """Delete a note; a second time changes nothing. Raises NoteNotFound (never seen) and NotAsExpected."""
        async with within(self._http.write_s, StoreUnavailable):
            known = await self._store.delete(note_id, expected)
        if not known:
            raise NoteNotFound("no note of this id was ever stored")

    async def record(self, events: Sequence[Event]) -> int:
        """Keep the events whose ids are new, and return how many those are. Raises StoreUnavailable."""
        async with within(self._http.write_s, StoreUnavailable):
            accepted = await self._events.append(events)
        metrics.EVENTS.labels("accepted").inc(accepted)
        metrics.EVENTS.labels("duplicate").inc(len(events) - accepted)
        return accepted

    async def describe(self, note_id: str) -> NoteDetails:
        """The note, its status and the model's suggestions. Raises NoteNotFound and StoreUnavailable."""
        async with within(self._http.related_s, StoreUnavailable) as deadline:
            [record], suggestion, held = await asyncio.gather(
                self._store.get([note_id]),
                self._store.suggestion(note_id, self.fingerprint),
                self._neighborhood.lookup(note_id, deadline.share_s()),
            )
        note = _live(record)
        current = self._scored(suggestion) if suggestion and suggestion.version == note.version else None
        return NoteDetails(note, _status(note, held, current), current)

    async def status(self) -> ServiceStatus:
        """The service's figures. Raises StoreUnavailable."""
        async with within(self._http.related_s, StoreUnavailable) as deadline:
            counts, shards = await asyncio.gather(
                self._store.counts(self.fingerprint), self._searcher.status(timeout_s=deadline.share_s())
            )
        return ServiceStatus(counts, shards, self._shards, sorted(self._freshness_s))

    def _scored(self, said: Suggestion) -> Suggestion:
        hashtags = tuple((tag, self._scores.alone(score)) for tag, score in said.hashtags)
        category = said.category and (said.category[0], self._scores.category(said.category[1]))
        return replace(said, hashtags=hashtags, category=category)

    async def _in_use(
        self, suggested: Sequence[Tag], count: int, vocabulary: Vocabulary, deadline: Deadline
    ) -> list[Tag]:
        try:
            async with within(deadline.share_s(), StoreUnavailable):
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
            held = await self._neighborhood.lookup(note_id, left_s)
            if isinstance(held, IndexedVector) and held.version >= version:
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


def _live(record: StoredNote | None) -> StoredNote:
    if record is None or record.deleted:
        raise NoteNotFound("there is no note of this id")
    return record


def _status(
    record: StoredNote, held: IndexedVector | ShardUnavailable | None, current: Suggestion | None
) -> NoteStatus:
    if isinstance(held, IndexedVector) and held.version >= record.version:
        return "searchable"
    return "failed" if current and current.failure else "pending"


def _voters(around: Neighbors) -> TaggedNeighbors | None:
    """The nearest notes with their hashtags; None when the index or the store did not answer."""
    if not around.known:
        return None
    return [(item.cosine, item.card.hashtags) for item in around.items[:VOTERS] if item.card]
