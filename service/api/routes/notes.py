"""The routes of notes: store, read and delete them."""

import asyncio
from collections.abc import Container, Sequence
from dataclasses import asdict
from itertools import count

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.api import audit, openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import Rejected, parse, parse_bulk
from service.api.etags import expected_version, is_fresh, note_tag, write_tag
from service.api.queries import ListParameters, NoParameters, PutParameters
from service.api.records import note_record, patched
from service.api.responses import note_out, notes_out
from service.api.routes.requests import (
    ANSWER,
    JSON,
    READER,
    REPLAYED,
    UNKNOWN,
    Id,
    answer_named,
    check_media_type,
    json_answer,
    limits_of,
    log_written,
    named_unknown,
    once,
    parameters_of,
    read_body,
    recommender_of,
)
from service.api.rules import parse_filter
from service.api.validation import explain
from service.contract.notes import BulkOut, NoteIn, NoteOut, NotePatch, NotesOut, WrittenOut
from service.errors import BadFilter, BadRequest, NotAsExpected, NoteNotFound, QueueFull, StoreUnavailable
from service.recommend.notes import WriteReceipt
from service.store.interfaces import Answer, Refusal
from service.store.records import StoredNote

PATCHES = ("application/merge-patch+json", "application/json")
_NEXT = openapi.links("get_note", "related_notes", "delete_note")

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.put(
    "/notes/{note_id}",
    response_model=WrittenOut,
    tags=["notes"],
    responses={
        200: openapi.answer("The note is searchable.", "searchable", headers=("ETag", REPLAYED)) | _NEXT,
        202: openapi.answer("The note is stored.", "pending", headers=("ETag", REPLAYED))
        | _NEXT
        | {"model": WrittenOut},
        **openapi.errors(
            NotAsExpected, StoreUnavailable, QueueFull, *openapi.WITH_KEY, *openapi.WITH_ID, *openapi.WITH_BODY
        ),
    },
    openapi_extra=openapi.body(NoteIn, "note", "short_note")
    | openapi.takes(PutParameters, "If-Match", "If-None-Match", "Idempotency-Key", ANSWER, READER),
    dependencies=[needs("write")],
)
async def put_note(note_id: Id, request: Request) -> Response:
    """Store a note, replacing the whole of an older one.

    200 once it is searchable, 202 before. The same body again changes nothing: version and status stay as they are.
    """
    wait_s = parameters_of(request, PutParameters).wait
    body = await read_body(request, limits_of(request).max_body_bytes)
    record = note_record(parse(NoteIn, body), note_id)
    version, answer_id = expected_version(request.headers), answer_named(request)

    async def put() -> Answer:
        receipt = await recommender_of(request).notes.put(record, wait_s, version)
        log_written(request, answer_id, note_id, record.note.hashtags)
        return _written(receipt)

    return await once(request, body, put)


@router.patch(
    "/notes/{note_id}",
    response_model=WrittenOut,
    tags=["notes"],
    responses={
        200: openapi.answer("The note is searchable.", "searchable", headers=("ETag", REPLAYED)) | _NEXT,
        202: openapi.answer("The note is stored.", "pending", headers=("ETag", REPLAYED))
        | _NEXT
        | {"model": WrittenOut},
        **openapi.errors(
            NoteNotFound,
            NotAsExpected,
            StoreUnavailable,
            QueueFull,
            *openapi.WITH_KEY,
            *openapi.WITH_ID,
            *openapi.WITH_BODY,
        ),
    },
    openapi_extra=openapi.body(NotePatch, "patch", media_types=PATCHES)
    | openapi.takes(PutParameters, "If-Match", "Idempotency-Key", ANSWER, READER),
    dependencies=[needs("write")],
)
async def patch_note(note_id: Id, request: Request) -> Response:
    """Change parts of a note (JSON Merge Patch, RFC 7396): null gives the default, what is not named stays.

    A patch that leaves title, content and hashtags as they are needs no pass of the model.
    """
    wait_s = parameters_of(request, PutParameters).wait
    check_media_type(request, PATCHES)
    body = await read_body(request, limits_of(request).max_body_bytes)
    patch = parse(NotePatch, body)
    version, answer_id = expected_version(request.headers), answer_named(request)

    hashtags: Sequence[str] = ()

    def change(stored: StoredNote) -> StoredNote:
        nonlocal hashtags
        try:
            record = patched(stored, patch)
        except ValidationError as error:
            raise BadRequest(explain(error)) from None
        hashtags = record.note.hashtags
        return record

    async def run() -> Answer:
        receipt = await recommender_of(request).notes.patch(note_id, change, wait_s, version)
        log_written(request, answer_id, note_id, hashtags)
        return _written(receipt)

    return await once(request, body, run)


