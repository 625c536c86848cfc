"""Bodies, parsed from their raw bytes: strict, unknown fields refused, no NaN, no lone surrogates, no NUL.

A byte order mark before a body is skipped (RFC 8259, section 8.1).
"""

import codecs
import itertools
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
# A thousand of the largest notes have about 100,000. More than this take Python seconds.
_MOST_TOKENS = 1_000_000

_NDJSON = {"application/x-ndjson", "application/ndjson"}
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ARRAY = re.compile(rb"\s*\[")
_EVENTS = re.compile(rb'\s*\{\s*"events"\s*:\s*\[')
# Strings, brackets and commas; a quote alone is a string that does not end.
_TOKEN = re.compile(rb'[^"\[\]{},]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]++|[\]}]++|,|"', re.DOTALL)
# Within an element brackets alone count, so that a long one takes no longer than its bytes.
_WITHIN = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")++|[\[{]++|[\]}]++|"', re.DOTALL)
_OPENING, _CLOSING, _COMMA, _QUOTE = b"[{", b"]}", b",", b'"'

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
        return model.model_validate_json(_unmarked(body) if isinstance(body, bytes) else body)
    except ValidationError as error:
        raise BadRequest(_explain(error)) from None


def parse_events(body: bytes) -> tuple[list[Event], list[Rejected]]:
    """The events of a body, and its rejected elements. Raises BadRequest when there is no list of events."""
    body = _unmarked(body)
    events: list[Event] = []
    rejected: list[Rejected] = []
    try:
        elements = EventsIn.model_validate_json(body).events
    except ValidationError as error:
        array = _EVENTS.match(body)
        if array is None or error.errors(include_url=False, include_input=False)[0]["type"] != "json_invalid":
            raise BadRequest(_explain(error)) from None
        # One element that is no JSON must not sink the others.
        elements = list(_array_elements(body, array.end(), b"}", "events"))
    for position, element in enumerate(elements):
        is_source = isinstance(element, bytes)
        try:
            event = EventIn.model_validate_json(element) if is_source else EventIn.model_validate(element)
            events.append(event_record(event))
        except ValidationError as error:
            rejected.append(_rejected(position, error, is_source=is_source))
    return events, rejected


def parse_bulk(body: bytes, media_type: str = "") -> tuple[list[StoredNote], list[Rejected]]:
    """The notes of a JSON array or of NDJSON (blank lines do not count), and the rejected elements.

    Unless its media type is that of NDJSON, the body's first character decides between the two.

    Raises BadRequest when the body is neither, or has more than 1,000 elements.
    """
    body = _unmarked(body)
    records: list[StoredNote] = []
    rejected: list[Rejected] = []
    is_lines = media_type.partition(";")[0].strip().lower() in _NDJSON
    for position, element in enumerate(_lines(body) if is_lines else _elements(body)):
        try:
            note = BulkNoteIn.model_validate_json(element)
        except ValidationError as error:
            rejected.append(_rejected(position, error, is_source=not is_lines))
        else:
            records.append(note_record(note, note.note_id))
    return records, rejected


def _rejected(position: int, error: ValidationError, *, is_source: bool) -> Rejected:
    """Raises BadRequest if the source of an element is more than one value: then a comma is missing in the array."""
    message = _explain(error)
    if is_source and message.endswith("trailing characters"):
        raise BadRequest("the array is not valid JSON")
    return Rejected(position, BadRequest.code, message)


def _unmarked(body: bytes) -> bytes:
    for mark, encoding in _MARKS.items():
        if body.startswith(mark):
            raise BadRequest(f"the body is {encoding}; JSON is UTF-8")
    return body.removeprefix(codecs.BOM_UTF8)


def _explain(error: ValidationError) -> str:
    # pydantic lists all or none, and tens of thousands of unknown fields take it longer than the request has.
    return "too many errors to list" if error.error_count() > _MOST_ERRORS else explain(error)


def _elements(body: bytes) -> Iterator[bytes]:
    if array := _ARRAY.match(body):
        return _array_elements(body, array.end(), b"", "notes")
    if body.lstrip().startswith(b"{"):
        return _lines(body)
    raise BadRequest("the body is neither a JSON array nor NDJSON")


def _lines(body: bytes) -> Iterator[bytes]:
    """The lines that are not blank. They end with LF, or, where there is none, with CR; ctrl-Z may end the last."""
    lines = body.rstrip(b"\r\n\x1a").split(b"\n" if b"\n" in body else b"\r")
    return _bounded((line for line in map(bytes.strip, lines) if line), "notes")


def _bounded(elements: Iterator[bytes], kind: str) -> Iterator[bytes]:
    for position, element in enumerate(elements):
        if position == MAX_BULK:
            raise BadRequest(f"a bulk holds at most {MAX_BULK} {kind}")
        yield element


def _array_elements(body: bytes, start: int, behind: bytes, kind: str) -> Iterator[bytes]:
    """The source of each element of the array whose first one begins at ``start``; ``behind`` must follow it.

    Brackets, commas and quotes are looked at, nothing else: what is between them is the element's own affair.
    """
    return _bounded(_split(body, start, behind), kind)


def _split(body: bytes, start: int, behind: bytes) -> Iterator[bytes]:
    depth, is_first, place = 0, True, start
    for count in itertools.count():
        token = (_WITHIN if depth else _TOKEN).match(body, place)
        if token is None:
            break
        place = token.end()
        if count == _MOST_TOKENS:
            raise BadRequest("the array holds too many values")
        first = token[0][:1]
        if first in _OPENING:
            depth += token.end() - token.start()
        elif first in _CLOSING:
            end = token.start() + depth
            if end < token.end():  # the array ends here
                element = body[start:end].strip()
                if body[end:].split() not in ([b"]", behind], [b"]" + behind]):
                    break
                if element:
                    yield element
                elif not is_first:
                    break
                return
            depth -= token.end() - token.start()
        elif token[0] == _QUOTE:
            break
        elif token[0] == _COMMA and not depth:
            element, start, is_first = body[start : token.start()].strip(), token.end(), False
            if not element:
                break
            yield element
    raise BadRequest("the array is not valid JSON")
