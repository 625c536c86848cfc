"""What a client can be told, as exceptions; `service.app` is the only place that turns them into HTTP.

::

    NoteLLMError
     ├── Malformed              400 bad_request
     ├── NoRoute                404 not_found
     ├── WrongMethod            405 method_not_allowed
     ├── TimedOut               408 request_timeout
     ├── TooLarge               413 too_large
     ├── BadRequest             422 invalid_request
     ├── Unauthorized           401 unauthorized          WWW-Authenticate
     ├── Forbidden              403 forbidden
     ├── NoteNotFound           404 note_not_found
     ├── NotePending            409 note_pending          Retry-After
     ├── NotAsExpected          412 precondition_failed
     ├── KeyReused              422 idempotency_key_reused
     ├── StillRunning           409 request_in_progress   Retry-After
     ├── Unavailable            503                       Retry-After
     │    ├── StoreUnavailable      store_unavailable
     │    ├── IndexUnavailable      index_unavailable
     │    ├── WorkerUnavailable     worker_unavailable
     │    └── QueueFull             queue_full
     └── Internal               500 internal
"""

from collections.abc import Mapping
from typing import ClassVar

import orjson

_MAX_MESSAGE = 300  # characters; JSON needs at most 6 bytes for one, and an error is at most 2 KiB


def error_body(code: str, message: str, request_id: str) -> bytes:
    """The one shape of every error."""
    return orjson.dumps({"error": {"code": code, "message": message[:_MAX_MESSAGE], "request_id": request_id}})


class NoteLLMError(Exception):
    """An error with a stable code; the message is for people and never holds the caller's input."""

    status: ClassVar[int]
    code: ClassVar[str]
    retry_after_s: ClassVar[int | None] = None
    headers: ClassVar[Mapping[str, str]] = {}


class Malformed(NoteLLMError):
    """The request is not HTTP, or its body is incomplete."""

    status, code = 400, "bad_request"


class NoRoute(NoteLLMError):
    """There is nothing at this path."""

    status, code = 404, "not_found"


class WrongMethod(NoteLLMError):
    """The path takes other methods."""

    status, code = 405, "method_not_allowed"


class TimedOut(NoteLLMError):
    """The request did not arrive in time."""

    status, code = 408, "request_timeout"


class TooLarge(NoteLLMError):
    """The body is larger than the route takes."""

    status, code = 413, "too_large"


class BadRequest(NoteLLMError):
    """The request is not one of the contract's."""

    status, code = 422, "invalid_request"


class Unauthorized(NoteLLMError):
    """The route needs a key, and there is none, or none that lives."""

    status, code, headers = 401, "unauthorized", {"WWW-Authenticate": "Bearer"}


class Forbidden(NoteLLMError):
    """The key does not have the route's scope."""

    status, code = 403, "forbidden"


class NoteNotFound(NoteLLMError):
    """No note of this id was ever stored, or it was deleted."""

    status, code = 404, "note_not_found"


class NotePending(NoteLLMError):
    """The note is accepted but not searchable yet."""

    status, code, retry_after_s = 409, "note_pending", 1


class NotAsExpected(NoteLLMError):
    """The note is not at the version that the request was made for."""

    status, code = 412, "precondition_failed"


class KeyReused(NoteLLMError):
    """The idempotency key was used before, for another request."""

    status, code = 422, "idempotency_key_reused"


class StillRunning(NoteLLMError):
    """A request with the same idempotency key is being answered."""

    status, code, retry_after_s = 409, "request_in_progress", 1


class Unavailable(NoteLLMError):
    """A part that the request needs does not answer; the same request may succeed later."""

    status, code, retry_after_s = 503, "unavailable", 1


class StoreUnavailable(Unavailable):
    """Redis does not answer."""

    code = "store_unavailable"


class IndexUnavailable(Unavailable):
    """No shard of the index answers."""

    code = "index_unavailable"


class WorkerUnavailable(Unavailable):
    """No worker answered in time."""

    code = "worker_unavailable"


class QueueFull(Unavailable):
    """Too many notes wait to be embedded."""

    code, retry_after_s = "queue_full", 10


class Internal(NoteLLMError):
    """An error of ours; it is logged."""

    status, code = 500, "internal"
