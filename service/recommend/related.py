"""The notes around a note or a draft: searched, checked against the store as it is now, ranked.

Without the store, or with a shard down, there is still an answer; it says that it is degraded.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.types import Hits, IndexedVector, Searcher, SearchResult, ShardUnavailable
from service.deadlines import Deadline, within
from service.errors import IndexUnavailable, NoteNotFound, NotePending, StoreUnavailable
from service.recommend.note_cache import NoteCache, NoteSummary
from service.recommend.rerank import diverse, popularity
from service.store.interfaces import NoteStore

log = logging.getLogger(__name__)

_SLACK = 5
_WIDENINGS = 3
_WIDER = 4
_MOST_CANDIDATES = 8192
# What is re-ranked comes from a longer list: a popular note's place is taken by one that was further away.
_RERANKED_PER_ITEM, _RERANKED_AT_LEAST = 4, 100
_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class RelatedQuery:
    """Which related notes. No category means any; ``diversity`` and ``debias`` are in 0..1."""

    k: int = 10
    categories: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_author: bool = False
    diversity: float = 0.0
    debias: float = 0.0

    @property
    def reranked(self) -> bool:
        """Whether the order is another than that of the cosines."""
        return self.diversity > 0 or self.debias > 0

    @property
    def candidates(self) -> int:
        """How many notes to search for at first."""
        return max(_RERANKED_PER_ITEM * self.k, _RERANKED_AT_LEAST) if self.reranked else self.k + _SLACK


class RelatedNote(NamedTuple):
    """A related note: ``score = cosine - popularity``. ``card`` is None while the store does not answer."""

    note_id: str
    score: float
    card: NoteSummary | None
    cosine: float
    popularity: float = 0.0


@dataclass(frozen=True, slots=True)
class RelatedNotes:
    """The notes related to one, by descending score. ``card`` is that note's own, None without the store."""

    note_id: str
    card: NoteSummary | None
    items: list[RelatedNote]
    generation: int
    degraded: bool
    shards_ok: int
    shards_total: int


class Neighbors(NamedTuple):
    """The notes around a draft; not ``known`` when the index or the store did not answer."""

    items: list[RelatedNote]
    known: bool


@dataclass(frozen=True, slots=True)
class _Origin:
    """The note that a search starts from, which it must not find."""

    note_id: str
    card: NoteSummary | None


@dataclass(frozen=True, slots=True)
class _Hits:
    """Found neighbors as items, closest first; ``origin`` is the card of the note searched from, as it is now."""

    items: list[RelatedNote]
    found: SearchResult
    origin: NoteSummary | None
    hydrated: bool


