"""The rules of a list, as a request has them, made a query of the recommender's."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar, cast

from pydantic import BaseModel

from indexer.filters.expression import Expression, Fold
from indexer.filters.parser import parse
from indexer.filters.tokens import BadFilter as NotAFilter
from model.text.hashtags import fold
from service.api.queries import CACHED, parse_query
from service.contract.related import BodyRules, BoostIn, RelatedRules, Rules
from service.errors import BadFilter
from service.recommend.query import Boost, RelatedQuery
from service.store.experiments.records import Arm
from service.store.records import fold_category

# As `service.store.records.fields_of` folds the fields.
_FOLDS: Fold = {"category": fold_category, "hashtags": fold}
# Fields that say for whom and how, and not which notes.
_NOT_RULES = {"for_user", "explain"}

R = TypeVar("R", bound=Rules)


class Asked(NamedTuple, Generic[R]):
    """The rules of a request, the query that they make, and their digest."""

    rules: R
    query: RelatedQuery
    digest: str


def asked(rules: R) -> Asked[R]:
    """What a request with these rules asks for. Raises BadFilter."""
    return Asked(rules, related_query(rules), digest_of_rules(rules))


def asked_in_query(model: type[R], query_string: bytes) -> Asked[R]:
    """The same of a query string, made once for each distinct one. Raises BadRequest, BadFilter."""
    return cast(Asked[R], _asked_in_query(model, query_string))


@lru_cache(CACHED)
def _asked_in_query(model: type[Rules], query_string: bytes) -> Asked[Rules]:
    return asked(parse_query(model, query_string))


def in_arm(wanted: Asked[R], arm: Arm) -> Asked[R]:
    """The same, with the rules of an arm where the request gives none of its own."""
    own = {name: value for name, value in arm.parameters.items() if name not in wanted.rules.model_fields_set}
    return asked(wanted.rules.model_copy(update=own)) if own else wanted


def digest_of_rules(rules: BaseModel) -> str:
    """The same for the same request, whoever asks: 16 hexadecimal digits."""
    text = rules.model_dump_json(exclude_defaults=True, exclude=_NOT_RULES)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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
