"""The routes of the contract. A route translates between HTTP and the recommender; it decides nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar, cast

import orjson
from fastapi import APIRouter, HTTPException, Path, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from service import audit
from service.auth import GuardedRoute, needs
from service.conditions import expected, is_fresh, note_tag, written_tag
from service.errors import BadRequest, TooLarge
from service.idempotency import Answer, Answers
from service.keys import Key
from service.neighborhood import Item, Related
from service.queries import NoQuery, PutQuery, Query, RelatedQuery, parameters, parse_query
from service.ranking import in_common
from service.recommend import Described, Recommender, ServiceStatus, Tagged
from service.schemas import (
    ID_PATTERN,
    MAX_BULK,
    BulkNoteIn,
    BulkOut,
    DraftIn,
    ErrorOut,
    EventIn,
    EventsIn,
    EventsOut,
    NoteIn,
    NoteOut,
    RelatedOut,
    StatusOut,
    TagsOut,
    WrittenOut,
    parse,
    parse_bulk,
    parse_events,
)
from service.settings import HttpSettings

_JSON = "application/json"
_BODY_S = 30.0
_DIGITS = 6
_MAX_KEY_CHARS = 255

Q = TypeVar("Q", bound=Query)


Id = Annotated[str, Path(pattern=ID_PATTERN, description="1 to 128 of A-Z a-z 0-9 . _ ~ : -")]

_IF_MATCH = 'Only if the note is at this version: `"3"`, or the `ETag` of a read; `*` for any that exists.'
_IF_NONE_MATCH = "`*`: only if there is no such note."
_IF_NEWER = "The `ETag` of an earlier answer: 304 when nothing has changed."
_IDEMPOTENCY_KEY = "1 to 255 visible ASCII characters; the same key within a day gets the same answer."


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorOut} for status in statuses}


def _takes(query: type[Query] = NoQuery, **headers: str) -> dict[str, Any]:
    """The parameters of a route, for OpenAPI; header names are written with underscores."""
    described = [
        {
            "name": name.replace("_", "-").title(),
            "in": "header",
            "required": False,
            "description": text,
            "schema": {"type": "string"},
        }
        for name, text in headers.items()
    ]
    return {"parameters": [*parameters(query), *described]}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return _content({"application/json": model.model_json_schema()})


def _content(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def _events_schema() -> dict[str, Any]:
    schema = EventsIn.model_json_schema()
    schema["properties"]["events"]["items"] = EventIn.model_json_schema()
    return schema


def _query(request: Request, model: type[Q]) -> Q:
    return parse_query(model, request.scope["query_string"])


router = APIRouter(responses=_errors(422, 500, 503), route_class=GuardedRoute)


@router.get(
    "/notes/{note_id}/related",
    response_model=RelatedOut,
    responses=_errors(404, 409),
    openapi_extra=_takes(RelatedQuery),
    dependencies=[needs("read")],
)
async def related_notes(note_id: Id, request: Request) -> Response:
    """Notes related to this one, by descending score."""
    query = _query(request, RelatedQuery)
    recommender = _recommender(request)
    related = await recommender.related(note_id, query.wanted())
    return Response(_related_out(related, recommender.fingerprint, explain=query.explain), media_type=_JSON)


@router.post(
    "/notes/tags",
    response_model=TagsOut,
    responses=_errors(408, 413),
    openapi_extra=_body(DraftIn),
    dependencies=[needs("tags")],
)
async def suggest_tags(request: Request) -> Response:
    """Hashtags, category and, if wanted, related notes for a draft that is not stored."""
    _query(request, NoQuery)
    recommender = _recommender(request)
    draft = parse(DraftIn, await _read(request, _http(request).max_body_bytes))
    tagged = await recommender.tags(
        draft.note(), max_hashtags=draft.max_hashtags, vocabulary=draft.vocabulary, related=draft.related
    )
    return _json(_tags_out(tagged, recommender.fingerprint, with_related=draft.related > 0))


@router.put(
    "/notes/{note_id}",
    response_model=WrittenOut,
    responses={202: {"model": WrittenOut}, **_errors(408, 409, 412, 413)},
    openapi_extra=_body(NoteIn)
    | _takes(PutQuery, if_match=_IF_MATCH, if_none_match=_IF_NONE_MATCH, idempotency_key=_IDEMPOTENCY_KEY),
    dependencies=[needs("write")],
)
async def put_note(note_id: Id, request: Request) -> Response:
    """Store a note, replacing the whole of an older one. 200 once it is searchable, 202 before."""
    wait_s = _query(request, PutQuery).wait
    body = await _read(request, _http(request).max_body_bytes)
    record = parse(NoteIn, body).record(note_id)
    version = expected(request.headers)

    async def put() -> Answer:
        written = await _recommender(request).put(record, wait_s, version)
        status = 200 if written.status == "searchable" else 202
        return Answer(status, orjson.dumps(asdict(written)), written_tag(written.version))

    return await _once(request, body, put)


@router.post(
    "/notes",
    status_code=202,
    response_model=BulkOut,
    responses=_errors(408, 409, 413),
    openapi_extra=_content(
        {
            "application/json": {
                "type": "array",
                "maxItems": MAX_BULK,
                "items": BulkNoteIn.model_json_schema(),
            },
            "application/x-ndjson": BulkNoteIn.model_json_schema(),
        }
    )
    | _takes(idempotency_key=_IDEMPOTENCY_KEY),
    dependencies=[needs("write")],
)
async def put_notes(request: Request) -> Response:
    """Store up to 1,000 notes from a JSON array or NDJSON; those that are refused stand in the answer."""
    _query(request, NoQuery)
    body = await _read(request, _http(request).max_bulk_bytes)
    # Megabytes of JSON take long enough to parse to hold up every other request.
    records, rejected = await asyncio.to_thread(parse_bulk, body)
    audit.concerns(request, [record.note.id for record in records])

    async def put() -> Answer:
        if records:
            await _recommender(request).put_many(records)
        return Answer(202, orjson.dumps({"accepted": len(records), "rejected": rejected}))

    return await _once(request, body, put)


@router.get(
    "/notes/{note_id}",
    response_model=NoteOut,
    responses={304: {"description": "Nothing has changed."}, **_errors(404)},
    openapi_extra=_takes(if_none_match=_IF_NEWER),
    dependencies=[needs("read")],
)
async def get_note(note_id: Id, request: Request) -> Response:
    """The note, its version and status, and what the model suggests for it."""
    _query(request, NoQuery)
    described = await _recommender(request).describe(note_id)
    body = orjson.dumps(_note_out(described))
    tag = note_tag(described.record.version, body)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if is_fresh(request.headers, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=_JSON)


@router.delete(
    "/notes/{note_id}",
    status_code=204,
    response_class=Response,
    responses=_errors(404, 409, 412),
    openapi_extra=_takes(if_match=_IF_MATCH, idempotency_key=_IDEMPOTENCY_KEY),
    dependencies=[needs("write")],
)
async def delete_note(note_id: Id, request: Request) -> Response:
    """Delete a note. From the answer on, no related answer contains it."""
    _query(request, NoQuery)
    version = expected(request.headers)

    async def delete() -> Answer:
        await _recommender(request).delete(note_id, version)
        return Answer(204, b"")

    return await _once(request, b"", delete)


@router.post(
    "/events",
    status_code=202,
    response_model=EventsOut,
    responses=_errors(408, 409, 413),
    openapi_extra=_content({"application/json": _events_schema()}) | _takes(idempotency_key=_IDEMPOTENCY_KEY),
    dependencies=[needs("write")],
)
async def record_events(request: Request) -> Response:
    """Keep what readers did, up to 1,000 events; one that was sent before is counted as a duplicate."""
    _query(request, NoQuery)
    body = await _read(request, _http(request).max_events_bytes)
    events, rejected = await asyncio.to_thread(parse_events, body)

    async def record() -> Answer:
        accepted = await _recommender(request).record(events)
        duplicates = len(events) - accepted
        return Answer(202, orjson.dumps({"accepted": accepted, "duplicates": duplicates, "rejected": rejected}))

    return await _once(request, body, record)


@router.get("/status", response_model=StatusOut, dependencies=[needs("read")])
async def get_status(request: Request) -> Response:
    """Notes by status, the queue, the index, the model, and how fresh the index is."""
    _query(request, NoQuery)
    recommender = _recommender(request)
    return _json(_status_out(await recommender.status(), recommender.fingerprint))


# Not dependencies of FastAPI: resolving one takes longer than serialising ten notes.
def _recommender(request: Request) -> Recommender:
    return cast(Recommender, request.app.state.recommender())


def _http(request: Request) -> HttpSettings:
    return cast(HttpSettings, request.app.state.http)


async def _once(request: Request, body: bytes, run: Callable[[], Awaitable[Answer]]) -> Response:
    """The answer of ``run``, or the one that was given to this idempotency key before."""
    key = request.headers.get("idempotency-key")
    if key is None:
        answer, again = await run(), False
    else:
        if not (key.isascii() and key.isprintable() and 0 < len(key) <= _MAX_KEY_CHARS):
            raise BadRequest("an idempotency key is 1 to 255 visible ASCII characters")
        asked = [
            request.method,
            request.scope["path"],
            request.scope["query_string"],
            request.headers.get("if-match"),
            request.headers.get("if-none-match"),
            body,
        ]
        caller = cast(Key | None, getattr(request.state, "key", None))
        answers = cast(Answers, request.app.state.answers)
        answer, again = await answers.once(f"{caller.id if caller else ''} {key}", repr(asked).encode(), run)
    headers = {"Idempotency-Replayed": "true"} if again else {}
    if answer.etag:
        headers["ETag"] = answer.etag
    return Response(answer.body, answer.status, headers, _JSON if answer.body else None)


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body; refused as soon as it is known to be too large, and when it takes too long to come."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > max_bytes:
        raise TooLarge(f"a body here is at most {max_bytes} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise TooLarge(f"a body here is at most {max_bytes} bytes")
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body is incomplete") from None
    return bytes(body)


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type=_JSON)


def _item_out(item: Item, explanation: bytes = b"") -> bytes:
    """An item as JSON. Its card's part was written before; ids are of characters that JSON leaves alone."""
    card = item.card
    start = card.json if card else b'{"note_id":"%b","score":' % item.note_id.encode()
    return b"%b%b%b}" % (start, orjson.dumps(round(item.score, _DIGITS)), explanation)


