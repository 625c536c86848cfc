"""The gateway's policy: how store, index and workers make an answer, and which answer is left without one of them.

No HTTP here and no concrete storage. Every public call ends within its deadline: a part that hangs costs at most half
of the time that is left, so that the other parts can still answer.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from indexer.filters.expression import Expression
from indexer.types import Floats, IndexedVector, Searcher, ShardStatus, ShardUnavailable
from model.backend import Embedding
from model.note import Note
from model.text.suggestions import VOTERS, Scores, TaggedNeighbors, Uncalibrated
from service import metrics
from service.contract.notes import NoteStatus
from service.contract.tags import Vocabulary
from service.deadlines import Deadline, within
from service.errors import (
    BadRequest,
    IndexUnavailable,
    NotAsExpected,
    NoteNotFound,
    StoreUnavailable,
    WorkerUnavailable,
)
from service.recommend.attributes import Attributes
from service.recommend.hashtags import Tag, from_vocabulary, suggest
from service.recommend.near_copies import NEAR, Fingerprint
from service.recommend.note_cache import NoteCache
from service.recommend.query import RelatedQuery
from service.recommend.ranking import RelatedNote
from service.recommend.related import Neighborhood, Neighbors, Origins, RelatedNotes
from service.recommend.seeds import Seeds
from service.recommend.vocabulary import HashtagRules, HashtagVocabulary
from service.recommend.workers import Drafter
from service.settings import Settings
from service.store.interfaces import Conflict, Counts, EventLog, Expected, NoteStore, Suggestion
from service.store.records import Event, StoredNote, fields_of

log = logging.getLogger(__name__)

MAX_HASHTAGS = 10
_WORKER_SHARE = 0.8
# Twice that is half of the time: an answer may wait for the cache's request under way before its own.
_STORE_SHARE = 0.25
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.1
# How long a write that is stored waits to learn its status: a write that changed nothing may be searchable already.
_STATUS_S = 0.05
_FRESHNESS_SAMPLE = 1000
# Of a filtered list, a request at most and the store at a time.
_MOST_LOOKED_AT, _LOOKED_AT = 10_000, 500
# For some millions of events.
_ERASE_S = 15.0
# How long a delete waits for the index: many times what a shard takes that keeps up with the store.
_LEAVES_S, _FIRST_LOOK_S = 0.25, 0.002


@dataclass(frozen=True, slots=True)
class TagSuggestions:
    """Suggestions for a draft. ``category`` is a name and a probability.

    ``copy`` is a note of which the draft is a near copy, and their similarity.
    """

    hashtags: list[Tag]
    category: tuple[str, float] | None
    related: list[RelatedNote]
    copy: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """An acknowledged write."""

    note_id: str
    version: int
    status: NoteStatus


@dataclass(frozen=True, slots=True)
class NoteDetails:
    """A note, and the status of its current version. ``suggestion`` is for that version, or None."""

    record: StoredNote
    status: NoteStatus
    suggestion: Suggestion | None


@dataclass(frozen=True, slots=True)
class NoteList:
    """Notes in byte order of their ids; the next ones come after the id ``next``, None at the end."""

    notes: list[NoteDetails]
    next: str | None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Figures for `/status`; ``shards`` are the answering ones, ``freshness_s`` is sorted."""

    counts: Counts
    shards: list[ShardStatus]
    shards_total: int
    freshness_s: list[float]

    def freshness(self, quantile: float) -> float | None:
        """The nearest-rank quantile of ``freshness_s``; None when it is empty."""
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
        not_indexed = self.counts.live - self.counts.failed - self.searchable
        return max(0, min(self.counts.live, max(not_indexed, self.counts.queue_depth)))


