"""The gateway's policy: how store, index and workers make an answer, and which answer is left without one of them.

No HTTP here and no concrete storage. Every public call ends within its deadline: a part that hangs costs at most half
of the time that is left, so that the other parts can still answer.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

from indexer.types import Floats, Searcher, ShardStatus
from model.backend import Embedding
from model.note import Note
from model.text.suggestions import VOTERS, Scores, TaggedNeighbors, Uncalibrated
from service import metrics
from service.contract.tags import Vocabulary
from service.deadlines import Deadline, within
from service.errors import (
    IndexUnavailable,
    StoreUnavailable,
    WorkerUnavailable,
)
from service.experiments.assignment import Assignment
from service.recommend.hashtags import Tag, from_vocabulary, suggest
from service.recommend.near_copies import NEAR, Fingerprint
from service.recommend.note_cache import NoteCache
from service.recommend.notes import AttributeNames, Notes
from service.recommend.query import RelatedQuery
from service.recommend.ranking import RelatedNote
from service.recommend.related import Neighborhood, Neighbors, Origins, RelatedNotes
from service.recommend.seeds import Seeds
from service.recommend.vocabulary import HashtagRules, HashtagVocabulary
from service.recommend.workers import Drafter
from service.settings import Settings
from service.store.attribution.outcomes import Outcomes
from service.store.interfaces import Counts, EventLog, NoteStore
from service.store.records import Event

log = logging.getLogger(__name__)

MAX_HASHTAGS = 10
_WORKER_SHARE = 0.8
# Twice that is half of the time: an answer may wait for the cache's request under way before its own.
_STORE_SHARE = 0.25
# For some millions of events.
_ERASE_S = 15.0


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

    ``assignment`` is the arm of an experiment whose readers it answers, see `in_arm`.

    ``vocabulary`` is the same for all models. ``notes`` are written and read through it. ``scores`` turns the model's
    figures into probabilities.
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
        self.assignment: Assignment | None = None
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
        self._names = AttributeNames(store)
        self._drafter = drafter
        self._http = settings.http
        self._shards = len(settings.index.addresses)
        self.notes = Notes(
            store, self._cache, self._seeds, searcher, vocabulary, self._scores, settings.http, fingerprint
        )

    def in_arm(self, assignment: Assignment) -> "Recommender":
        """The same recommender, with the arm that it answers for."""
        other = copy(self)
        other.assignment = assignment
        return other

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

    async def outcomes(self, days: int) -> Outcomes:
        """What became of the answers of the last days, of all models. Raises StoreUnavailable."""
        async with within(self._http.related_s, StoreUnavailable):
            return await self._events.outcomes(days)

    async def status(self) -> ServiceStatus:
        """The service's figures. Raises StoreUnavailable."""
        async with within(self._http.related_s, StoreUnavailable) as deadline:
            counts, shards = await asyncio.gather(
                self._store.counts(self.fingerprint), self._searcher.status(timeout_s=deadline.share_s())
            )
        return ServiceStatus(counts, shards, self._shards, sorted(self.notes.freshness_s))

    async def unknown_names(self, names: frozenset[str]) -> list[str]:
        """Those of the names in filters that no note has, as far as the store tells."""
        if not names:
            return []
        try:
            return await self._names.unknown(names)
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