def _explanation(item: Item, related: Related) -> bytes:
    shared = in_common(related.card.hashtags, item.card.hashtags) if related.card and item.card else []
    terms = {
        "cosine": round(item.cosine, _DIGITS),
        "popularity": round(item.popularity, _DIGITS),
        "hashtags_in_common": shared,
    }
    return b',"explain":' + orjson.dumps(terms)


def _related_out(related: Related, fingerprint: str, *, explain: bool) -> bytes:
    items = [_item_out(item, _explanation(item, related) if explain else b"") for item in related.items]
    about = {
        "note_id": related.note_id,
        "items": orjson.Fragment(b"[%b]" % b",".join(items)),
        "model": fingerprint,
        "generation": related.generation,
        "degraded": related.degraded,
        "shards": {"ok": related.shards_ok, "total": related.shards_total},
    }
    return orjson.dumps(about)


def _category_out(category: tuple[str, float] | None) -> dict[str, Any] | None:
    return category and {"name": category[0], "score": round(category[1], _DIGITS)}


def _tags_out(tagged: Tagged, fingerprint: str, *, with_related: bool) -> dict[str, Any]:
    out: dict[str, Any] = {
        "hashtags": [
            {"tag": tag.tag, "score": round(tag.score, _DIGITS), "source": tag.source} for tag in tagged.hashtags
        ],
        "category": _category_out(tagged.category),
        "model": fingerprint,
    }
    if with_related:
        out["related"] = [orjson.Fragment(_item_out(item)) for item in tagged.related]
    return out


