"""The shapes of the HTTP contract: what bodies may hold, and what answers look like.

Bodies are validated from their raw bytes: strict, unknown fields refused, no NaN, no lone surrogates, no
NUL. An error names our field and the rule it broke, and never holds what the caller sent.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from model.note import Note
from service.errors import BadRequest
from service.events import Event, EventType
from service.recommend import NoteStatus
from service.store import StoredNote
from service.tags import Source
from service.vocabulary import Vocabulary

MAX_BULK = 1000
ID_PATTERN = r"^[A-Za-z0-9._~:-]{1,128}$"
_MAX_EXPOSURE = 2**53 - 1  # the largest integer that every JSON reader keeps exact
_MAX_SECONDS = 253_402_300_799  # the last second of the year 9999
_EXPLAINED, _LISTED = 3, 100
# What one element of a bulk array may take; the first is tried first because nearly every note fits.
_ELEMENT_CHARS = (2**14, 2**19)

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_SPACES = r"\s\u001c-\u001f\u0085"  # what Python strips, as JSON Schema writes it
_NDJSON = {"application/x-ndjson", "application/ndjson"}
_LINE = re.compile(rb"\S[^\n]*")
_SPACE = re.compile(r"[ \t\r\n]*")

Model = TypeVar("Model", bound=BaseModel)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("text must not hold NUL characters")
    return text


def _rfc_3339(text: str) -> str:
    try:
        if _RFC_3339.fullmatch(text):
            datetime.fromisoformat(text.upper())
            return text
    except ValueError:
        pass  # its message holds the text
    raise ValueError("must be an RFC 3339 time with an offset")


def _described(**schema: JsonValue) -> Any:
    """What OpenAPI says of a value beside what pydantic knows of it."""
    return Field(json_schema_extra=schema)


# The constraints come first: behind a validator they would measure the text before it is trimmed.
_NoNul = AfterValidator(_without_nul)
_text = _described(pattern="^[^\\u0000]*$")
_visible_text = _described(pattern=f"^[^\\u0000]*[^{_SPACES}\\u0000][^\\u0000]*$")
Title = Annotated[str, StringConstraints(strip_whitespace=True, max_length=300), _NoNul, _text]
Content = Annotated[str, StringConstraints(max_length=20_000), _NoNul, _text]
Label = Annotated[str, StringConstraints(max_length=128), _NoNul, _text]
Hashtag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), _NoNul, _visible_text]
NoteId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Time = Annotated[str, AfterValidator(_rfc_3339), _described(format="date-time")]
Key = Annotated[str, StringConstraints(min_length=1, max_length=128), _NoNul, _text]

_SAYS_SOMETHING: dict[str, JsonValue] = {
    "anyOf": [{"required": [name], "properties": {name: {"pattern": f"[^{_SPACES}]"}}} for name in ("title", "content")]
}


class _Body(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, frozen=True, json_schema_extra=_SAYS_SOMETHING
    )

    title: Title = Field(default="", description="Trimmed; may be empty if the content is not.")
    content: Content = ""
    hashtags: Annotated[list[Hashtag], Field(max_length=30)] = []

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.title and not self.content.strip():
            raise ValueError("title and content are both empty")
        return self


class NoteIn(_Body):
    """A note, as a client writes it."""

    category: Label | None = None
    author: Label | None = None
    exposure: Annotated[int, Field(ge=0, le=_MAX_EXPOSURE)] = Field(
        default=0, description="How often the note was shown."
    )
    created_at: Time | None = Field(default=None, description="RFC 3339, with an offset.")

    def record(self, note_id: str) -> StoredNote:
        """The note under this id, for the store, which gives it its version."""
        note = Note(note_id, self.title, self.content, tuple(self.hashtags), self.category, self.exposure)
        return StoredNote(note, version=0, author=self.author, created_at=self.created_at)


class BulkNoteIn(NoteIn):
    """One element of a bulk write: a note with its id."""

    note_id: NoteId


class DraftIn(_Body):
    """A note that is being written, and what is wanted for it. ``hashtags`` are those it already has."""

    max_hashtags: Annotated[int, Field(ge=1, le=10)] = 5
    vocabulary: Vocabulary = Field(default="open", description="`known` allows only hashtags already in use.")
    related: Annotated[int, Field(ge=0, le=20)] = Field(default=0, description="How many related notes to add.")

    def note(self) -> Note:
        """The draft as the model reads it; it has no id."""
        return Note("", self.title, self.content, tuple(self.hashtags))


class EventIn(BaseModel):
    """What a reader did with a note."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    event_id: Key
    user_id: Key
    note_id: NoteId
    source_note_id: NoteId | None = Field(default=None, description="The note that the reader came from.")
    type: EventType
    ts: Annotated[float, Field(ge=0, le=_MAX_SECONDS)] | Time = Field(
        description="When: RFC 3339 with an offset, or seconds since 1970."
    )

    def event(self) -> Event:
        """The event, for the log."""
        ts = self.ts if isinstance(self.ts, float | int) else datetime.fromisoformat(self.ts.upper()).timestamp()
        return Event(self.event_id, self.user_id, self.note_id, self.type, ts, self.source_note_id)


_Element = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [{"$ref": "#/components/schemas/EventIn"}, {"description": "Anything else stands in `rejected`."}]}
    ),
]


