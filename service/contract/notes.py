"""Notes, as they are written and as they are stored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .fields import (
    Attribute,
    Attributes,
    AttributesPatch,
    Body,
    Content,
    Hashtags,
    Label,
    Language,
    NoteId,
    Time,
    Title,
)
from .tags import CategoryOut

NoteStatus = Literal["pending", "searchable", "failed"]
MAX_BULK = 1000
_MAX_EXPOSURE = 2**53 - 1  # the largest integer that every JSON reader keeps exact

Exposure = Annotated[int, Field(ge=0, le=_MAX_EXPOSURE)]


class NoteIn(Body):
    """A note, as a client writes it."""

    category: Label | None = None
    author: Label | None = None
    exposure: Exposure = Field(default=0, description="How often the note was shown.")
    created_at: Time | None = Field(default=None, description="RFC 3339, with an offset.")
    attributes: Attributes = Field(
        default={}, description="The community's own fields, for filters. A name keeps its type in all notes."
    )
    language: Language | None = Field(default=None, description="Null: the service detects it.")
    hidden: bool = Field(default=False, description="True: the note stands in no answer to others.")


class BulkNoteIn(NoteIn):
    """One element of a bulk write: a note with its id."""

    note_id: NoteId


class NotePatch(BaseModel):
    """What shall be otherwise in a note (JSON Merge Patch, RFC 7396): null gives the default, in attributes too."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    title: Title | None = None
    content: Content | None = None
    hashtags: Hashtags | None = None
    category: Label | None = None
    author: Label | None = None
    exposure: Exposure | None = None
    created_at: Time | None = None
    attributes: AttributesPatch | None = None
    language: Language | None = None
    hidden: bool | None = None


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
    attributes: dict[str, Attribute]
    language: str | None
    hidden: bool
    detected_language: str | None = Field(description="Null where it is given, or unsure.")
    version: int
    status: NoteStatus
    reason: str | None = Field(description="Why the status is `failed`.")
    suggested_hashtags: list[SuggestedTagOut] | None = Field(description="Null until a worker has read the note.")
    suggested_category: CategoryOut | None


class NotesOut(BaseModel):
    """Notes in byte order of their ids."""

    items: list[NoteOut]
    next: str | None = Field(description="The `after` of the next page; null at the end.")
