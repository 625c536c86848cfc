"""The routes of the contract. A route only translates between HTTP and the recommender."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar, cast

import orjson
from fastapi import APIRouter, Path, Request, Response
from starlette.requests import ClientDisconnect

from service.api import audit, openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import parse, parse_bulk, parse_events
from service.api.etags import expected_version, is_fresh, note_tag, write_tag
from service.api.queries import NoParameters, Parameters, PutParameters, RelatedParameters, parse_query
from service.api.records import draft_note, note_record
from service.api.responses import note_out, related_out, status_out, tags_out
from service.contract.events import EventsIn, EventsOut
from service.contract.fields import ID_PATTERN
from service.contract.notes import BulkOut, NoteIn, NoteOut, WrittenOut
from service.contract.related import RelatedOut
from service.contract.status import StatusOut
from service.contract.tags import DraftIn, TagsOut
from service.errors import (
    BadRequest,
    IndexUnavailable,
    Malformed,
    NotAsExpected,
    NoteNotFound,
    NotePending,
    QueueFull,
    StoreUnavailable,
    TooLarge,
    WorkerUnavailable,
)
from service.keys import Key
from service.recommend.recommender import Recommender
from service.settings import HttpSettings
from service.store.interfaces import Answer, Answers

_JSON = "application/json"
_MAX_KEY_CHARS = 255

P = TypeVar("P", bound=Parameters)
Id = Annotated[str, Path(pattern=ID_PATTERN, description="1 to 128 of A-Z a-z 0-9 . _ ~ : -")]

_REPLAYED = "Idempotency-Replayed"
_NEXT = openapi.links("get_note", "related_notes", "delete_note")

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/notes/{note_id}/related",
    response_model=RelatedOut,
    tags=["related"],
    responses={
        200: openapi.answer("Related notes, by descending score.", "related", "explained", "without_the_store"),
        **openapi.errors(NoteNotFound, NotePending, StoreUnavailable, IndexUnavailable, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes(RelatedParameters),
    dependencies=[needs("read", "related")],
)
async def related_notes(note_id: Id, request: Request) -> Response:
    """Notes related to this one, by descending score.

    Never the note itself, a deleted note, or one twice. While a shard is down the others answer; while the store is
    down there are ids and scores alone. Either way `degraded` is true.
    """
    parameters = _parameters(request, RelatedParameters)
    recommender = _recommender(request)
    related = await recommender.related(note_id, parameters.query())
    return Response(related_out(related, recommender.fingerprint, explain=parameters.explain), media_type=_JSON)


@router.post(
    "/notes/tags",
    response_model=TagsOut,
    tags=["tags"],
    responses={
        200: openapi.answer("What suits the draft.", "suggestions"),
        **openapi.errors(WorkerUnavailable, StoreUnavailable, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(DraftIn, "draft", "known_hashtags_only"),
    dependencies=[needs("tags")],
)
async def suggest_tags(request: Request) -> Response:
    """Hashtags, category and, if wanted, related notes for a draft that is not stored.

    The category is one of the model's closed set. Hashtags come most likely first.
    """
    _parameters(request, NoParameters)
    recommender = _recommender(request)
    draft = parse(DraftIn, await _read(request, _http(request).max_body_bytes))
    suggestions = await recommender.tags(
        draft_note(draft), max_hashtags=draft.max_hashtags, vocabulary=draft.vocabulary, related=draft.related
    )
    return _json(tags_out(suggestions, recommender.fingerprint, with_related=draft.related > 0))


@router.put(
    "/notes/{note_id}",
    response_model=WrittenOut,
    tags=["notes"],
    responses={
        200: openapi.answer("The note is searchable.", "searchable", headers=("ETag", _REPLAYED)) | _NEXT,
        202: openapi.answer("The note is stored.", "pending", headers=("ETag", _REPLAYED))
        | _NEXT
        | {"model": WrittenOut},
        **openapi.errors(
            NotAsExpected, StoreUnavailable, QueueFull, *openapi.WITH_KEY, *openapi.WITH_ID, *openapi.WITH_BODY
        ),
    },
    openapi_extra=openapi.body(NoteIn, "note", "short_note")
    | openapi.takes(PutParameters, "If-Match", "If-None-Match", "Idempotency-Key"),
    dependencies=[needs("write")],
)
async def put_note(note_id: Id, request: Request) -> Response:
    """Store a note, replacing the whole of an older one.

    200 once it is searchable, 202 before. The same body again changes nothing and keeps the version.
    """
    wait_s = _parameters(request, PutParameters).wait
    body = await _read(request, _http(request).max_body_bytes)
    record = note_record(parse(NoteIn, body), note_id)
    version = expected_version(request.headers)

    async def put() -> Answer:
        receipt = await _recommender(request).put(record, wait_s, version)
        status = 200 if receipt.status == "searchable" else 202
        return Answer(status, orjson.dumps(asdict(receipt)), write_tag(receipt.version))

    return await _once(request, body, put)


@router.post(
    "/notes",
    status_code=202,
    response_model=BulkOut,
    tags=["notes"],
    responses={
        202: openapi.answer("The good notes are stored, the others named.", "written", headers=(_REPLAYED,)),
        **openapi.errors(StoreUnavailable, QueueFull, *openapi.WITH_KEY, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.bulk_body() | openapi.takes(NoParameters, "Idempotency-Key"),
    dependencies=[needs("write", "bulk")],
)
async def put_notes(request: Request) -> Response:
    """Store up to 1,000 notes from a JSON array or NDJSON; those that are refused stand in the answer."""
    _parameters(request, NoParameters)
    body = await _read(request, _http(request).max_bulk_bytes)
    # Parsing megabytes of JSON takes so long that it would delay every other request.
    records, rejected = await asyncio.to_thread(parse_bulk, body, request.headers.get("content-type", ""))
    audit.name_notes(request, [record.note.id for record in records])

    async def put() -> Answer:
        if records:
            await _recommender(request).put_many(records)
        return Answer(202, orjson.dumps({"accepted": len(records), "rejected": rejected}))

    return await _once(request, body, put)


@router.get(
    "/notes/{note_id}",
    response_model=NoteOut,
    tags=["notes"],
    responses={
        200: openapi.answer("The note.", "stored_note", headers=("ETag",)),
        304: openapi.answer("Nothing has changed.", headers=("ETag",)),
        **openapi.errors(NoteNotFound, StoreUnavailable, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes_etag(),
    dependencies=[needs("read")],
)
async def get_note(note_id: Id, request: Request) -> Response:
    """The note, its version and status, and what the model suggests for it."""
    _parameters(request, NoParameters)
    details = await _recommender(request).details(note_id)
    body = orjson.dumps(note_out(details))
    tag = note_tag(details.record.version, body)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if is_fresh(request.headers, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=_JSON)


@router.delete(
    "/notes/{note_id}",
    status_code=204,
    response_class=Response,
    tags=["notes"],
    responses={
        204: openapi.answer("The note is gone, or was before.", headers=(_REPLAYED,)),
        **openapi.errors(NoteNotFound, NotAsExpected, StoreUnavailable, *openapi.WITH_KEY, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes(NoParameters, "If-Match", "Idempotency-Key"),
    dependencies=[needs("write")],
)
async def delete_note(note_id: Id, request: Request) -> Response:
    """Delete a note. From the answer on, no related answer contains it."""
    _parameters(request, NoParameters)
    version = expected_version(request.headers)

    async def delete() -> Answer:
        await _recommender(request).delete(note_id, version)
        return Answer(204, b"")

    return await _once(request, b"", delete)


@router.post(
    "/events",
    status_code=202,
    response_model=EventsOut,
    tags=["events"],
    responses={
        202: openapi.answer("The good events are kept, the others named.", "delivered", headers=(_REPLAYED,)),
        **openapi.errors(StoreUnavailable, *openapi.WITH_KEY, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(EventsIn, "events") | openapi.takes(NoParameters, "Idempotency-Key"),
    dependencies=[needs("write")],
)
async def record_events(request: Request) -> Response:
    """Keep what readers did, up to 1,000 events; one that was sent before is counted as a duplicate."""
    _parameters(request, NoParameters)
    body = await _read(request, _http(request).max_events_bytes)
    events, rejected = await asyncio.to_thread(parse_events, body)

    async def record() -> Answer:
        accepted = await _recommender(request).record(events)
        duplicates = len(events) - accepted
        return Answer(202, orjson.dumps({"accepted": accepted, "duplicates": duplicates, "rejected": rejected}))

    return await _once(request, body, record)


@router.get(
    "/status",
    response_model=StatusOut,
    tags=["status"],
    responses={
        200: openapi.answer("The state of the service.", "figures"),
        **openapi.errors(StoreUnavailable),
    },
    dependencies=[needs("read")],
)
async def get_status(request: Request) -> Response:
    """Notes by status, the queue, the index, the model, how fresh the index is, and what is wrong with the store."""
    _parameters(request, NoParameters)
    recommender = _recommender(request)
    status = await recommender.status()
    return _json(status_out(status, recommender.fingerprint, request.app.state.warnings()))


# Not dependencies of FastAPI: resolving one takes longer than serializing ten notes.
def _parameters(request: Request, model: type[P]) -> P:
    return parse_query(model, request.scope["query_string"])


def _recommender(request: Request) -> Recommender:
    return cast(Recommender, request.app.state.recommender())


def _http(request: Request) -> HttpSettings:
    return cast(HttpSettings, request.app.state.http)


async def _once(request: Request, body: bytes, run: Callable[[], Awaitable[Answer]]) -> Response:
    """The answer of ``run``, or the first one to this idempotency key of this caller."""
    key = request.headers.get("idempotency-key")
    if key is None:
        answer, replayed = await run(), False
    else:
        if not (key.isascii() and key.isprintable() and 0 < len(key) <= _MAX_KEY_CHARS):
            raise BadRequest("an idempotency key is 1 to 255 visible ASCII characters")
        identity = [
            request.method,
            request.scope["path"],
            request.scope["query_string"],
            request.headers.get("if-match"),
            request.headers.get("if-none-match"),
            body,
        ]
        caller = cast(Key | None, getattr(request.state, "key", None))
        answers = cast(Answers, request.app.state.answers)
        answer, replayed = await answers.once(f"{caller.id if caller else ''} {key}", repr(identity).encode(), run)
    headers = {_REPLAYED: "true"} if replayed else {}
    if answer.etag:
        headers["ETag"] = answer.etag
    return Response(answer.body, answer.status, headers, _JSON if answer.body else None)


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body; refused as soon as it is known to be too large. `service.server.admission` limits the time it takes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > max_bytes:
        raise TooLarge(f"a body here is at most {max_bytes} bytes")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise TooLarge(f"a body here is at most {max_bytes} bytes")
    except ClientDisconnect:
        raise Malformed("the body is incomplete") from None
    return bytes(body)


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type=_JSON)
