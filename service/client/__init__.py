"""A client of the HTTP API: what an application imports.

Nothing here or in `service.contract` imports any other part of ours, and imports between the two are relative: the same
sources are the package `notellm_client` of a wheel of its own (`deploy/client`).
"""

from .bodies import Boost, BulkNote, EventFields, ListRules, NoteChanges, NoteFields, RelatedRules, TextFields
from .calls import Fetched
from .client import AsyncNoteLLMClient, NoteLLMClient
from .errors import ClientError, NoAnswer, Refused, SetupError

__all__ = [
    "AsyncNoteLLMClient",
    "Boost",
    "BulkNote",
    "ClientError",
    "EventFields",
    "Fetched",
    "ListRules",
    "NoAnswer",
    "NoteChanges",
    "NoteFields",
    "NoteLLMClient",
    "Refused",
    "RelatedRules",
    "SetupError",
    "TextFields",
]