class EventsIn(BaseModel):
    """Events, each checked by itself: one bad event never sinks the rest."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    events: Annotated[list[_Element], Field(max_length=MAX_BULK)]


class ErrorDetail(BaseModel):
    """What went wrong; `code` is stable, `message` is for people."""

    code: str
    message: str
    request_id: str


class ErrorOut(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail


class ExplanationOut(BaseModel):
    """What a score is made of: `score = cosine - popularity`."""

    cosine: float
    popularity: float = Field(description="What debias took off; 0 without debias.")
    hashtags_in_common: list[str]


class ItemOut(BaseModel):
    """A related note; while the store is down, only its id and score."""

    note_id: str
    score: float
    title: str | None = None
    category: str | None = None
    hashtags: list[str] | None = None
    explain: ExplanationOut | None = None


class ShardsOut(BaseModel):
    """How many shards of the index had a say."""

    ok: int
    total: int


class RelatedOut(BaseModel):
    """Related notes, closest first."""

    note_id: str
    items: list[ItemOut]
    model: str
    generation: int
    degraded: bool
    shards: ShardsOut


class TagOut(BaseModel):
    """A suggested hashtag, and who suggested it."""

    tag: str
    score: float
    source: Source


class CategoryOut(BaseModel):
    """A category of the model's closed set."""

    name: str
    score: float


class TagsOut(BaseModel):
    """What is suggested for a draft; `related` is there when it was asked for."""

    hashtags: list[TagOut]
    category: CategoryOut | None
    related: list[ItemOut] | None = None
    model: str


class WrittenOut(BaseModel):
    """An acknowledged write."""

    note_id: str
    version: int
    status: NoteStatus


class RejectedOut(BaseModel):
    """An element of a bulk write that was not stored; `position` counts from 0."""

    position: int
    code: str
    message: str


class BulkOut(BaseModel):
    """How a bulk write went."""

    accepted: int
    rejected: list[RejectedOut]


class EventsOut(BaseModel):
    """How a delivery of events went."""

    accepted: int
    duplicates: int
    rejected: list[RejectedOut]


class SuggestedTagOut(BaseModel):
    """A hashtag that the model suggests for a stored note."""

    tag: str
    score: float


class NoteOut(BaseModel):
    """A stored note, and what became of its current version."""

    note_id: str
    title: str
    content: str
    hashtags: list[str]
    category: str | None
    author: str | None
    exposure: int
    created_at: str | None
    version: int
    status: NoteStatus
    reason: str | None = Field(description="Why the status is `failed`.")
    suggested_hashtags: list[SuggestedTagOut] | None = Field(description="Null until a worker has read the note.")
    suggested_category: CategoryOut | None


class NotesStatusOut(BaseModel):
    """Notes by status; `pending` is an estimate while notes are being written."""

    live: int
    searchable: int
    pending: int
    failed: int


class QueueStatusOut(BaseModel):
    """Jobs waiting for a worker."""

    depth: int
    oldest_s: float


class ShardStatusOut(BaseModel):
    """One shard of the index."""

    shard: int
    notes: int
    generation: int
    recipe: str
    fingerprint: str
    cursor: str
    recall: float | None = Field(description="Recall@10 as last measured against exact search; null before that.")
    delta: int = Field(description="Notes that are searched one by one until they are folded into the index.")


class IndexStatusOut(BaseModel):
    """The index; `generation` is the highest of the shards that answer, null when none does."""

    generation: int | None
    shards_ok: int
    shards_total: int
    shards: list[ShardStatusOut]


class FreshnessOut(BaseModel):
    """Seconds from acknowledged to searchable of recent writes with `wait`; null when there were none."""

    p50: float | None
    p99: float | None


class StatusOut(BaseModel):
    """The state of the service."""

    notes: NotesStatusOut
    queue: QueueStatusOut
    index: IndexStatusOut
    model: str
    freshness_s: FreshnessOut


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
        raise BadRequest(_refusal(error)) from None


def parse_events(body: bytes) -> tuple[list[Event], list[Rejected]]:
    """The events of a body, and the elements that are none. Raises BadRequest when the whole is no delivery."""
    events: list[Event] = []
    rejected: list[Rejected] = []
    for position, element in enumerate(parse(EventsIn, body).events):
        try:
            events.append(EventIn.model_validate(element).event())
        except ValidationError as error:
            rejected.append(Rejected(position, BadRequest.code, _refusal(error)))
    return events, rejected


def parse_bulk(body: bytes, kind: str = "") -> tuple[list[StoredNote], list[Rejected]]:
    """The notes of a JSON array or of NDJSON (blank lines do not count), and the elements that are none.

    What is not said to be NDJSON by its media type, ``kind``, is taken for what it begins like.

    Raises BadRequest when the body is neither, or has more than 1,000 elements.
    """
    records: list[StoredNote] = []
    rejected: list[Rejected] = []
    is_lines = kind.partition(";")[0].strip().lower() in _NDJSON
    for position, element in enumerate(_lines(body) if is_lines else _elements(body)):
        if position == MAX_BULK:
            raise BadRequest(f"a bulk holds at most {MAX_BULK} notes")
        try:
            note = parse(BulkNoteIn, element)
        except BadRequest as error:
            rejected.append(Rejected(position, error.code, str(error)))
        else:
            records.append(note.record(note.note_id))
    return records, rejected


def _refusal(error: ValidationError) -> str:
    # pydantic lists all or none, and tens of thousands of unknown fields take it longer than the request has.
    if error.error_count() > _LISTED:
        return "too many errors to list"
    return explain(error.errors(include_url=False, include_input=False))


def explain(errors: Sequence[ErrorDetails | dict[str, Any]]) -> str:
    """The first errors in words: place and rule. An unknown field's name is input, so it is left out."""
    return "; ".join(dict.fromkeys(map(_explain_one, errors[:_EXPLAINED])))


def _explain_one(error: ErrorDetails | dict[str, Any]) -> str:
    place, rule = error["loc"], error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        place, rule = place[:-1], "unknown field"
    return f"{'.'.join(map(str, place))}: {rule}" if place else rule


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
    """The source text of each element: a value that JSON allows and we do not sinks only its own note."""
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
