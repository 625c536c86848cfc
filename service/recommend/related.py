"""The notes nearest to a note or a draft: searched, checked against the store, ranked.

Without the store, or with a shard down, the answer is degraded, not refused.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.filters.expression import Not, OneOf, all_of
from indexer.types import IndexedVector, Searcher, SearchResult, ShardUnavailable
from model.inference.abstention import is_abstention
from service.deadlines import Deadline, within
from service.errors import IndexUnavailable, NoteNotFound, NotePending, StoreUnavailable
from service.recommend.lru import LruCache
from service.recommend.note_cache import NoteCache, NoteSummary
from service.recommend.rerank import diverse, popularity
from service.store.interfaces import NoteStore

log = logging.getLogger(__name__)

_SLACK = 5
_WIDENINGS = 3
_WIDER = 4
_MOST_CANDIDATES = 8192
# Re-ranking starts from a longer list: a note from further away may take the place of a popular one.
_RERANKED_PER_NOTE, _RERANKED_AT_LEAST = 4, 100
_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class RelatedQuery:
    """Which related notes to find. No category means any; ``diversity`` and ``debias`` are in 0..1.

    A filter is a field here: `Neighborhood._search` hands it to the index, and `_passes` checks it against the store.
    """

    k: int = 10
    categories: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_author: bool = False
    diversity: float = 0.0
    debias: float = 0.0

    @property
    def candidates(self) -> int:
        """How many notes to search for at first."""
        if self.diversity or self.debias:
            return max(_RERANKED_PER_NOTE * self.k, _RERANKED_AT_LEAST)
        return self.k + _SLACK


class RelatedNote(NamedTuple):
    """A related note. ``summary`` is None while the store does not answer; ``popularity`` is 0 without debias."""

    note_id: str
    cosine: float
    summary: NoteSummary | None
    popularity: float = 0.0

    @property
    def score(self) -> float:
        """``cosine - popularity``."""
        return self.cosine - self.popularity


@dataclass(frozen=True, slots=True)
class RelatedNotes:
    """The notes related to one, by descending score. ``summary`` is that note's own, None without the store.

    ``stale`` when they are those of an older version: a newer one is stored and not searchable yet.
    """

    note_id: str
    summary: NoteSummary | None
    notes: list[RelatedNote]
    generation: int
    stale: bool
    degraded: bool
    shards_ok: int
    shards_total: int


class Neighbors(NamedTuple):
    """The notes near a draft; ``complete`` unless the index or the store did not answer."""

    notes: list[RelatedNote]
    complete: bool


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Search hits, closest first; ``summary`` is the current one of the note that the search started from.

    ``hydrated`` is false when the store did not answer, and all summaries are None.
    """

    notes: list[RelatedNote]
    result: SearchResult
    summary: NoteSummary | None
    hydrated: bool


