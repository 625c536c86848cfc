"""The rules of a list, as a request has them, made a query of the recommender's."""

from collections.abc import Sequence

from indexer.filters.expression import Expression
from indexer.filters.parser import parse
from indexer.filters.tokens import BadFilter as NotAFilter
from model.text.hashtags import fold
from service.contract.related import BodyRules, BoostIn, RelatedRules, Rules
from service.errors import BadFilter
from service.recommend.query import Boost, RelatedQuery
from service.store.records import fold_category

# As `service.store.records.fields_of` folds the fields.
_FOLDS = {"category": fold_category, "hashtags": fold}


def related_query(rules: Rules) -> RelatedQuery:
    """The recommender's part of the rules. Raises BadFilter."""
    return RelatedQuery(
        k=rules.k,
        offset=rules.offset,
        filter=parse_filter(rules.filter) if rules.filter is not None else None,
        categories=tuple(dict.fromkeys(rules.category)),
        exclude=tuple(dict.fromkeys(rules.exclude)),
        exclude_author=isinstance(rules, RelatedRules) and rules.exclude_author,
        for_user=rules.for_user,
        language=rules.language,
        min_score=rules.min_score,
        collapse=rules.duplicates == "collapse",
        half_life_days=rules.half_life_days,
        boosts=_boosts(rules.boosts) if isinstance(rules, BodyRules) else (),
        group_by=rules.group_by,
        per_group=rules.per_group or 1,
        diversity=rules.diversity,
        debias=rules.debias,
    )


def _boosts(boosts: Sequence[BoostIn]) -> tuple[Boost, ...]:
    places = (f"boosts.{place}.filter" for place in range(len(boosts)))
    return tuple(
        Boost(parse_filter(boost.filter, place), boost.factor) for place, boost in zip(places, boosts, strict=True)
    )


def parse_filter(text: str, place: str = "filter") -> Expression:
    """A filter, its strings folded like the fields of notes. Raises BadFilter, which names the place."""
    try:
        return parse(text, _FOLDS)
    except NotAFilter as error:
        raise BadFilter(f"{place}: {error}") from None
