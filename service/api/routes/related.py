"""The routes of related notes: of one, of several and a text, and of many requests at once."""

import asyncio
from itertools import chain

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import parse
from service.api.queries import NoParameters
from service.api.records import draft_note
from service.api.responses import error_out, related_out
from service.api.routes.requests import (
    JSON,
    READER,
    UNKNOWN,
    Answering,
    Id,
    answering_of,
    limits_of,
    named_unknown,
    parameters_of,
    read_body,
    reader_of,
)
from service.api.rules import Asked, R, asked, asked_in_query, in_arm
from service.api.validation import explain
from service.contract.related import (
    AnswersOut,
    BatchedIn,
    BatchIn,
    ListOut,
    RelatedIn,
    RelatedOut,
    RelatedRules,
    SeedsIn,
)
from service.errors import (
    BadFilter,
    BadRequest,
    IndexUnavailable,
    Internal,
    NoteLLMError,
    NoteNotFound,
    NotePending,
    StoreUnavailable,
    WorkerUnavailable,
)
from service.recommend.query import RelatedQuery
from service.recommend.recommender import Recommender
from service.recommend.related import Origins, RelatedNotes
from service.store.attribution.answers import Scenario

_ERRORS = (BadFilter, NoteNotFound, NotePending, StoreUnavailable, IndexUnavailable)

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/notes/{note_id}/related",
    response_model=RelatedOut,
    tags=["related"],
    responses={
        200: openapi.answer(
            "Related notes, by descending score.",
            "related",
            "explained",
            "while_an_edit_waits",
            "without_the_store",
            headers=(UNKNOWN,),
        ),
        **openapi.errors(*_ERRORS, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes(RelatedRules, READER),
    dependencies=[needs("read", "related")],
)
async def related_notes(note_id: Id, request: Request) -> Response:
    """Notes related to this one, by descending score.

    Never the note itself, a deleted or a hidden note, or one twice. While a shard is down the others answer; while the
    store is down there are ids and scores alone. Either way `degraded` is true.
    """
    return await _of_note(note_id, asked_in_query(RelatedRules, request.scope["query_string"]), request)


@router.post(
    "/notes/{note_id}/related",
    response_model=RelatedOut,
    tags=["related"],
    responses={
        200: openapi.answer("Related notes, by descending score.", "related", "explained", headers=(UNKNOWN,)),
        **openapi.errors(*_ERRORS, *openapi.WITH_ID, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(RelatedIn, "rules") | openapi.takes(NoParameters, READER),
    dependencies=[needs("read", "related")],
)
async def related_by_rules(note_id: Id, request: Request) -> Response:
    """Notes related to this one, by rules for which a query string has no room: boosts, thousands of excluded notes."""
    parameters_of(request, NoParameters)
    rules = parse(RelatedIn, await read_body(request, limits_of(request).max_related_bytes))
    return await _of_note(note_id, asked(rules), request)


@router.post(
    "/related",
    response_model=ListOut,
    tags=["related"],
    responses={
        200: openapi.answer("Notes by descending score.", "list", headers=(UNKNOWN,)),
        **openapi.errors(*_ERRORS, WorkerUnavailable, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(SeedsIn, "seeds") | openapi.takes(NoParameters, READER),
    dependencies=[needs("read", "related")],
)
async def related_to_several(request: Request) -> Response:
    """Notes near several notes and a text, and far from others; none of these stands in the answer."""
    parameters_of(request, NoParameters)
    rules = parse(SeedsIn, await read_body(request, limits_of(request).max_related_bytes))
    seeds, answering = answered_by(request, asked(rules))
    related = await _of_seeds(seeds.rules, seeds.query, answering.recommender)
    return await list_answer("related", related, seeds, answering)


@router.post(
    "/related/batch",
    response_model=AnswersOut,
    tags=["related"],
    responses={
        200: openapi.answer("An answer for each request, in order.", "answers", headers=(UNKNOWN,)),
        **openapi.errors(*openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(BatchIn, "batch") | openapi.takes(NoParameters, READER),
    dependencies=[needs("read", "related")],
)
async def related_in_batch(request: Request) -> Response:
    """Up to 64 requests for related notes at once; each has a status of its own."""
    parameters_of(request, NoParameters)
    reader_of(request)  # a wrong header is a mistake of the whole request
    batch = parse(BatchIn, await read_body(request, limits_of(request).max_related_bytes))
    # Before any of them runs: the active model may change meanwhile.
    entries = [_entry(one, request) for one in batch.requests]
    answers = await asyncio.gather(*(_answer(entry, request.state.request_id) for entry in entries))
    unknown = sorted({name for _, names in answers for name in names})
    body = orjson.dumps({"answers": [orjson.Fragment(answer) for answer, _ in answers]})
    return Response(body, headers=named_unknown(unknown), media_type=JSON)


def answered_by(request: Request, wanted: Asked[R]) -> tuple[Asked[R], Answering]:
    """What is asked, with the rules of the reader's arm, and who answers. Raises BadRequest."""
    answering = answering_of(request, wanted.rules.for_user)
    assignment = answering.recommender.assignment
    return in_arm(wanted, assignment.arm) if assignment else wanted, answering


async def list_answer(
    scenario: Scenario, related: RelatedNotes, wanted: Asked[R], answering: Answering, note_id: str | None = None
) -> Response:
    """200 with a list, and the attributes in its filters that no note has."""
    body = _list_out(scenario, related, wanted, answering, note_id)
    return Response(
        body, headers=named_unknown(await answering.recommender.unknown_names(wanted.query.names)), media_type=JSON
    )


def _list_out(
    scenario: Scenario, related: RelatedNotes, wanted: Asked[R], answering: Answering, note_id: str | None
) -> bytes:
    ids = [note.note_id for note in related.notes]
    answer_id = answering.log(scenario, wanted.digest, ids, note_id=note_id or "")
    return related_out(related, answering.recommender, answer_id, explain=wanted.rules.explain, note_id=note_id)


async def _of_note(note_id: str, wanted: Asked[RelatedRules], request: Request) -> Response:
    wanted, answering = answered_by(request, wanted)
    related = await answering.recommender.related(note_id, wanted.query)
    return await list_answer("related", related, wanted, answering, note_id)


async def _of_seeds(seeds: SeedsIn, query: RelatedQuery, recommender: Recommender) -> RelatedNotes:
    places = chain(_places("positives", seeds.positives), _places("negatives", seeds.negatives))
    origins = Origins(seeds.positives, seeds.negatives, places=tuple(places))
    return await recommender.related_to(origins, query, draft_note(seeds.text) if seeds.text else None)


def _places(name: str, note_ids: list[str]) -> list[str]:
    return [f"{name}[{place}]" for place in range(len(note_ids))]


Entry = tuple[Asked[BatchedIn | SeedsIn], Answering]


def _entry(one: object, request: Request) -> Entry | NoteLLMError:
    """One request of a batch, or what is wrong with it."""
    try:
        return answered_by(request, asked(_batched(one)))
    except NoteLLMError as error:
        return error


async def _answer(entry: Entry | NoteLLMError, request_id: str) -> tuple[bytes, list[str]]:
    """The answer to one request of a batch, as JSON, and the attributes in it that no note has."""
    if isinstance(entry, NoteLLMError):
        return _refused(entry, request_id)
    wanted, answering = entry
    rules, query, recommender = wanted.rules, wanted.query, answering.recommender
    note_id = rules.note_id if isinstance(rules, BatchedIn) else None
    try:
        related = (
            await _of_seeds(rules, query, recommender)
            if isinstance(rules, SeedsIn)
            else await recommender.related(rules.note_id, query)
        )
    except NoteLLMError as error:
        if error.status >= Internal.status:
            answering.log_failure(error.code)
        return _refused(error, request_id)
    body = _list_out("related", related, wanted, answering, note_id)
    return b'{"status":200,%b' % body[1:], await recommender.unknown_names(query.names)


def _refused(error: NoteLLMError, request_id: str) -> tuple[bytes, list[str]]:
    return orjson.dumps({"status": error.status, "error": error_out(error.code, str(error), request_id)}), []


def _batched(one: object) -> BatchedIn | SeedsIn:
    """Raises BadRequest."""
    model = BatchedIn if isinstance(one, dict) and "note_id" in one else SeedsIn
    try:
        return model.model_validate(one)
    except ValidationError as error:
        raise BadRequest(explain(error)) from None
