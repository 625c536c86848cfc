"""The routes of the contract. A route translates between HTTP and the recommender; it decides nothing."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from service import audit
from service.auth import GuardedRoute, needs
from service.errors import BadRequest, TooLarge
from service.recommend import Described, Item, Recommender, Related, ServiceStatus, Tagged
from service.schemas import (
    ID_PATTERN,
    MAX_BULK,
    BulkNoteIn,
    BulkOut,
    DraftIn,
    ErrorOut,
    NoteIn,
    NoteOut,
    RelatedOut,
    StatusOut,
    TagsOut,
    WrittenOut,
    parse,
    parse_bulk,
)
from service.settings import HttpSettings

_BODY_S = 30.0
_DIGITS = 6


# The dependencies are coroutines because FastAPI sends plain functions through a thread pool.
async def _recommender(request: Request) -> Recommender:
    return cast(Recommender, request.app.state.recommender)


async def _http(request: Request) -> HttpSettings:
    return cast(HttpSettings, request.app.state.http)


async def _refuse_unknown_parameters(request: Request) -> None:
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = {parameter.alias for parameter in route.dependant.query_params}
    if not known.issuperset(request.query_params):
        raise BadRequest("unknown query parameter")


Recommend = Annotated[Recommender, Depends(_recommender)]
Http = Annotated[HttpSettings, Depends(_http)]
Id = Annotated[str, Path(pattern=ID_PATTERN, description="1 to 128 of A-Z a-z 0-9 . _ ~ : -")]
Limit = Annotated[int, Query(ge=1, le=100, description="How many notes at most.")]
Wait = Annotated[
    float,
    Query(ge=0, le=10, allow_inf_nan=False, description="Seconds to wait for the note to be searchable."),
]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorOut} for status in statuses}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return _content({"application/json": model.model_json_schema()})


def _content(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


router = APIRouter(
    dependencies=[Depends(_refuse_unknown_parameters)], responses=_errors(422, 500, 503), route_class=GuardedRoute
)


@router.get(
    "/notes/{note_id}/related",
    response_model=RelatedOut,
    responses=_errors(404, 409),
    dependencies=[needs("read", "related")],
)
async def related_notes(note_id: Id, recommender: Recommend, k: Limit = 10) -> Response:
    """Notes related to this one, closest first."""
    related = await recommender.related(note_id, k)
    return _json(_related_out(related, recommender.fingerprint))


@router.post(
    "/notes/tags",
    response_model=TagsOut,
    responses=_errors(408, 413),
    openapi_extra=_body(DraftIn),
    dependencies=[needs("tags")],
)
async def suggest_tags(request: Request, recommender: Recommend, http: Http) -> Response:
    """Hashtags, category and, if wanted, related notes for a draft that is not stored."""
    draft = parse(DraftIn, await _read(request, http.max_body_bytes))
    tagged = await recommender.tags(
        draft.note(), max_hashtags=draft.max_hashtags, vocabulary=draft.vocabulary, related=draft.related
    )
    return _json(_tags_out(tagged, recommender.fingerprint, with_related=draft.related > 0))


@router.put(
    "/notes/{note_id}",
    response_model=WrittenOut,
    responses={202: {"model": WrittenOut}, **_errors(408, 413)},
    openapi_extra=_body(NoteIn),
    dependencies=[needs("write")],
)
async def put_note(note_id: Id, request: Request, recommender: Recommend, http: Http, wait: Wait = 0.0) -> Response:
    """Store a note, replacing the whole of an older one. 200 once it is searchable, 202 before."""
    note = parse(NoteIn, await _read(request, http.max_body_bytes))
    written = await recommender.put(note.record(note_id), wait)
    return _json(asdict(written), 200 if written.status == "searchable" else 202)


@router.post(
    "/notes",
    status_code=202,
    response_model=BulkOut,
    responses=_errors(408, 413),
    openapi_extra=_content(
        {
            "application/json": {
                "type": "array",
                "maxItems": MAX_BULK,
                "items": BulkNoteIn.model_json_schema(),
            },
            "application/x-ndjson": BulkNoteIn.model_json_schema(),
        }
    ),
    dependencies=[needs("write", "bulk")],
)
async def put_notes(request: Request, recommender: Recommend, http: Http) -> Response:
    """Store up to 1,000 notes from a JSON array or NDJSON; those that are refused stand in the answer."""
    body = await _read(request, http.max_bulk_bytes)
    # Megabytes of JSON take long enough to parse to hold up every other request.
    records, rejected = await asyncio.to_thread(parse_bulk, body)
    audit.concerns(request, [record.note.id for record in records])
    if records:
        await recommender.put_many(records)
    return _json({"accepted": len(records), "rejected": rejected}, 202)


@router.get("/notes/{note_id}", response_model=NoteOut, responses=_errors(404), dependencies=[needs("read")])
async def get_note(note_id: Id, recommender: Recommend) -> Response:
    """The note, its version and status, and what the model suggests for it."""
    return _json(_note_out(await recommender.describe(note_id)))


@router.delete(
    "/notes/{note_id}",
    status_code=204,
    response_class=Response,
    responses=_errors(404),
    dependencies=[needs("write")],
)
async def delete_note(note_id: Id, recommender: Recommend) -> Response:
    """Delete a note. From the answer on, no related answer contains it."""
    await recommender.delete(note_id)
    return Response(status_code=204)


@router.get("/status", response_model=StatusOut, dependencies=[needs("read")])
async def get_status(recommender: Recommend) -> Response:
    """Notes by status, the queue, the index, the model, and how fresh the index is."""
    return _json(_status_out(await recommender.status(), recommender.fingerprint))


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


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _item_out(item: Item) -> dict[str, Any]:
    out: dict[str, Any] = {"note_id": item.note_id, "score": round(item.score, _DIGITS)}
    if item.note:
        out |= {"title": item.note.title, "category": item.note.category, "hashtags": item.note.hashtags}
    return out


def _related_out(related: Related, fingerprint: str) -> dict[str, Any]:
    return {
        "note_id": related.note_id,
        "items": [_item_out(item) for item in related.items],
        "model": fingerprint,
        "generation": related.generation,
        "degraded": related.degraded,
        "shards": {"ok": related.shards_ok, "total": related.shards_total},
    }


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
        out["related"] = [_item_out(item) for item in tagged.related]
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