def _note_out(described: Described) -> dict[str, Any]:
    record, suggestion = described.record, described.suggestion
    note = record.note
    read = suggestion if suggestion and not suggestion.failure else None
    return {
        "note_id": note.id,
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "category": note.category,
        "author": record.author,
        "exposure": note.exposure,
        "created_at": record.created_at,
        "version": record.version,
        "status": described.status,
        "reason": suggestion.failure if suggestion and described.status == "failed" else None,
        "suggested_hashtags": read and [{"tag": tag, "score": round(score, _DIGITS)} for tag, score in read.hashtags],
        "suggested_category": read and _category_out(read.category),
    }


def _status_out(status: ServiceStatus, fingerprint: str) -> dict[str, Any]:
    counts, shards = status.counts, status.shards
    return {
        "notes": {
            "live": counts.live,
            "searchable": status.searchable,
            "pending": status.pending,
            "failed": counts.failed,
        },
        "queue": {"depth": counts.queue_depth, "oldest_s": round(counts.oldest_job_s, 3)},
        "index": {
            "generation": max((shard.generation for shard in shards), default=None),
            "shards_ok": len(shards),
            "shards_total": status.shards_total,
            "shards": shards,
        },
        "model": fingerprint,
        "freshness_s": {"p50": status.freshness(0.5), "p99": status.freshness(0.99)},
    }