class Recommender:
    """Answers the routes for the model with this ``fingerprint``, which searcher and drafter serve, too.

    ``vocabulary`` is the same for all models.
    ``scores`` turns the model's figures into probabilities.
    """

    def __init__(
        self,
        store: NoteStore,
        events: EventLog,
        vocabulary: HashtagVocabulary,
        searcher: Searcher,
        drafter: Drafter,
        settings: Settings,
        fingerprint: str,
        scores: Scores | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.vocabulary = vocabulary
        self._scores = scores or Uncalibrated()
        self._events = events
        self._store = store
        self._searcher = searcher
        self._cache = NoteCache(store, settings.http.cached_notes, _STORE_SHARE * settings.http.related_s)
        self._seeds = Seeds(store, self._cache, searcher, fingerprint, settings.http.cached_notes)
        self._neighborhood = Neighborhood(
            self._cache, self._seeds, searcher, popularity_weight=settings.http.popularity_weight
        )
        self._attributes = Attributes(store)
        self._drafter = drafter
        self._http = settings.http
        self._shards = len(settings.index.addresses)
        self._freshness_s: deque[float] = deque(maxlen=_FRESHNESS_SAMPLE)

    async def related(self, note_id: str, query: RelatedQuery) -> RelatedNotes:
        """Live notes closest to a note, never itself. Raises as `related_to` does."""
        return await self.related_to(Origins([note_id]), query)

    async def related_to(self, origins: Origins, query: RelatedQuery, text: Note | None = None) -> RelatedNotes:
        """Live notes closest to others and to a text, never those themselves.

        Without the store or with a shard down the answer is degraded, not refused. Raises NoteNotFound,
        NotePending, StoreUnavailable (neither store nor index knows the note), IndexUnavailable, BadRequest when
        the origins cancel out, and with a text WorkerUnavailable.
        """
        if text:
            [embedding] = await self.embed([text])
            origins = replace(origins, text=embedding.vector)
        async with within(self._http.related_s, IndexUnavailable) as deadline:
            query, is_whole = await self._without_seen(query, deadline)
            related = await self._neighborhood.of_notes(origins, query, deadline)
        if not is_whole:
            related = replace(related, degraded=True)
        if related.degraded:
            metrics.RELATED_DEGRADED.inc()
        return related

    async def tags(self, draft: Note, *, max_hashtags: int, vocabulary: Vocabulary, related: int) -> TagSuggestions:
        """Hashtags, category and related notes for a draft that is not stored.

        Without the index or the store the hashtags are those of the model. Raises WorkerUnavailable, and
        StoreUnavailable when the vocabulary is ``known`` and the store does not answer.
        """
        needed = max_hashtags + len(draft.hashtags) if vocabulary == "open" else MAX_HASHTAGS
        async with within(self._http.tags_s, WorkerUnavailable) as deadline:
            rules = await self.vocabulary.rules()
            timeout_s = deadline.share_s(_WORKER_SHARE)
            prediction = await self._drafter.predict(draft, min(needed, MAX_HASHTAGS), timeout_s=timeout_s)
            neighbors, near = await self._near(prediction.vector, related, deadline)
            generated = [(tag.name, tag.score) for tag in prediction.hashtags]
            suggested = suggest(generated, _voters(neighbors), draft.hashtags, self._scores, rules)
            chosen = await self._from_vocabulary(suggested, max_hashtags, vocabulary, rules, deadline)
        for tag in chosen:
            metrics.TAGS_SUGGESTED.labels(tag.source).inc()
        best = prediction.category
        category = (best.name, self._scores.category(best.score)) if best else None
        return TagSuggestions(chosen, category, near.notes, _copied(draft, neighbors.notes))

    async def embed(self, notes: Sequence[Note]) -> list[Embedding]:
        """The vectors of notes that are not stored, in order, unit norm. Raises WorkerUnavailable."""
        async with within(self._http.tags_s, WorkerUnavailable) as deadline:
            return await self._drafter.embed(notes, timeout_s=deadline.share_s(1.0))

    async def put(self, record: StoredNote, wait_s: float = 0.0, expected: Expected = None) -> WriteReceipt:
        """Store a note; with ``wait_s``, wait up to that long for this version to become searchable.

        A write that changes nothing keeps version and status. Raises StoreUnavailable, QueueFull, NotAsExpected, and
        BadRequest for an attribute of another type than in live notes.
        """
        [version], before = await asyncio.gather(
            self.put_many([record], expected), self._seeds.lookup(record.note.id, _STATUS_S)
        )
        return await self._receipt(record, version, before, wait_s)

    async def patch(
        self, note_id: str, change: Callable[[StoredNote], StoredNote], wait_s: float = 0.0, expected: Expected = None
    ) -> WriteReceipt:
        """Store what ``change`` makes of the note as it stands; see `put`.

        Raises NoteNotFound, and what ``change`` and `put` do.
        """
        async with within(self._http.write_s, StoreUnavailable):
            (record, version), before = await asyncio.gather(
                self._change(note_id, change, expected), self._seeds.lookup(note_id, _STATUS_S)
            )
        return await self._receipt(record, version, before, wait_s)

    async def put_many(self, records: Sequence[StoredNote], expected: Expected = None) -> list[int | Conflict]:
        """Store notes and return their versions, or why one was not stored; of two with one id the later wins.

        A note that is hidden now is in no answer from here on, as one that was deleted.
        """
        async with within(self._http.write_s, StoreUnavailable):
            versions = await self._store.put(records, expected)
        metrics.NOTES_ACCEPTED.inc(sum(not isinstance(version, Conflict) for version in versions))
        for record in records:
            if record.hidden:  # one that was refused is fetched again, no more
                self._cache.withdraw(record.note.id, deleted=False)
        return versions

    async def delete(self, note_id: str, expected: Expected = None) -> None:
        """Delete a note; a second time changes nothing. Raises NoteNotFound (never seen) and NotAsExpected.

        It waits a moment for the note's shard, which may soon have to answer without the store.
        """
        async with within(self._http.write_s, StoreUnavailable) as deadline:
            known = await self._store.delete(note_id, expected)
        if not known:
            raise NoteNotFound("no note of this id was ever stored")
        self._cache.withdraw(note_id, deleted=True)
        await self._leaves_index(note_id, min(_LEAVES_S, deadline.share_s(1.0)))

    async def record(self, events: Sequence[Event]) -> int:
        """Store the events with new ids, and return how many. Raises StoreUnavailable."""
        async with within(self._http.write_s, StoreUnavailable):
            accepted = await self._events.append(events)
        metrics.EVENTS.labels("accepted").inc(accepted)
        metrics.EVENTS.labels("duplicate").inc(len(events) - accepted)
        return accepted

    async def erase(self, user_id: str) -> None:
        """Remove all that is kept of a reader. Raises StoreUnavailable; repeated, it goes on."""
        async with within(_ERASE_S, StoreUnavailable):
            await self._events.erase(user_id)

    async def details(self, note_id: str) -> NoteDetails:
        """The note, its status and the model's suggestions. Raises NoteNotFound and StoreUnavailable."""
        async with within(self._http.related_s, StoreUnavailable) as deadline:
            [record], suggestion, indexed, rules = await asyncio.gather(
                self._store.get([note_id]),
                self._store.suggestion(note_id, self.fingerprint),
                self._seeds.lookup(note_id, deadline.share_s()),
                self.vocabulary.rules(),
            )
        if record is None or record.deleted:
            raise NoteNotFound("there is no note of this id")
        return self._described(record, suggestion, _version_of(indexed), rules)

    async def page(self, after: str, limit: int, expression: Expression | None = None) -> NoteList:
        """The next live notes after an id that match, hidden, pending and failed ones too, as the store has them now.

        With an expression no more than `_MOST_LOOKED_AT` notes are looked at, for half of the deadline: then ``next``
        says where to go on, be there ``limit`` matching notes or none yet. Raises StoreUnavailable.
        """
        async with within(self._http.write_s, StoreUnavailable) as deadline:
            records, last = await self._matching(after, limit, expression, deadline)
            ids = [record.note.id for record in records]
            suggestions, versions, rules = await asyncio.gather(
                self._store.suggestions(ids, self.fingerprint),
                self._searcher.versions(ids, timeout_s=deadline.share_s()),
                self.vocabulary.rules(),
            )
        return NoteList(
            [
                self._described(record, suggestion, versions.get(record.note.id), rules)
                for record, suggestion in zip(records, suggestions, strict=True)
            ],
            last,
        )

    async def status(self) -> ServiceStatus:
        """The service's figures. Raises StoreUnavailable."""
        async with within(self._http.related_s, StoreUnavailable) as deadline:
            counts, shards = await asyncio.gather(
                self._store.counts(self.fingerprint), self._searcher.status(timeout_s=deadline.share_s())
            )
        return ServiceStatus(counts, shards, self._shards, sorted(self._freshness_s))

    async def _matching(
        self, after: str, limit: int, expression: Expression | None, deadline: Deadline
    ) -> tuple[list[StoredNote], str | None]:
        """Up to ``limit`` records, and the id to go on after."""
        if expression is None:
            page = await self._store.page(after, limit)
            return page.records, page.last
        found: list[StoredNote] = []
        enough_s = deadline.share_s()
        for _ in range(_MOST_LOOKED_AT // _LOOKED_AT):
            page = await self._store.page(after, _LOOKED_AT)
            for record in page.records:
                if expression.matches(fields_of(record)):
                    found.append(record)
                    if len(found) == limit:
                        at_end = page.last is None and record is page.records[-1]
                        return found, None if at_end else record.note.id
            if page.last is None:
                return found, None
            after = page.last
            if deadline.share_s(1.0) < enough_s:
                break
        return found, after

    def _described(
        self, record: StoredNote, suggestion: Suggestion | None, indexed: int | None, rules: HashtagRules
    ) -> NoteDetails:
        """``indexed`` is the version that the index holds."""
        current = self._scored(suggestion, rules) if suggestion and suggestion.version == record.version else None
        return NoteDetails(record, _status(record.version, indexed, suggestion), current)

    def _scored(self, suggestion: Suggestion, rules: HashtagRules) -> Suggestion:
        hashtags = rules.merged((tag, self._scores.alone(score)) for tag, score in suggestion.hashtags)
        category = suggestion.category and (suggestion.category[0], self._scores.category(suggestion.category[1]))
        return replace(suggestion, hashtags=hashtags, category=category)

    async def unknown_names(self, query: RelatedQuery) -> list[str]:
        """Names in the query's filters that no note ever had, as far as the store tells."""
        try:
            return await self._attributes.unknown(query)
        except StoreUnavailable:
            return []

    async def _near(self, vector: Floats, related: int, deadline: Deadline) -> tuple[Neighbors, Neighbors]:
        """The nearest notes, which vote, copies of each other too; and as many as are to be shown, without copies."""
        voters = self._neighborhood.of_vector(vector, RelatedQuery(VOTERS, collapse=False), deadline)
        if not related:
            return await voters, Neighbors([], complete=True)
        shown = self._neighborhood.of_vector(vector, RelatedQuery(related), deadline)
        return await asyncio.gather(voters, shown)

    async def _without_seen(self, query: RelatedQuery, deadline: Deadline) -> tuple[RelatedQuery, bool]:
        """The query without the notes that its reader has seen; false when the store does not tell them."""
        if query.for_user is None:
            return query, True
        try:
            async with within(_STORE_SHARE * deadline.share_s(1.0), StoreUnavailable):
                seen = await self._events.seen(query.for_user)
        except StoreUnavailable:
            log.warning("store_unavailable", extra={"readers": 1})
            return query, False
        return replace(query, exclude=(*query.exclude, *seen)), True

    async def _from_vocabulary(
        self,
        suggested: Sequence[Tag],
        count: int,
        vocabulary: Vocabulary,
        rules: HashtagRules,
        deadline: Deadline,
    ) -> list[Tag]:
        try:
            async with within(deadline.share_s(), StoreUnavailable):
                return await from_vocabulary(suggested, count, vocabulary, self._store, rules)
        except StoreUnavailable:
            if vocabulary == "known":
                raise
            log.warning("store_unavailable", extra={"hashtags": count})
            return list(suggested[:count])

    async def _change(
        self, note_id: str, change: Callable[[StoredNote], StoredNote], expected: Expected
    ) -> tuple[StoredNote, int | Conflict]:
        """The changed note and its version. Where none is expected, another write in between means once more.

        What is expected is left to the store: a request that is repeated with its key has changed the version itself.
        """
        while True:
            [stored] = await self._store.get([note_id])
            if stored is None or stored.deleted:
                raise NoteNotFound("there is no note of this id")
            record = change(stored)
            is_any = expected in (None, "any")
            try:
                [version] = await self.put_many([record], stored.version if is_any else expected)
            except NotAsExpected:
                if not is_any:
                    raise
            else:
                return record, version

    async def _receipt(
        self,
        record: StoredNote,
        version: int | Conflict,
        before: IndexedVector | ShardUnavailable | None,
        wait_s: float,
    ) -> WriteReceipt:
        """``before`` is what the index held when the write went out: its version is as high if nothing was changed."""
        note_id = record.note.id
        if isinstance(version, Conflict):
            raise BadRequest(str(version))
        if record.hidden and not wait_s:
            await self._hides(note_id, version, _LEAVES_S)
        if wait_s > 0 and await self._becomes_searchable(note_id, version, wait_s):
            return WriteReceipt(note_id, version, "searchable")
        return WriteReceipt(note_id, version, await self._status_of(note_id, version, before))

    async def _status_of(
        self, note_id: str, version: int, indexed: IndexedVector | ShardUnavailable | None
    ) -> NoteStatus:
        """The status of this version; pending, too, where it cannot be told in a moment."""
        suggestion = None
        if not _is_searchable(indexed, version):
            with contextlib.suppress(StoreUnavailable):
                async with within(_STATUS_S, StoreUnavailable):
                    suggestion = await self._store.suggestion(note_id, self.fingerprint)
        return _status(version, _version_of(indexed), suggestion)

    async def _becomes_searchable(self, note_id: str, version: int, wait_s: float) -> bool:
        clock = asyncio.get_running_loop()
        accepted = clock.time()
        pause_s = _FIRST_POLL_S
        polls = 0
        while (left_s := accepted + wait_s - clock.time()) > 0:
            if _is_searchable(await self._seeds.lookup(note_id, left_s), version):
                if polls:  # the first poll succeeds only when the write changed nothing
                    self._observe_freshness(clock.time() - accepted)
                return True
            polls += 1
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LAST_POLL_S)
        return False

    async def _hides(self, note_id: str, version: int, wait_s: float) -> None:
        """Return when the note's shard knows this version or none, or when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                pause_s = _FIRST_LOOK_S
                while isinstance(indexed := await self._seeds.lookup(note_id, wait_s), IndexedVector):
                    if indexed.version >= version:
                        return
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, _LAST_POLL_S)

    async def _leaves_index(self, note_id: str, wait_s: float) -> None:
        """Return when no shard that responds holds the note any more, or when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                pause_s = _FIRST_LOOK_S
                while await self._searcher.holds(note_id, timeout_s=wait_s):
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, _LAST_POLL_S)

    def _observe_freshness(self, seconds: float) -> None:
        self._freshness_s.append(seconds)
        metrics.FRESHNESS_SECONDS.observe(seconds)