class Neighborhood:
    """Finds what is around a vector or a note.

    Args:
        fingerprint: the model whose index is searched.
        popularity_weight: b of ``score = cosine - debias * b * log(1 + exposure)``.
        capacity: how many notes' vectors are held, so that a note that is asked for again needs no lookup.
    """

    def __init__(
        self,
        store: NoteStore,
        cards: NoteCache,
        searcher: Searcher,
        fingerprint: str,
        *,
        popularity_weight: float,
        capacity: int,
    ) -> None:
        self._store = store
        self._cards = cards
        self._searcher = searcher
        self._fingerprint = fingerprint
        self._popularity_weight = popularity_weight
        self._capacity = capacity
        self._vectors: dict[str, IndexedVector] = {}

    async def of_note(self, note_id: str, wanted: RelatedQuery, deadline: Deadline) -> RelatedNotes:
        """Related notes of a stored one.

        Raises NoteNotFound, NotePending, StoreUnavailable (nobody knows the note) and IndexUnavailable.
        """
        card, held = self._recalled(note_id) or await self._own(note_id, deadline)
        hits = await self._nearest(held.vector, wanted, _Origin(note_id, card), deadline)
        if hits.hydrated and (hits.origin is None or hits.origin.version != held.version):
            # What was recalled is out of date, or the note was written while we searched.
            card, held = await self._own(note_id, deadline)
            hits = await self._nearest(held.vector, wanted, _Origin(note_id, card), deadline)
        found = hits.found
        if not found.shards_ok:
            raise IndexUnavailable("no shard of the index answers")
        degraded = not hits.hydrated or found.shards_ok < found.shards_total
        items = await self._ranked(hits.items, wanted, deadline)
        return RelatedNotes(
            note_id, hits.origin, items, found.generation, degraded, found.shards_ok, found.shards_total
        )

    async def of_vector(self, vector: NDArray[np.float32], wanted: RelatedQuery, deadline: Deadline) -> Neighbors:
        """What is around a draft; nothing when no shard answers."""
        hits = await self._nearest(vector, wanted, None, deadline)
        items = await self._ranked(hits.items, wanted, deadline)
        return Neighbors(items, known=hits.hydrated and hits.found.shards_ok > 0)

    async def lookup(self, note_id: str, timeout_s: float) -> IndexedVector | ShardUnavailable | None:
        """What the note's own shard holds of it."""
        try:
            return await self._searcher.lookup(note_id, timeout_s=timeout_s)
        except ShardUnavailable as error:
            return error

    def _recalled(self, note_id: str) -> tuple[NoteSummary, IndexedVector] | None:
        """What is held of the note; it may be out of date, which the answer's cards will show."""
        card, held = self._cards.recall(note_id), self._vectors.get(note_id)
        return (card, held) if card and held and card.version == held.version else None

    async def _own(self, note_id: str, deadline: Deadline) -> tuple[NoteSummary | None, IndexedVector]:
        """The note's card, None if the store does not answer, and what the index holds for it."""
        cards, held = await asyncio.gather(self._cards_if_up([note_id]), self.lookup(note_id, deadline.share_s()))
        if cards is not None and cards[0] is None:
            raise NoteNotFound("there is no note of this id")
        if isinstance(held, ShardUnavailable):
            raise IndexUnavailable("the shard of this note does not answer")
        if cards is None:
            if held is None:
                raise StoreUnavailable("the store does not answer, and the index does not hold this note")
            return None, held
        [card] = cards
        assert card
        if held is None or held.version < card.version:
            raise NotePending(await self._why_pending(note_id, card.version, deadline))
        self._vectors[note_id] = held
        if len(self._vectors) > self._capacity:
            del self._vectors[next(iter(self._vectors))]
        return card, held

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
        self, vector: NDArray[np.float32], wanted: RelatedQuery, origin: _Origin | None, deadline: Deadline
    ) -> _Hits:
        """At least k items if that many live notes pass, closest first.

        The index may still hold notes whose delete was acknowledged, or know an older category of them. They are
        dropped here, and when that leaves too few the search is repeated wider, a bounded number of times.
        """
        author = origin.card.author if origin and origin.card and wanted.exclude_author else None
        own = [origin.note_id] if origin else []
        fetch = wanted.candidates
        for _ in range(1 + _WIDENINGS):
            found = await self._search(vector, fetch, (*wanted.exclude, *own), wanted.categories, author, deadline)
            ids, cosines = found.hits
            cards = await self._cards_if_up([*own, *ids])
            if cards is None:
                unseen = [RelatedNote(id_, cosine, None, cosine) for id_, cosine in zip(ids, cosines, strict=True)]
                return _Hits(unseen, found, None, hydrated=False)
            near = zip(ids, cosines, cards[len(own) :], strict=True)
            items = [RelatedNote(id_, cosine, card, cosine) for id_, cosine, card in near if card]
            if wanted.categories or author is not None:
                items = [item for item in items if item.card and _passes(item.card, wanted, author)]
            hits = _Hits(items, found, cards[0] if own else None, hydrated=True)
            if len(items) >= wanted.k or len(ids) < fetch:
                break
            fetch = min(fetch * _WIDER, _MOST_CANDIDATES)
        return hits

    async def _search(
        self,
        vector: NDArray[np.float32],
        k: int,
        exclude: Sequence[str],
        categories: Sequence[str],
        author: str | None,
        deadline: Deadline,
    ) -> SearchResult:
        """One search, or one a category, side by side."""
        timeout_s = deadline.share_s()
        if len(categories) < 2:
            category = categories[0] if categories else None
            return await self._searcher.search(
                vector, k, exclude, category=category, exclude_author=author, timeout_s=timeout_s
            )
        answers = await asyncio.gather(
            *(
                self._searcher.search(vector, k, exclude, category=category, exclude_author=author, timeout_s=timeout_s)
                for category in categories
            )
        )
        return _joined(answers, k)

    async def _ranked(self, items: list[RelatedNote], wanted: RelatedQuery, deadline: Deadline) -> list[RelatedNote]:
        if wanted.debias:
            items = sorted((self._debiased(item, wanted.debias) for item in items), key=lambda item: -item.score)
        if not wanted.diversity or len(items) <= 1:
            return items[: wanted.k]
        held = await self._searcher.vectors([item.note_id for item in items], timeout_s=deadline.share_s())
        unlike = np.zeros_like(next(iter(held.values()), np.zeros(1, np.float32)))
        vectors_ND = np.stack([held.get(item.note_id, unlike) for item in items])
        chosen = diverse([item.score for item in items], vectors_ND, wanted.k, wanted.diversity)
        return [items[place] for place in chosen]

    def _debiased(self, item: RelatedNote, debias: float) -> RelatedNote:
        taken_off = popularity(item.card.exposure, debias, self._popularity_weight) if item.card else 0.0
        return RelatedNote(item.note_id, item.cosine - taken_off, item.card, item.cosine, taken_off)

    async def _cards_if_up(self, note_ids: Sequence[str]) -> list[NoteSummary | None] | None:
        try:
            return await self._cards.get(note_ids)
        except StoreUnavailable:
            log.warning("store_unavailable", extra={"records": len(note_ids)})
            return None


def _passes(card: NoteSummary, wanted: RelatedQuery, author: str | None) -> bool:
    if wanted.categories and card.category not in wanted.categories:
        return False
    return author is None or card.author != author


def _joined(answers: Sequence[SearchResult], k: int) -> SearchResult:
    """Searches of the same notes by different categories, as one."""
    near = [neighbor for answer in answers for neighbor in answer.neighbors]
    near.sort(key=lambda neighbor: (-neighbor.score, neighbor.id))
    return SearchResult(
        Hits([neighbor.id for neighbor in near[:k]], [neighbor.score for neighbor in near[:k]]),
        generation=min(answer.generation for answer in answers),
        shards_ok=min(answer.shards_ok for answer in answers),
        shards_total=answers[0].shards_total,
    )
