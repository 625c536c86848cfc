"""The notes nearest to notes, a text or a draft: searched, checked against the store, ranked.

Without the store, or with a shard down, the answer is degraded, not refused.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple, Self

import numpy as np

from indexer.filters.expression import Expression, Not, OneOf, all_of
from indexer.types import Floats, Hits, Searcher, SearchResult
from model.inference.abstention import is_abstention
from service.deadlines import Deadline
from service.errors import BadRequest, IndexUnavailable
from service.recommend.note_cache import NoteCache, NoteSummary
from service.recommend.query import RelatedQuery
from service.recommend.ranking import Ranked, RelatedNote, diverse, ranked
from service.recommend.seeds import Seed, Seeds
from service.store.records import fold_category

_WIDENINGS = 3
_SPREAD_AT_ONCE = 400
_WIDER = 4
_SHORTEST = 1e-6  # below, rounding alone gives a mean its direction
# What is unlike the negatives counts half as much as what is like the positives (Rocchio, 1971).
_NEGATIVE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Origins:
    """What a list starts from: ids of notes it shall be near to and far from, and the unit vector, (D,), of a text.

    ``places`` say where each id stands in the request, for errors.
    """

    positives: Sequence[str] = ()
    negatives: Sequence[str] = ()
    text: Floats | None = None
    places: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RelatedNotes:
    """Notes by descending score. ``summaries`` are those of the positives, none without the store.

    ``stale`` when they are those of an older version of a seed: a newer one is stored and not searchable yet.
    ``copies_left_out`` counts the near copies that would have stood above the last note.
    """

    summaries: list[NoteSummary]
    notes: list[RelatedNote]
    copies_left_out: int
    generation: int
    stale: bool
    degraded: bool
    shards_ok: int
    shards_total: int


class Neighbors(NamedTuple):
    """The notes near a draft; ``complete`` unless the index or the store did not answer."""

    notes: list[RelatedNote]
    complete: bool


class _Search(NamedTuple):
    """The search that a query needs: near a unit vector, without the seeds, of which the first are ``positives``.

    ``origins``: summaries of the positives, as the seeds have them; ``passing``: the filter that comes of them.
    """

    vector: Floats
    query: RelatedQuery
    seeds: Sequence[Seed]
    positives: int
    origins: Sequence[NoteSummary]
    passing: Expression | None

    @classmethod
    def of(cls, vector: Floats, query: RelatedQuery, seeds: Sequence[Seed] = (), positives: int = 0) -> Self:
        origins = [seed.summary for seed in seeds[:positives] if seed.summary]
        return cls(vector, query, seeds, positives, origins, _filter(query, origins))


class _Found(NamedTuple):
    """Ranked search hits. ``positives`` are the current summaries of the notes that the search started from.

    ``is_outdated`` if one of these was written or deleted since it was looked up, ``is_stale`` if the vector of one is
    of an older version; ``hydrated`` is false when the store did not answer, and all summaries are None.
    """

    ranked: Ranked
    result: SearchResult
    positives: list[NoteSummary]
    is_outdated: bool
    is_stale: bool
    hydrated: bool


class Neighborhood:
    """Finds the notes related to others or near a draft.

    Args:
        popularity_weight: b of ``score = cosine - debias * b * log(1 + exposure)``.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        cache: NoteCache,
        seeds: Seeds,
        searcher: Searcher,
        *,
        popularity_weight: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._seeds = seeds
        self._searcher = searcher
        self._popularity_weight = popularity_weight
        self._clock = clock

    async def of_notes(self, origins: Origins, query: RelatedQuery, deadline: Deadline) -> RelatedNotes:
        """The notes related to others, never those themselves; while an edit waits, by the version in the index.

        Raises BadRequest when the vectors of the origins cancel out, what `Seeds.of` does, and IndexUnavailable.
        """
        found = await self._from(origins, query, deadline, cached=True)
        if found.is_outdated:
            # The caches were out of date, or a note was written during the search.
            found = await self._from(origins, query, deadline, cached=False)
        if not found.result.shards_ok:
            raise IndexUnavailable("no shard of the index answers")
        return await self._related(found, query, deadline)

    async def of_cached(
        self, note_ids: Sequence[str], query: RelatedQuery, deadline: Deadline
    ) -> dict[str, RelatedNotes]:
        """What `of_notes` says of each of these notes alone, with one request to the store for all of them.

        Those are missing for which it would look again, or raise: a vector is not cached, a cache is out of date, a
        search has to be wider, a shard or the store does not answer.
        """
        seeds = [seed for note_id in note_ids if (seed := self._seeds.cached(note_id))]
        searches = [_Search.of(seed.indexed.vector, query, [seed], 1) for seed in seeds]
        results = await asyncio.gather(*(self._hits(search, query.candidates, deadline) for search in searches))
        ids = list(dict.fromkeys(chain(note_ids, *(result.hits.ids for result in results))))
        summaries = dict(zip(ids, await self._cache.get_or_none(ids) or (), strict=False))
        if not summaries:
            return {}
        answers = {}
        for seed, search, result in zip(seeds, searches, results, strict=True):
            found = self._checked(search, result, list(map(summaries.__getitem__, (seed.note_id, *result.hits.ids))))
            is_whole = result.shards_ok == result.shards_total and not found.is_outdated
            if is_whole and _is_enough(found.ranked.notes, query, result.hits, query.candidates):
                answers[seed.note_id] = await self._related(found, query, deadline)
        return answers

    async def _related(self, found: _Found, query: RelatedQuery, deadline: Deadline) -> RelatedNotes:
        result = found.result
        notes = await self._cut(found.ranked.notes, query, deadline)
        return RelatedNotes(
            found.positives,
            notes,
            _above_last(found.ranked.copies, notes, query),
            result.generation,
            stale=found.is_stale,
            degraded=not found.hydrated or result.shards_ok < result.shards_total,
            shards_ok=result.shards_ok,
            shards_total=result.shards_total,
        )

    async def of_vector(self, vector: Floats, query: RelatedQuery, deadline: Deadline) -> Neighbors:
        """The notes near a draft; none when no shard answers."""
        found = await self._nearest(_Search.of(vector, query), deadline)
        notes = await self._cut(found.ranked.notes, query, deadline)
        return Neighbors(notes, complete=found.hydrated and found.result.shards_ok > 0)

    async def _from(self, origins: Origins, query: RelatedQuery, deadline: Deadline, *, cached: bool) -> _Found:
        note_ids = [*origins.positives, *origins.negatives]
        seeds = await self._seeds.of(note_ids, deadline, cached=cached, places=origins.places)
        positives = seeds[: len(origins.positives)]
        vectors = [seed.indexed.vector for seed in positives]
        if origins.text is not None:
            vectors.append(origins.text)
        negatives = [seed.indexed.vector for seed in seeds[len(positives) :]]
        return await self._nearest(_Search.of(_between(vectors, negatives), query, seeds, len(positives)), deadline)

    async def _nearest(self, search: _Search, deadline: Deadline) -> _Found:
        """As many notes as the query wants, if so many live notes pass, in its order, without the seeds.

        The index may still hold notes whose delete was acknowledged, or know older fields of them. They are dropped
        here, and so are near copies; notes from further away may have better scores. When that leaves too few the
        search is repeated wider, a bounded number of times.
        """
        query, own = search.query, [seed.note_id for seed in search.seeds]
        count = query.candidates
        for _ in range(1 + _WIDENINGS):
            result = await self._hits(search, count, deadline)
            found = self._checked(search, result, await self._cache.get_or_none([*own, *result.hits.ids]))
            if not found.hydrated or _is_enough(found.ranked.notes, query, result.hits, count):
                break
            count = min(count * _WIDER, query.most_candidates)
        return found

    async def _hits(self, search: _Search, count: int, deadline: Deadline) -> SearchResult:
        exclude = (*search.query.exclude, *(seed.note_id for seed in search.seeds))
        return await self._searcher.search(
            search.vector, count, exclude, filter=search.passing, timeout_s=deadline.share_s()
        )

    def _checked(self, search: _Search, result: SearchResult, summaries: Sequence[NoteSummary | None] | None) -> _Found:
        """The hits that may be shown, ranked. ``summaries`` are those of the seeds and of the hits, as of now."""
        (ids, cosines), seeds, passing = result.hits, search.seeds, search.passing
        if summaries is None:
            hits = zip(ids, cosines, strict=True)
            bare = [RelatedNote(id_, cosine, None) for id_, cosine in hits if self._cache.is_certain(id_, passing)]
            return _Found(Ranked(bare, []), result, [], is_outdated=False, is_stale=False, hydrated=False)
        current = summaries[: len(seeds)]
        live = zip(ids, cosines, summaries[len(seeds) :], strict=True)
        notes = [RelatedNote(id_, cosine, summary) for id_, cosine, summary in live if summary and not summary.hidden]
        if passing:
            notes = [note for note in notes if note.summary and passing.matches(note.summary.fields)]
        if is_abstention(search.vector):
            notes = []
        found = ranked(notes, search.query, search.origins, self._popularity_weight, self._clock())
        is_outdated = any(map(_was_written, seeds, current))
        is_stale = any(one and one.version > seed.indexed.version for one, seed in zip(current, seeds, strict=True))
        known = [one for one in current[: search.positives] if one]
        return _Found(found, result, known, is_outdated, is_stale, hydrated=True)

    async def _cut(self, notes: list[RelatedNote], query: RelatedQuery, deadline: Deadline) -> list[RelatedNote]:
        """The part of the list that is wanted, spread apart by the query's diversity."""
        if query.diversity and len(notes) > 1:
            vectors = await self._searcher.vectors([note.note_id for note in notes], timeout_s=deadline.share_s())
            unknown = np.zeros_like(next(iter(vectors.values()), np.zeros(1, np.float32)))
            vectors_ND = np.stack([vectors.get(note.note_id, unknown) for note in notes])
            spread = partial(diverse, [note.score for note in notes], vectors_ND, query.wanted, query.diversity)
            # A thousand of thousands of notes take tenths of a second.
            chosen = spread() if len(notes) <= _SPREAD_AT_ONCE else await asyncio.to_thread(spread)
            notes = [notes[place] for place in chosen]
        return notes[query.offset : query.wanted]


