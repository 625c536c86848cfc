"""The routes of search in words."""

from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import parse
from service.api.queries import NoParameters
from service.api.records import text_note
from service.api.routes.related import answered_by, list_answer
from service.api.routes.requests import READER, UNKNOWN, limits_of, parameters_of, read_body
from service.api.rules import Asked, asked, asked_in_query
from service.contract.related import ListOut, SearchIn, SearchRules
from service.errors import BadFilter, IndexUnavailable, StoreUnavailable, WorkerUnavailable
from service.recommend.related import Origins

_ERRORS = (BadFilter, WorkerUnavailable, StoreUnavailable, IndexUnavailable)

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/search",
    response_model=ListOut,
    tags=["related"],
    responses={
        200: openapi.answer("Notes by descending score.", "list", headers=(UNKNOWN,)),
        **openapi.errors(*_ERRORS),
    },
    openapi_extra=openapi.takes(SearchRules, READER),
    dependencies=[needs("read", "tags")],
)
async def search_notes(request: Request) -> Response:
    """Live notes by the meaning of some words, from the same model and index as related notes."""
    return await _search(asked_in_query(SearchRules, request.scope["query_string"]), request)


@router.post(
    "/search",
    response_model=ListOut,
    tags=["related"],
    responses={
        200: openapi.answer("Notes by descending score.", "list", headers=(UNKNOWN,)),
        **openapi.errors(*_ERRORS, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(SearchIn, "search") | openapi.takes(NoParameters, READER),
    dependencies=[needs("read", "tags")],
)
async def search_by_rules(request: Request) -> Response:
    """The same, by rules for which a query string has no room."""
    parameters_of(request, NoParameters)
    rules = parse(SearchIn, await read_body(request, limits_of(request).max_related_bytes))
    return await _search(asked(rules), request)


async def _search(search: Asked[SearchRules], request: Request) -> Response:
    search, answering = answered_by(request, search)
    related = await answering.recommender.related_to(Origins(), search.query, text_note(search.rules.q))
    return await list_answer("search", related, search, answering)