class Neighborhood:
    """Finds the notes related to a note or near a draft.

    Args:
        fingerprint: the model whose index is searched.
        popularity_weight: b of ``score = cosine - debias * b * log(1 + exposure)``.
        capacity: how many notes' vectors are cached, so that a note that is asked for again needs no lookup.
    """

    def __init__(
        self,
        store: NoteStore,
        cache: NoteCache,
        searcher: Searcher,
        fingerprint: str,
        *,
        popularity_weight: float,
        capacity: int,
    ) -> None:
        self._store = store
        self._cache = cache
        self._searcher = searcher
        self._fingerprint = fingerprint
        self._popularity_weight = popularity_weight
        self._vectors = LruCache[IndexedVector](capacity)

    async def of_note(self, note_id: str, query: RelatedQuery, deadline: Deadline) -> RelatedNotes:
        """The notes related to a note, never itself; while an edit waits, those of the version in the index.

        Raises NoteNotFound, NotePending (no version is in the index), StoreUnavailable (neither store nor index knows
        the note) and IndexUnavailable.
        """
        summary, indexed = self._cached(note_id) or await self._fetched(note_id, deadline)
        candidates = await self._nearest(indexed.vector, query, deadline, note_id, summary)
        known = max(summary.version, indexed.version) if summary else indexed.version
        if candidates.hydrated and (candidates.summary is None or candidates.summary.version != known):
            # The caches were out of date, or the note was written during the search.
            summary, indexed = await self._fetched(note_id, deadline)
            candidates = await self._nearest(indexed.vector, query, deadline, note_id, summary)
        result = candidates.result
        if not result.shards_ok:
            raise IndexUnavailable("no shard of the index answers")
        return RelatedNotes(
            note_id,
            candidates.summary,
            await self._ranked(_known(indexed.vector, candidates.notes), query, deadline),
            result.generation,
            stale=candidates.summary is not None and candidates.summary.version > indexed.version,
            degraded=not candidates.hydrated or result.shards_ok < result.shards_total,
            shards_ok=result.shards_ok,
            shards_total=result.shards_total,
        )

    async def of_vector(self, vector: NDArray[np.float32], query: RelatedQuery, deadline: Deadline) -> Neighbors:
        """The notes near a draft; none when no shard answers."""
        candidates = await self._nearest(vector, query, deadline)
        notes = await self._ranked(_known(vector, candidates.notes), query, deadline)
        return Neighbors(notes, complete=candidates.hydrated and candidates.result.shards_ok > 0)

    async def lookup(self, note_id: str, timeout_s: float) -> IndexedVector | ShardUnavailable | None:
        """The note's vector from its own shard; the error as a value."""
        try:
            return await self._searcher.lookup(note_id, timeout_s=timeout_s)
        except ShardUnavailable as error:
            return error

    def _cached(self, note_id: str) -> tuple[NoteSummary, IndexedVector] | None:
        """The note's summary and vector from the caches: maybe out of date, as its summary after the search shows."""
        summary, [indexed] = self._cache.peek(note_id), self._vectors.use([note_id])
        return (summary, indexed) if summary and indexed and summary.version == indexed.version else None

    async def _fetched(self, note_id: str, deadline: Deadline) -> tuple[NoteSummary | None, IndexedVector]:
        """The note's summary, None if the store does not answer, and its vector."""
        summaries, indexed = await asyncio.gather(self._summaries([note_id]), self.lookup(note_id, deadline.share_s()))
        if summaries is not None and summaries[0] is None:
            raise NoteNotFound("there is no note of this id")
        if summaries is None:
            return None, self._indexed_alone(note_id, indexed)
        [summary] = summaries
        assert summary
        if isinstance(indexed, ShardUnavailable):
            indexed = await self._stored_vector(note_id, deadline)
        elif indexed and indexed.version < summary.version:
            # A write that left the text alone took the vector along, before the shard hears of it.
            with suppress(IndexUnavailable):
                indexed = await self._stored_vector(note_id, deadline)
        if indexed is None:
            raise NotePending(await self._why_pending(note_id, summary.version, deadline))
        self._vectors.put(note_id, indexed)
        return summary, indexed

    def _indexed_alone(self, note_id: str, indexed: IndexedVector | ShardUnavailable | None) -> IndexedVector:
        """What the index says of a note, while the store does not answer."""
        if self._cache.is_deleted(note_id):
            raise NoteNotFound("there is no note of this id")
        if isinstance(indexed, ShardUnavailable):
            raise IndexUnavailable("neither the store nor the shard of this note answers")
        if indexed is None:
            raise StoreUnavailable("the store does not answer, and the index does not hold this note")
        return indexed

    async def _stored_vector(self, note_id: str, deadline: Deadline) -> IndexedVector:
        """The vector that a worker stored, while the note's own shard does not answer: the others can be searched."""
        try:
            async with within(deadline.share_s(), StoreUnavailable):
                stored = await self._store.vector(note_id, self._fingerprint)
        except StoreUnavailable:
            stored = None
        if stored is None:
            raise IndexUnavailable("the shard of this note does not answer")
        return stored

    async def _why_pending(self, note_id: str, version: int, deadline: Deadline) -> str:
        try:
            async with within(deadline.share_s(), StoreUnavailable):
                suggestion = await self._store.suggestion(note_id, self._fingerprint)
        except StoreUnavailable:
            suggestion = None
        if suggestion and suggestion.version == version and suggestion.failure:
            return f"the model could not read this version of the note: {suggestion.failure[:_REASON_CHARS]}"
        return "the note is accepted but not searchable yet"

    async def _nearest(
        self,
        vector: NDArray[np.float32],
        query: RelatedQuery,
        deadline: Deadline,
        note_id: str | None = None,
        summary: NoteSummary | None = None,
    ) -> _Candidates:
        """At least k notes if that many live notes pass, closest first, without the note that the vector is of.

        The index may still hold notes whose delete was acknowledged, or know an older category of them. They are
        dropped here, and when that leaves too few the search is repeated wider, a bounded number of times.
        """
        author = summary.author if query.exclude_author and summary else None
        own = [note_id] if note_id else []
        count = query.candidates
        for _ in range(1 + _WIDENINGS):
            result = await self._search(vector, count, query, (*query.exclude, *own), author, deadline)
            ids, cosines = result.hits
            summaries = await self._summaries([*own, *ids])
            if summaries is None:
                certain = (hit for hit in zip(ids, cosines, strict=True) if self._cache.is_certain(hit[0]))
                bare = [RelatedNote(id_, cosine, None) for id_, cosine in certain]
                return _Candidates(bare, result, None, hydrated=False)
            hits = zip(ids, cosines, summaries[len(own) :], strict=True)
            notes = [RelatedNote(id_, cosine, hit) for id_, cosine, hit in hits if hit and not hit.hidden]
            if query.categories or author is not None:
                notes = [note for note in notes if note.summary and _passes(note.summary, query, author)]
            candidates = _Candidates(notes, result, summaries[0] if own else None, hydrated=True)
            if len(notes) >= query.k or len(ids) < count:
                break
            count = min(count * _WIDER, _MOST_CANDIDATES)
        return candidates

    async def _search(
        self,
        vector: NDArray[np.float32],
        count: int,
        query: RelatedQuery,
        exclude: Sequence[str],
        author: str | None,
        deadline: Deadline,
    ) -> SearchResult:
        passing = all_of(
            [
                OneOf("category", query.categories) if query.categories else None,
                None if author is None else Not(OneOf("author", (author,))),
            ]
        )
        return await self._searcher.search(vector, count, exclude, filter=passing, timeout_s=deadline.share_s())

    async def _ranked(self, notes: list[RelatedNote], query: RelatedQuery, deadline: Deadline) -> list[RelatedNote]:
        if query.debias:
            notes = sorted((self._debiased(note, query.debias) for note in notes), key=lambda note: -note.score)
        if not query.diversity or len(notes) <= 1:
            return notes[: query.k]
        vectors = await self._searcher.vectors([note.note_id for note in notes], timeout_s=deadline.share_s())
        unknown = np.zeros_like(next(iter(vectors.values()), np.zeros(1, np.float32)))
        vectors_ND = np.stack([vectors.get(note.note_id, unknown) for note in notes])
        chosen = diverse([note.score for note in notes], vectors_ND, query.k, query.diversity)
        return [notes[place] for place in chosen]

    def _debiased(self, note: RelatedNote, debias: float) -> RelatedNote:
        if note.summary is None:
            return note
        return note._replace(popularity=popularity(note.summary.exposure, debias, self._popularity_weight))

    async def _summaries(self, note_ids: Sequence[str]) -> list[NoteSummary | None] | None:
        """See `NoteCache.get`; None when the store does not answer."""
        try:
            return await self._cache.get(note_ids)
        except StoreUnavailable:
            log.warning("store_unavailable", extra={"records": len(note_ids)})
            return None


def _passes(summary: NoteSummary, query: RelatedQuery, author: str | None) -> bool:
    if query.categories and summary.category not in query.categories:
        return False
    return author is None or summary.author != author


def _known(vector: NDArray[np.float32], notes: list[RelatedNote]) -> list[RelatedNote]:
    """The neighbors of a vector; none of one that says nothing of its note."""
    return [] if is_abstention(vector) else notes