def _version_of(indexed: IndexedVector | ShardUnavailable | None) -> int | None:
    return indexed.version if isinstance(indexed, IndexedVector) else None


def _is_searchable(indexed: IndexedVector | ShardUnavailable | None, version: int) -> bool:
    return isinstance(indexed, IndexedVector) and indexed.version >= version


def _status(version: int, indexed: int | None, suggestion: Suggestion | None) -> NoteStatus:
    if indexed is not None and indexed >= version:
        return "searchable"
    failed = suggestion and suggestion.version == version and suggestion.failure
    return "failed" if failed else "pending"


def _copied(draft: Note, notes: Sequence[RelatedNote]) -> tuple[str, float] | None:
    """The note of which the draft is most a near copy, and their similarity."""
    own = Fingerprint.of(draft.title, draft.content)
    similar = ((note.note_id, own.similarity(note.summary.fingerprint)) for note in notes if note.summary)
    best = max(similar, key=lambda pair: pair[1], default=None)
    return best if best and best[1] >= NEAR else None


def _voters(neighbors: Neighbors) -> TaggedNeighbors | None:
    """The nearest notes' cosines and hashtags; None when the index or the store did not answer."""
    if not neighbors.complete:
        return None
    return [(note.cosine, note.summary.hashtags) for note in neighbors.notes[:VOTERS] if note.summary]
