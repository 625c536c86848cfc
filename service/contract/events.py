"""Events of readers."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from .fields import AnswerId, Key, NoteId, Time
from .notes import MAX_BULK, RejectedOut

EventType = Literal["view", "click", "like", "save", "impression", "dismiss"]
_MAX_SECONDS = 253_402_300_799  # the last second of the year 9999


def _in_our_words(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Of two types, pydantic says why it is neither, with its own names."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("must be an RFC 3339 time with an offset, or seconds since 1970 up to the year 9999") from None


class EventIn(BaseModel):
    """What a reader did with a note."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    event_id: Key
    user_id: Key
    note_id: NoteId
    source_note_id: NoteId | None = Field(default=None, description="The note that the reader came from.")
    type: EventType = Field(
        description="An `impression` is a note that was shown, a `dismiss` one that was not wanted."
    )
    ts: Annotated[
        Annotated[float, Field(ge=0, le=_MAX_SECONDS)] | Time,
        WrapValidator(_in_our_words),
        Field(description="When: RFC 3339 with an offset, or seconds since 1970."),
    ]
    value: float | None = Field(default=None, description="Any number that belongs to the event, such as seconds.")
    answer_id: AnswerId | None = Field(default=None, description="The answer in which the note stood.")
    position: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = Field(
        default=None, description="Where in that answer, from 1."
    )


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


class EventsOut(BaseModel):
    """How a delivery of events went."""

    accepted: int
    duplicates: int
    rejected: list[RejectedOut]