def _between(positives: Sequence[Floats], negatives: Sequence[Floats]) -> Floats:
    """The unit vector, (D,), of what is like the positives and unlike the negatives. Raises BadRequest."""
    if len(positives) == 1 and not negatives:
        return positives[0]
    vector = np.mean(positives, axis=0)
    if negatives:
        vector = vector - _NEGATIVE_SHARE * np.mean(negatives, axis=0)
    norm = float(np.linalg.norm(vector))
    if norm < _SHORTEST:
        raise BadRequest("the positives and negatives cancel out: there is nothing to search for")
    unit: Floats = (vector / norm).astype(np.float32)
    return unit


def _filter(query: RelatedQuery, origins: Sequence[NoteSummary]) -> Expression | None:
    """What a note has to match: the query's filter, and its other rules about fields."""
    parts = [query.filter] if query.filter else []
    if query.categories:
        parts.append(OneOf("category", tuple(map(fold_category, query.categories))))
    if query.exclude_author and (authors := _values(origins, "author")):
        parts.append(Not(OneOf("author", authors)))
    languages = _values(origins, "language") if query.language == "same" else (query.language,)
    if query.language != "any" and languages:
        parts.append(OneOf("language", languages))
    return all_of(parts)


def _values(summaries: Sequence[NoteSummary], name: str) -> tuple[str, ...]:
    return tuple({str(summary.fields[name]): None for summary in summaries if name in summary.fields})


def _is_enough(notes: Sequence[RelatedNote], query: RelatedQuery, hits: Hits, count: int) -> bool:
    """Whether a search for so many brought all that can be wanted, or as many as it may."""
    if len(hits.ids) < count or count == query.most_candidates:
        return True
    best = query.best_score(hits.scores[-1])
    if not query.is_high_enough(best):
        return True
    return len(notes) >= query.wanted and (not query.rescores or notes[query.wanted - 1].score >= best)


def _was_written(seed: Seed, summary: NoteSummary | None) -> bool:
    """Whether a note was written since its seed was looked up, or its vector is of a version after that."""
    known = max(seed.summary.version, seed.indexed.version) if seed.summary else seed.indexed.version
    return summary is None or summary.version != known


def _above_last(copies: Sequence[RelatedNote], notes: Sequence[RelatedNote], query: RelatedQuery) -> int:
    """How many of the near copies left out would have stood above the last note; all of a list that ends early."""
    if not copies or len(notes) < query.k:
        return len(copies)
    return sum(copy.score >= notes[-1].score for copy in copies)
