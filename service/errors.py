"""The errors that a client can meet, as exceptions; only `service.api.app` turns them into HTTP.

::

    NoteLLMError
     ├── Malformed              400 bad_request           Connection: close
     ├── NoRoute                404 not_found
     ├── WrongMethod            405 method_not_allowed
     ├── TimedOut               408 request_timeout       Connection: close
     ├── TooLarge               413 too_large
     ├── UnsupportedMedia       415 unsupported_media_type
     ├── BadRequest             422 invalid_request
     ├── BadFilter              422 bad_filter
     ├── HeadTooLarge           431 head_too_large        Connection: close
     ├── RateLimited            429 rate_limited          Retry-After
     ├── Unauthorized           401 unauthorized          WWW-Authenticate
     ├── Forbidden              403 forbidden
     ├── NoteNotFound           404 note_not_found
     ├── ExperimentNotFound     404 experiment_not_found
     ├── NotePending            409 note_pending          Retry-After
     ├── AliasLoop              409 alias_loop
     ├── NotAsExpected          412 precondition_failed
     ├── KeyReused              422 idempotency_key_reused
     ├── StillRunning           409 request_in_progress   Retry-After
     ├── Unavailable            503                       Retry-After
     │    ├── Overloaded            overloaded
     │    ├── StoreUnavailable      store_unavailable
     │    ├── IndexUnavailable      index_unavailable
     │    ├── WorkerUnavailable     worker_unavailable
     │    └── QueueFull             queue_full
     └── Internal               500 internal
"""

from collections.abc import Mapping
from typing import ClassVar

CLOSE = {"Connection": "close"}


class NoteLLMError(Exception):
    """An error with a stable code; the message is for people and never holds the caller's input."""

    status: ClassVar[int]
    code: ClassVar[str]
    retry_after_s: int | None = None
    headers: ClassVar[Mapping[str, str]] = {}


class Malformed(NoteLLMError):
    """The request is not HTTP, or its body is incomplete."""

    status, code, headers = 400, "bad_request", CLOSE


class NoRoute(NoteLLMError):
    """There is nothing at this path."""

    status, code = 404, "not_found"


class WrongMethod(NoteLLMError):
    """The path takes other methods."""

    status, code = 405, "method_not_allowed"


class TimedOut(NoteLLMError):
    """The request did not arrive in time."""

    status, code, headers = 408, "request_timeout", CLOSE


class TooLarge(NoteLLMError):
    """The body is larger than the route takes."""

    status, code = 413, "too_large"


class UnsupportedMedia(NoteLLMError):
    """The body is packed otherwise than with gzip, or not declared as the route takes it, or as JSON without keys."""

    status, code = 415, "unsupported_media_type"


class HeadTooLarge(NoteLLMError):
    """The request line and the headers are larger than any client needs."""

    status, code, headers = 431, "head_too_large", CLOSE


class RateLimited(NoteLLMError):
    """The caller's key asks more than it may."""

    status, code, retry_after_s = 429, "rate_limited", 1

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadRequest(NoteLLMError):
    """The request is not one of the contract's."""

    status, code = 422, "invalid_request"


class BadFilter(NoteLLMError):
    """The filter cannot be parsed."""

    status, code = 422, "bad_filter"


class Unauthorized(NoteLLMError):
    """The route needs a key, and there is none, or none that lives."""

    status, code, headers = 401, "unauthorized", {"WWW-Authenticate": "Bearer"}


class Forbidden(NoteLLMError):
    """The key does not have the route's scope; or there are no keys, and a page of another site asks."""

    status, code = 403, "forbidden"


class NoteNotFound(NoteLLMError):
    """No note of this id was ever stored, or it was deleted."""

    status, code = 404, "note_not_found"


class ExperimentNotFound(NoteLLMError):
    """No experiment of this name was ever started."""

    status, code = 404, "experiment_not_found"


class NotePending(NoteLLMError):
    """The note is accepted but not searchable yet."""

    status, code, retry_after_s = 409, "note_pending", 1


class AliasLoop(NoteLLMError):
    """The hashtag would stand for itself, by way of other rules or at once."""

    status, code = 409, "alias_loop"


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
    """A part of the service does not answer; the same request may succeed later."""

    status, code, retry_after_s = 503, "unavailable", 1


class Overloaded(Unavailable):
    """As much is under way as the gateway takes on."""

    code = "overloaded"


class StoreUnavailable(Unavailable):
    """Redis does not answer."""

    code = "store_unavailable"

    def __init__(self, message: str, cause: str = "") -> None:
        """``cause`` is one of `service.store.requirements`; empty when it may pass by itself."""
        super().__init__(message)
        self.cause = cause


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
