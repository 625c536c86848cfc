"""The routes of the community's hashtags: lists of them, and rules for suggesting them."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request, Response

from model.text.hashtags import clean_tag, fold
from service.api import audit, openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import parse
from service.api.queries import HashtagParameters, NoParameters, TrendParameters
from service.api.routes.requests import (
    REPLAYED,
    json_answer,
    limits_of,
    once,
    parameters_of,
    read_body,
    recommender_of,
)
from service.contract.hashtags import HashtagsOut, RuleIn, RuleOut, RulesOut, TrendsOut
from service.errors import AliasLoop, BadRequest, StoreUnavailable
from service.store.interfaces import Answer, HashtagRule

_DIGITS = 6
_NO_HASHTAG = "must be a hashtag: 1 to 40 letters, digits and underscores"

Tag = Annotated[
    str, Path(min_length=1, description="A hashtag in any spelling.", json_schema_extra={"format": "hashtag"})
]

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/hashtags",
    response_model=HashtagsOut,
    tags=["hashtags"],
    responses={
        200: openapi.answer("Hashtags in use, most used first.", "vocabulary"),
        **openapi.errors(StoreUnavailable),
    },
    openapi_extra=openapi.takes(HashtagParameters),
    dependencies=[needs("read")],
)
async def list_hashtags(request: Request) -> Response:
    """The hashtags of live notes, most used first, then by name, with their spellings."""
    asked = parameters_of(request, HashtagParameters)
    page = await recommender_of(request).vocabulary.page(asked.prefix, asked.after, asked.limit)
    items = [
        {
            "tag": item.tag,
            "notes": item.notes,
            "spellings": [{"spelling": spelling, "notes": notes} for spelling, notes in item.spellings],
        }
        for item in page.items
    ]
    return json_answer({"items": items, "next": page.next})


@router.get(
    "/hashtags/trending",
    response_model=TrendsOut,
    tags=["hashtags"],
    responses={
        200: openapi.answer("Trending hashtags, by descending lift.", "trending"),
        **openapi.errors(StoreUnavailable),
    },
    openapi_extra=openapi.takes(TrendParameters),
    dependencies=[needs("read")],
)
async def trending_hashtags(request: Request) -> Response:
    """Hashtags that the newest notes carry more often than those before.

    `lift` is (n + 5) / (e + 5): n of the newest notes carry the hashtag, and e would, were it as frequent as in the
    notes before. A hashtag of a single note is no trend.
    """
    asked = parameters_of(request, TrendParameters)
    trends = await recommender_of(request).vocabulary.trending(asked.days, asked.limit)
    items = [{"tag": trend.tag, "notes": trend.notes, "lift": round(trend.lift, _DIGITS)} for trend in trends]
    return json_answer({"items": items})


@router.get(
    "/hashtags/rules",
    response_model=RulesOut,
    tags=["hashtags"],
    responses={200: openapi.answer("All rules, by hashtag.", "hashtag_rules"), **openapi.errors(StoreUnavailable)},
    dependencies=[needs("read")],
)
async def list_rules(request: Request) -> Response:
    """The aliases and the blocked hashtags."""
    parameters_of(request, NoParameters)
    return json_answer({"items": [_rule_out(rule) for rule in await recommender_of(request).vocabulary.listed()]})


@router.put(
    "/hashtags/{tag}",
    response_model=RuleOut,
    tags=["hashtags"],
    responses={
        200: openapi.answer("The rule holds.", "rule", headers=(REPLAYED,)),
        **openapi.errors(AliasLoop, StoreUnavailable, *openapi.WITH_KEY, *openapi.WITH_ID, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(RuleIn, "alias", "block") | openapi.takes(NoParameters, "Idempotency-Key"),
    dependencies=[needs("admin")],
)
async def put_rule(tag: Tag, request: Request) -> Response:
    """Suggest another hashtag in the place of this one, or never suggest it.

    It replaces the rule that the hashtag had. An alias of a blocked hashtag is not suggested either.
    """
    parameters_of(request, NoParameters)
    body = await read_body(request, limits_of(request).max_body_bytes)
    rule = _rule(tag, parse(RuleIn, body))
    audit.name(request, hashtags=[rule.tag])

    async def put() -> Answer:
        await recommender_of(request).vocabulary.put_rule(rule)
        return Answer(200, orjson.dumps(_rule_out(rule)))

    return await once(request, body, put)


@router.delete(
    "/hashtags/{tag}",
    status_code=204,
    response_class=Response,
    tags=["hashtags"],
    responses={
        204: openapi.answer("The hashtag has no rule.", headers=(REPLAYED,)),
        **openapi.errors(StoreUnavailable, *openapi.WITH_KEY, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes(NoParameters, "Idempotency-Key"),
    dependencies=[needs("admin")],
)
async def delete_rule(tag: Tag, request: Request) -> Response:
    """Remove the rule of a hashtag, if it has one."""
    parameters_of(request, NoParameters)
    key = fold(tag)
    audit.name(request, hashtags=[key] if clean_tag(tag) else [])

    async def remove() -> Answer:
        await recommender_of(request).vocabulary.remove_rule(key)
        return Answer(204, b"")

    return await once(request, b"", remove)


def _rule(tag: str, asked: RuleIn) -> HashtagRule:
    if clean_tag(tag) is None:
        raise BadRequest(f"path.tag: {_NO_HASHTAG}")
    if "blocked" in asked.model_fields_set:
        return HashtagRule(fold(tag))
    alias_of = clean_tag(asked.alias_of)
    if alias_of is None:
        raise BadRequest(f"alias_of: {_NO_HASHTAG}")
    return HashtagRule(fold(tag), alias_of)


def _rule_out(rule: HashtagRule) -> dict[str, Any]:
    return {"tag": rule.tag, **({"blocked": True} if rule.alias_of is None else {"alias_of": rule.alias_of})}
