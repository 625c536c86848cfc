"""The OpenAPI document: the parameters, bodies, answers and errors of routes, and the parts that all routes share.

Nothing here runs for a request. `make openapi` writes the document to ``docs/openapi.json``.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from inspect import getdoc
from itertools import groupby
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.queries import NoParameters, parameters
from service.contract.embeddings import EmbeddingsIn
from service.contract.errors import ErrorOut
from service.contract.events import EventIn, EventsIn
from service.contract.examples import EXAMPLES
from service.contract.hashtags import RuleIn
from service.contract.notes import MAX_BULK, BulkNoteIn, NoteIn, NotePatch
from service.contract.related import BatchedIn, BatchIn, RelatedIn, SearchIn, SeedsIn
from service.contract.tags import DraftIn
from service.errors import (
    BadRequest,
    Forbidden,
    HeadTooLarge,
    Internal,
    KeyReused,
    Malformed,
    NoRoute,
    NoteLLMError,
    Overloaded,
    RateLimited,
    StillRunning,
    TimedOut,
    TooLarge,
    Unauthorized,
    UnsupportedMedia,
    WrongMethod,
)

Json = dict[str, Any]

# Errors of every route.
EVERYWHERE: tuple[type[NoteLLMError], ...] = (
    Malformed,
    Unauthorized,
    Forbidden,
    BadRequest,
    RateLimited,
    HeadTooLarge,
    Internal,
    Overloaded,
)
WITH_ID: tuple[type[NoteLLMError], ...] = (NoRoute, WrongMethod)  # an id with a slash in it is another path
WITH_BODY: tuple[type[NoteLLMError], ...] = (TimedOut, TooLarge, UnsupportedMedia)
WITH_KEY: tuple[type[NoteLLMError], ...] = (KeyReused, StillRunning)  # an idempotency key

DESCRIPTION = """\
Related notes, hashtags and categories for a community of notes.

- Bodies and answers are JSON in UTF-8. Unknown fields and unknown query parameters are refused.
- Every error has one shape, at most 2 KiB, and never repeats what was sent. Its `code` is stable; its `message` is for
  people. 429 and 503 say in `Retry-After` when to come again.
- Every answer carries `X-Request-ID`: the caller's, if that has 1 to 64 of `A-Z a-z 0-9 . _ : -`, else a new one.
- What can be got has a `HEAD`, too. Long answers are packed for those who accept gzip, and bodies may be packed with it
  (`Content-Encoding: gzip`); limits count what comes out.
- `If-Match` and `If-None-Match` make a write depend on the note's version; an `Idempotency-Key` makes any write safe to
  send again.
