"""A client of the HTTP API: what an application imports.

Nothing here or in `service.contract` imports any other part of ours, and imports between the two are relative: the same
sources are the package `notellm_client` of a wheel of its own (`deploy/client`).
"""

from .calls import BulkNote, EventFields, Fetched, NoteChanges, NoteFields
from .client import AsyncNoteLLMClient, NoteLLMClient
from .errors import ClientError, NoAnswer, Refused, SetupError

__all__ = [
    "AsyncNoteLLMClient",
    "BulkNote",
    "ClientError",
    "EventFields",
    "Fetched",
    "NoAnswer",
    "NoteChanges",
    "NoteFields",
    "NoteLLMClient",
    "Refused",
    "SetupError",
]
