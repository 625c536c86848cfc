"""The notes that a list starts from, and their vectors: from the caches, the index or the store."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import NamedTuple

from indexer.types import IndexedVector, Searcher, ShardUnavailable
from service.deadlines import Deadline, within
from service.errors import IndexUnavailable, NoteLLMError, NoteNotFound, NotePending, StoreUnavailable
from service.recommend.lru import LruCache
from service.recommend.note_cache import NoteCache, NoteSummary
from service.store.interfaces import NoteStore

_REASON_CHARS = 300


class Seed(NamedTuple):
    """A note that a list starts from; ``summary`` is None while the store does not answer."""

    note_id: str
    summary: NoteSummary | None
    indexed: IndexedVector


class Seeds:
    """Finds the vectors of notes.

    Args:
        fingerprint: the model whose vectors are wanted.
        capacity: how many notes' vectors are cached, so that a note that is asked for again needs no lookup.
    """

    def __init__(self, store: NoteStore, cache: NoteCache, searcher: Searcher, fingerprint: str, capacity: int) -> None:
        self._store = store
        self._cache = cache
        self._searcher = searcher
        self._fingerprint = fingerprint
        self._vectors = LruCache[IndexedVector](capacity)

    async def of(
        self, note_ids: Sequence[str], deadline: Deadline, *, cached: bool = True, places: Sequence[str] = ()
    ) -> list[Seed]:
        """The seeds of these notes, in order; with ``cached`` maybe out of date, as their summaries will show.

        While an edit waits, a seed has the vector of the version in the index. Raises NoteNotFound, NotePending (no
        version is in the index), StoreUnavailable (neither store nor index knows a note) and IndexUnavailable: the
        error of the first note that has one, with its place in the request if ``places`` say it.
        """
        known = [self.cached(note_id) if cached else None for note_id in note_ids]
        if all(known):
            return [seed for seed in known if seed]
        calls = (self._fetched(note_id, deadline) for note_id, seed in zip(note_ids, known, strict=True) if not seed)
        fetched = iter(await asyncio.gather(*calls, return_exceptions=True))
        found = [seed or next(fetched) for seed in known]
        for place, error in zip_longest(places, found):
            if isinstance(error, BaseException):
                raise type(error)(f"{place}: {error}") if place and isinstance(error, NoteLLMError) else error
        return [seed for seed in found if isinstance(seed, Seed)]

    async def prefetch(self, note_ids: Sequence[str], timeout_s: float) -> None:
        """Look all of these up at once, so that `of` finds them in the caches. Raises StoreUnavailable."""
        await self._cache.get(note_ids)
        # In this order: a vector of a newer version than is noted shows as out of date, and is looked up again.
        versions = await self._searcher.versions(note_ids, timeout_s=timeout_s)
        vectors = await self._searcher.vectors(note_ids, timeout_s=timeout_s)
        for note_id in versions.keys() & vectors.keys():
            self._vectors.put(note_id, IndexedVector(versions[note_id], vectors[note_id]))

    def cached(self, note_id: str) -> Seed | None:
        """The seed as the caches have it, maybe out of date; None where they lack it, or know it to be."""
        summary, [indexed] = self._cache.peek(note_id), self._vectors.use([note_id])
        return Seed(note_id, summary, indexed) if summary and indexed and summary.version == indexed.version else None

    async def lookup(self, note_id: str, timeout_s: float) -> IndexedVector | ShardUnavailable | None:
        """The note's vector from its own shard; the error as a value."""
        try:
            return await self._searcher.lookup(note_id, timeout_s=timeout_s)
        except ShardUnavailable as error:
            return error

    async def _fetched(self, note_id: str, deadline: Deadline) -> Seed:
        summaries, indexed = await asyncio.gather(
            self._cache.get_or_none([note_id]), self.lookup(note_id, deadline.share_s())
        )
        if summaries is not None and summaries[0] is None:
            raise NoteNotFound("there is no note of this id")
        if summaries is None:
            return Seed(note_id, None, self._indexed_alone(note_id, indexed))
        [summary] = summaries
        assert summary
        if isinstance(indexed, ShardUnavailable):
            indexed = await self._stored_vector(note_id, deadline)
        elif indexed and indexed.version < summary.version:
            # A write that left the text alone has its vector at once, before the shard hears of it.
            with suppress(IndexUnavailable):
                indexed = await self._stored_vector(note_id, deadline)
        if indexed is None:
            raise NotePending(await self._why_pending(note_id, summary.version, deadline))
        self._vectors.put(note_id, indexed)
        return Seed(note_id, summary, indexed)

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
