"""What a client can be told, as exceptions; `service.app` is the only place that turns them into HTTP.

::

    NoteLLMError
     ├── Malformed              400 bad_request           Connection: close
     ├── BadRequest             422 invalid_request
     ├── TooLarge               413 too_large
     ├── TooSlow                408 request_timeout       Connection: close
     ├── HeadTooLarge           431 head_too_large        Connection: close
     ├── RateLimited            429 rate_limited          Retry-After
     ├── Unauthorized           401 unauthorized          WWW-Authenticate
     ├── Forbidden              403 forbidden
     ├── NoteNotFound           404 note_not_found
     ├── NotePending            409 note_pending          Retry-After
     └── Unavailable            503                       Retry-After
          ├── Overloaded            overloaded
          ├── StoreUnavailable      store_unavailable
          ├── IndexUnavailable      index_unavailable
          ├── WorkerUnavailable     worker_unavailable
          └── QueueFull             queue_full
"""

from collections.abc import Mapping
from typing import ClassVar

import orjson

CLOSE = {"Connection": "close"}
_MAX_MESSAGE = 300  # characters; JSON needs at most 6 bytes for one, and an error is at most 2 KiB


def error_body(code: str, message: str, request_id: str) -> bytes:
    """The one shape of every error, as JSON."""
    return orjson.dumps({"error": {"code": code, "message": message[:_MAX_MESSAGE], "request_id": request_id}})


class NoteLLMError(Exception):
    """An error with a stable code; the message is for people and never holds the caller's input."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retry_after_s: int | None = None
    headers: ClassVar[Mapping[str, str]] = {}


class Malformed(NoteLLMError):
    """What came is not HTTP."""

    status, code, headers = 400, "bad_request", CLOSE


class BadRequest(NoteLLMError):
    """The request is not one of the contract's."""

    status, code = 422, "invalid_request"


class TooLarge(NoteLLMError):
    """The body is larger than the route takes."""

    status, code = 413, "too_large"


class TooSlow(NoteLLMError):
    """The body does not come, or only in drops."""

    status, code, headers = 408, "request_timeout", CLOSE


class HeadTooLarge(NoteLLMError):
    """The request line and the headers are larger than any client needs."""

    status, code, headers = 431, "head_too_large", CLOSE


class RateLimited(NoteLLMError):
    """The caller's key asks more than it may."""

    status, code = 429, "rate_limited"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


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


class Unavailable(NoteLLMError):
    """A part that the request needs does not answer; the same request may succeed later."""

    status, code, retry_after_s = 503, "unavailable", 1


class Overloaded(Unavailable):
    """As much is under way as the gateway takes on."""

    code = "overloaded"


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