- Where nothing is, there is 404 `not_found`; where other methods are taken, 405 `method_not_allowed`.
"""
TAGS = {
    "related": "What readers of a note will want next.",
    "tags": "Hashtags and a category for a draft.",
    "embeddings": "Vectors of texts, for clients of OpenAI's API.",
    "notes": "Writing and reading notes.",
    "events": "What readers do.",
    "users": "The readers.",
    "hashtags": "The community's hashtags, and the rules for suggesting them.",
    "status": "How the service is.",
    "experiments": "What readers say of two models, and how the service learns from them.",
}

_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_COMPONENTS = "#/components/{}/{}"
_SCHEMA = "#/components/schemas/{model}"
_REQUEST_ID = "X-Request-ID"
_HEADERS = {
    _REQUEST_ID: ("The id of this request, to be named when something is wrong.", "^[A-Za-z0-9._:-]{1,64}$"),
    "Retry-After": ("Seconds after which the request may succeed.", "^[1-9][0-9]*$"),
    "ETag": ("The version of the note, for `If-Match` and `If-None-Match`.", '^"[0-9]+(-[0-9a-f]{16})?"$'),
    "X-Unknown-Attributes": (
        "Names in filters that no note has, with commas between: they match nothing.",
        "^[a-z][a-z0-9_]*(, [a-z][a-z0-9_]*)*$",
    ),
    "Idempotency-Replayed": ("`true` when this answer was given to the same key before.", "^true$"),
}
_ALWAYS = {_REQUEST_ID, "Retry-After", "ETag"}  # in every answer that declares them
_REQUEST_HEADERS: dict[str, tuple[str, Json]] = {
    "If-Match": (
        'Only if the note is at this version: `"3"`, or the `ETag` of a read; `*` for any that exists.',
        {"type": "string", "pattern": '^(\\*|"[0-9]{1,15}(-[0-9a-f]{16})?")$'},
    ),
    "If-None-Match": (
        "`*`: only if there is no such note.",
        {"type": "string", "enum": ["*"]},
    ),
    "X-Answer-ID": (
        "The answer of `POST /notes/tags` with which the note was written, for reports of accepted hashtags.",
        {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[!-~]+$"},
    ),
    "Idempotency-Key": (
        "1 to 255 visible ASCII characters; the same key within a day gets the same answer.",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    ),
    "X-Reader-ID": (
        "For whom the answer is, percent-encoded: the `user_id` of events. Unlike `for_user`, it leaves nothing out of "
        "a list; either says which arm of an experiment answers.",
        {"type": "string", "minLength": 1, "maxLength": 1536, "pattern": "^[!-~]+$"},
    ),
}
_IF_NONE_MATCH = (
    "The `ETag` of an earlier answer, or several with commas between: 304 when nothing has changed.",
    {"type": "string"},
)
_BODIES = (
    EmbeddingsIn, NoteIn, NotePatch, BulkNoteIn, DraftIn, EventIn, EventsIn,
    RelatedIn, SeedsIn, SearchIn, BatchedIn, BatchIn, RuleIn,
)  # fmt: skip


class Api(FastAPI):
    """An application whose OpenAPI document is complete."""

    def openapi(self) -> Json:
        """The document; made once."""
        if not self.openapi_schema:
            self.openapi_schema = _completed(super().openapi())
        return self.openapi_schema


def text(api: FastAPI) -> str:
    """The document as it is committed: the same bytes for the same API."""
    return json.dumps(api.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def errors(*own: type[NoteLLMError]) -> dict[int | str, Json]:
    """The ``responses`` of a route that raises its own errors and those of every route: all codes of each status."""
    kinds = sorted({*EVERYWHERE, *own}, key=lambda kind: (kind.status, kind.code))
    return {status: _error_response(list(same)) for status, same in groupby(kinds, key=lambda kind: kind.status)}


def answer(description: str, *examples: str, headers: tuple[str, ...] = ()) -> Json:
    """One of the ``responses`` of a route, with the names of its headers and of its examples in `EXAMPLES`."""
    content = {"content": {_JSON: {"examples": _named(examples)}}} if examples else {}
    return {"description": description, "headers": _header_refs(_REQUEST_ID, *headers)} | content


def takes(query: type[BaseModel] = NoParameters, *headers: str) -> Json:
    """The query parameters of a route, and its headers."""
    fields = (_header_parameter(name, *_REQUEST_HEADERS[name]) for name in headers)
    return {"parameters": [*parameters(query), *fields]}


def takes_etag() -> Json:
    """The parameters of a read that answers 304."""
    return {"parameters": [_header_parameter("If-None-Match", *_IF_NONE_MATCH)]}


def body(model: type[BaseModel], *examples: str, media_types: Sequence[str] = (_JSON,)) -> Json:
    """The body of a route: one JSON value."""
    content = {media_type: {"schema": _ref(model), "examples": _named(examples)} for media_type in media_types}
    return {"requestBody": {"required": True, "content": content}}


def bulk_body() -> Json:
    """The body of a bulk write in both its forms. An element that is no note is rejected alone."""
    element = {"anyOf": [_ref(BulkNoteIn), {"description": "Anything else stands in `rejected`."}]}
    array = {"type": "array", "maxItems": MAX_BULK, "items": element}
    lines = {"type": "string", "description": "One note a line; each is what an element of the array is."}
    content = {
        _JSON: {"schema": array, "examples": _named(["notes"])},
        _NDJSON: {"schema": lines, "examples": _named(["lines"])},
    }
    return {"requestBody": {"required": True, "content": content}}


def links(*operations: str) -> Json:
    """Links from an answer that names a note to operations on it."""
    note = {"note_id": "$response.body#/note_id"}
    return {"links": {name: {"operationId": name, "parameters": note} for name in operations}}


def _error_response(kinds: list[type[NoteLLMError]]) -> Json:
    retry_after = ["Retry-After"] if all(kind.retry_after_s for kind in kinds) else []
    return {
        "model": ErrorOut,
        "description": " ".join(f"`{kind.code}`: {_meaning(kind)}" for kind in kinds),
        "headers": _header_refs(_REQUEST_ID, *retry_after),
        "content": {_JSON: {"examples": {kind.code: _error_example(kind) for kind in kinds}}},
    }


def _error_example(kind: type[NoteLLMError]) -> Json:
    meaning = _meaning(kind)
    error = {"code": kind.code, "message": meaning, "request_id": "9c1f60ab7e52d384"}
    return {"summary": meaning, "value": {"error": error}}


def _meaning(kind: type[NoteLLMError]) -> str:
    return (getdoc(kind) or "").partition("\n")[0]


def _header_refs(*names: str) -> Json:
    return {name: {"$ref": _COMPONENTS.format("headers", name)} for name in names}


def _header_parameter(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _named(examples: Iterable[str]) -> Json:
    """Examples without their values, which are added later: FastAPI would drop the nulls in them."""
    return {name: {} for name in examples}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _COMPONENTS.format("schemas", model.__name__)}


def _completed(document: Json) -> Json:
    """FastAPI's document, with the description, the bodies, the headers and the examples."""
    document["info"] |= {"description": DESCRIPTION, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}}
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    components = document["components"]
    bodies = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_SCHEMA)[1]["$defs"]
    components["schemas"] |= bodies
    components["headers"] = {
        name: {"description": text, "required": name in _ALWAYS, "schema": {"type": "string", "pattern": pattern}}
        for name, (text, pattern) in _HEADERS.items()
    }
    for operation in _operations(document):
        operation["summary"] = operation["description"].partition("\n")[0].rstrip(".")
        for media in _media(operation):
            for name, example in media["examples"].items():
                if not example:
                    example["value"] = EXAMPLES[name]
    return document


def _operations(document: Json) -> Iterator[Json]:
    for methods in document["paths"].values():
        yield from methods.values()


def _media(operation: Json) -> Iterator[Json]:
    for part in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from part.get("content", {}).values()
