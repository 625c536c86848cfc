"""What readers did."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.events import Event, EventType
from service.schemas.fields import Key, NoteId, Time
from service.schemas.notes import MAX_BULK, RejectedOut

_MAX_SECONDS = 253_402_300_799  # the last second of the year 9999


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


class EventsOut(BaseModel):
    """How a delivery of events went."""

    accepted: int
    duplicates: int
    rejected: list[RejectedOut]
