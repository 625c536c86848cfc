"""The shapes of the HTTP contract: what bodies may hold, and what answers look like, a module for each subject."""

from service.schemas.bodies import explain, parse, parse_bulk, parse_events
from service.schemas.errors import ErrorOut
from service.schemas.events import EventIn, EventsIn, EventsOut
from service.schemas.fields import ID_PATTERN, Label, NoteId
from service.schemas.notes import MAX_BULK, BulkNoteIn, BulkOut, NoteIn, NoteOut, RejectedOut, WrittenOut
from service.schemas.related import RelatedOut
from service.schemas.status import NotesStatusOut, StatusOut
from service.schemas.tags import DraftIn, TagsOut

__all__ = [
    "ID_PATTERN",
    "MAX_BULK",
    "BulkNoteIn",
    "BulkOut",
    "DraftIn",
    "ErrorOut",
    "EventIn",
    "EventsIn",
    "EventsOut",
    "Label",
    "NoteId",
    "NoteIn",
    "NoteOut",
    "NotesStatusOut",
    "RejectedOut",
    "RelatedOut",
    "StatusOut",
    "TagsOut",
    "WrittenOut",
    "explain",
    "parse",
    "parse_bulk",
    "parse_events",
]