@router.post(
    "/notes",
    status_code=202,
    response_model=BulkOut,
    tags=["notes"],
    responses={
        202: openapi.answer("The good notes are stored, the others named.", "written", headers=(REPLAYED,)),
        **openapi.errors(StoreUnavailable, QueueFull, *openapi.WITH_KEY, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.bulk_body() | openapi.takes(NoParameters, "Idempotency-Key"),
    dependencies=[needs("write", "bulk")],
)
async def put_notes(request: Request) -> Response:
    """Store up to 1,000 notes from a JSON array or NDJSON; those that are refused stand in the answer."""
    parameters_of(request, NoParameters)
    body = await read_body(request, limits_of(request).max_bulk_bytes)
    # Parsing megabytes of JSON takes so long that it would delay every other request.
    records, rejected = await asyncio.to_thread(parse_bulk, body, request.headers.get("content-type", ""))
    audit.name_notes(request, [record.note.id for record in records])

    async def put() -> Answer:
        versions = await recommender_of(request).notes.put_many(records) if records else []
        refusals = _refusals(versions, {one.position for one in rejected})
        refused = sorted([*rejected, *refusals], key=lambda one: one.position)
        return Answer(202, orjson.dumps({"accepted": len(records) - len(refusals), "rejected": refused}))

    return await once(request, body, put)


def _written(receipt: WriteReceipt) -> Answer:
    status = 200 if receipt.status == "searchable" else 202
    return Answer(status, orjson.dumps(asdict(receipt)), write_tag(receipt.version))


def _refusals(versions: Sequence[int | Refusal], rejected: Container[int]) -> list[Rejected]:
    """What the store refused, by the places that are left to the notes in the body."""
    places = (place for place in count() if place not in rejected)
    return [
        Rejected(place, BadRequest.code, str(version))
        for place, version in zip(places, versions, strict=False)
        if isinstance(version, Refusal)
    ]


@router.get(
    "/notes",
    response_model=NotesOut,
    tags=["notes"],
    responses={
        200: openapi.answer("Notes, in byte order of their ids.", "listed", headers=(UNKNOWN,)),
        **openapi.errors(BadFilter, StoreUnavailable),
    },
    openapi_extra=openapi.takes(ListParameters),
    dependencies=[needs("read")],
)
async def list_notes(request: Request) -> Response:
    """Live notes in byte order of their ids: hidden, pending and failed ones, too.

    A note that lives all the while is met once, whatever is written to others. A page may hold fewer notes than its
    limit, or none, and still have a next one: a filter looks at a bounded number of notes a request.
    """
    asked = parameters_of(request, ListParameters)
    expression = None if asked.filter is None else parse_filter(asked.filter)
    recommender = recommender_of(request)
    listed = await recommender.notes.page(asked.after or "", asked.limit, expression)
    unknown = await recommender.unknown_names(expression.names()) if expression else []
    return json_answer(notes_out(listed), named_unknown(unknown))


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
    parameters_of(request, NoParameters)
    details = await recommender_of(request).notes.details(note_id)
    body = orjson.dumps(note_out(details))
    tag = note_tag(details.record.version, body)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if is_fresh(request.headers, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=JSON)


@router.delete(
    "/notes/{note_id}",
    status_code=204,
    response_class=Response,
    tags=["notes"],
    responses={
        204: openapi.answer("The note is gone, or was before.", headers=(REPLAYED,)),
        **openapi.errors(NoteNotFound, NotAsExpected, StoreUnavailable, *openapi.WITH_KEY, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes(NoParameters, "If-Match", "Idempotency-Key"),
    dependencies=[needs("write")],
)
async def delete_note(note_id: Id, request: Request) -> Response:
    """Delete a note. From the answer on, no related answer contains it."""
    parameters_of(request, NoParameters)
    version = expected_version(request.headers)

    async def delete() -> Answer:
        await recommender_of(request).notes.delete(note_id, version)
        return Answer(204, b"")

    return await once(request, b"", delete)
