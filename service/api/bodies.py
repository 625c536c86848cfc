"""Bodies, parsed from their raw bytes: strict, unknown fields refused, no NaN, no lone surrogates, no NUL."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.api.records import event_record, note_record
from service.api.validation import explain
from service.contract.events import EventIn, EventsIn
from service.contract.notes import MAX_BULK, BulkNoteIn
from service.errors import BadRequest
from service.store.records import Event, StoredNote

_MOST_ERRORS = 100
# The longest element of a bulk array. The first length is tried first because nearly every note fits.
_ELEMENT_CHARS = (2**14, 2**19)

_NDJSON = {"application/x-ndjson", "application/ndjson"}
_LINE = re.compile(rb"\S[^\n]*")
_SPACE = re.compile(r"[ \t\r\n]*")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An element of a bulk write that breaks the contract; ``position`` counts the elements from 0."""

    position: int
    code: str
    message: str


def parse(model: type[Model], body: bytes | str) -> Model:
    """The body as ``model``. Raises BadRequest."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise BadRequest(_explain(error)) from None


def parse_events(body: bytes) -> tuple[list[Event], list[Rejected]]:
    """The events of a body, and its rejected elements. Raises BadRequest when there is no list of events."""
    events: list[Event] = []
    rejected: list[Rejected] = []
    for position, element in enumerate(parse(EventsIn, body).events):
        try:
            events.append(event_record(EventIn.model_validate(element)))
        except ValidationError as error:
            rejected.append(Rejected(position, BadRequest.code, _explain(error)))
    return events, rejected


def parse_bulk(body: bytes, media_type: str = "") -> tuple[list[StoredNote], list[Rejected]]:
    """The notes of a JSON array or of NDJSON (blank lines do not count), and the rejected elements.

    Unless its media type is that of NDJSON, the body's first character decides between the two.

    Raises BadRequest when the body is neither, or has more than 1,000 elements.
    """
    records: list[StoredNote] = []
    rejected: list[Rejected] = []
    is_lines = media_type.partition(";")[0].strip().lower() in _NDJSON
    for position, element in enumerate(_lines(body) if is_lines else _elements(body)):
        if position == MAX_BULK:
            raise BadRequest(f"a bulk holds at most {MAX_BULK} notes")
        try:
            note = parse(BulkNoteIn, element)
        except BadRequest as error:
            rejected.append(Rejected(position, error.code, str(error)))
        else:
            records.append(note_record(note, note.note_id))
    return records, rejected


def _explain(error: ValidationError) -> str:
    # pydantic lists all or none, and tens of thousands of unknown fields take it longer than the request has.
    return "too many errors to list" if error.error_count() > _MOST_ERRORS else explain(error)


def _elements(body: bytes) -> Iterator[bytes | str]:
    match body.lstrip()[:1]:
        case b"[":
            return _array_elements(body)
        case b"{":
            return _lines(body)
        case _:
            raise BadRequest("the body is neither a JSON array nor NDJSON")


def _lines(body: bytes) -> Iterator[bytes]:
    return (line[0] for line in _LINE.finditer(body))


def _array_elements(body: bytes) -> Iterator[str]:
    """The source text of each element, so that a value that only JSON allows rejects no other note."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None
    at = _skip_space(text, text.index("[") + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        end = _element_end(text, at)
        yield text[at:end]
        at = _skip_space(text, end)
        closed = text[at : at + 1] == "]"
        if not closed:
            at = _after_comma(text, at)
    if _skip_space(text, at + 1) != len(text):
        raise BadRequest("there is something behind the array")


def _after_comma(text: str, at: int) -> int:
    if text[at : at + 1] != ",":
        raise BadRequest("the array is not valid JSON")
    return _skip_space(text, at + 1)


def _element_end(text: str, at: int) -> int:
    for chars in _ELEMENT_CHARS:
        try:
            return at + _DECODER.raw_decode(text[at : at + chars])[1]
        except (ValueError, RecursionError):
            continue
    raise BadRequest("the array is not valid JSON, or an element is too long")


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


# Numbers are only skipped here: turning 100,000 digits into an integer takes seconds.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
