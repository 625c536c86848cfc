"""Which notes a list may hold, and in which order: the rules of a request, parsed."""

from dataclasses import dataclass

from indexer.filters.expression import Expression
from service.recommend.note_cache import NoteSummary

# Of a score in an answer.
SCORE_DIGITS = 6

_SLACK = 5
# Re-ranking starts from a longer list: a note from further away may take the place of a nearer one.
_RERANKED_PER_NOTE, _RERANKED_AT_LEAST = 4, 100
# A comparison takes a third of a microsecond, so that a list takes 50 ms at most.
_MOST_CANDIDATES, _MOST_COMPARISONS = 8192, 150_000


@dataclass(frozen=True, slots=True)
class Boost:
    """Notes that match have their score multiplied by ``factor``, 0.1..10; a negative one is divided."""

    filter: Expression
    factor: float


@dataclass(frozen=True, slots=True)
class RelatedQuery:
    """Which related notes to find. No category means any; ``diversity`` and ``debias`` are in 0..1.

    A note passes what `Neighborhood` hands to the index: ``filter``, ``categories``, ``exclude``, ``exclude_author``,
    ``language`` ("any", "same" or a tag) and what ``for_user`` has seen. The others are of `service.recommend.ranking`.
    """

    k: int = 10
    categories: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_author: bool = False
    diversity: float = 0.0
    debias: float = 0.0
    filter: Expression | None = None
    language: str = "any"
    for_user: str | None = None
    min_score: float | None = None
    half_life_days: float | None = None
    boosts: tuple[Boost, ...] = ()
    collapse: bool = True
    group_by: str | None = None
    per_group: int = 1
    offset: int = 0

    @property
    def wanted(self) -> int:
        """How long the list has to be."""
        return self.offset + self.k

    @property
    def names(self) -> frozenset[str]:
        """The names of fields in its filters."""
        return frozenset().union(*(expression.names() for expression in self._filters))

    @property
    def rescores(self) -> bool:
        """Whether a note may have a better score than a nearer one, popularity aside."""
        return bool(self.half_life_days or self.boosts)

    def is_high_enough(self, score: float) -> bool:
        """Whether a score, as an answer shows it, is at least ``min_score``: a client may take one for the bound."""
        return self.min_score is None or round(score, SCORE_DIGITS) >= self.min_score

    @property
    def candidates(self) -> int:
        """How many notes to search for at first."""
        if self.rescores or self.diversity or self.debias or self.group_by:
            return max(_RERANKED_PER_NOTE * self.wanted, _RERANKED_AT_LEAST)
        return self.wanted + _SLACK

    @property
    def most_candidates(self) -> int:
        """How many notes to look at at most: each is held against every filter, in the event loop."""
        conditions = sum(expression.conditions for expression in self._filters)
        return max(self.candidates, min(_MOST_CANDIDATES, _MOST_COMPARISONS // (1 + conditions)))

    @property
    def _filters(self) -> list[Expression]:
        filters = [self.filter, *(boost.filter for boost in self.boosts)]
        return [expression for expression in filters if expression]

    def best_score(self, cosine: float) -> float:
        """The best score that a note with at most this cosine can have."""
        if cosine < 0:
            return 0.0 if self.rescores else cosine
        for boost in self.boosts:
            cosine *= max(1.0, boost.factor)
        return cosine

    def boost(self, summary: NoteSummary) -> float:
        """The product of the boosts that match a note."""
        product = 1.0
        for boost in self.boosts:
            if boost.filter.matches(summary.fields):
                product *= boost.factor
        return product
