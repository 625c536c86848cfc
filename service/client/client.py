"""A client of the HTTP API, blocking (`NoteLLMClient`) and for asyncio (`AsyncNoteLLMClient`).

::

    with NoteLLMClient("http://127.0.0.1:8000") as notellm:
        notellm.put("n1", {"title": "Three days in Kyoto"}, wait_s=10)
        for item in notellm.related("n1", k=5).items:
            print(item.score, item.title)

What goes wrong is a ClientError::

    ClientError
     ├── NoAnswer      nobody answered, or something that is not NoteLLM
     └── Refused       status, code, message, request_id, retry_after_s
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from pydantic import ValidationError

from ..contract.errors import ErrorOut
from ..contract.notes import MAX_BULK, BulkOut
from .calls import BulkNote, Call, Calls, bulks

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 20.0  # longer than any deadline of the service

T = TypeVar("T")
P = ParamSpec("P")


class ClientError(Exception):
    """A call that brought no answer; the message is one line."""


class NoAnswer(ClientError):
    """Nobody answered, or something that is not NoteLLM; the cause is the error of httpx or pydantic."""


class Refused(ClientError):
    """The service said no.

    ``code`` is stable and empty when something between here and the service refused. ``retry_after_s`` is None when
    the same call would be refused again.
    """

    def __init__(self, status: int, code: str, message: str, request_id: str, retry_after_s: float | None) -> None:
        self.status, self.code, self.message = status, code, message
        self.request_id, self.retry_after_s = request_id, retry_after_s
        super().__init__(f"{status} {code}: {message} (request {request_id})" if code else f"HTTP {status}")


_CALLS = Calls()


def _blocking(build: Callable[Concatenate[Calls, P], Call[T]]) -> Callable[Concatenate["NoteLLMClient", P], T]:
    @wraps(build)
    def method(self: "NoteLLMClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(_CALLS, *args, **kwargs))

    return method


class NoteLLMClient:
    """The service at ``url``, blocking; may be used by several threads.

    Args:
        key: of the service's key file, when keys are on.
        timeout_s: how long an answer may take, beside a wait that was asked for.
        patience_s: how long in all a call is sent again while it is refused with ``Retry-After``, each time so much
            later. A conditional write is sent again only if it has an idempotency key: without one, nobody could tell
            whether the first try was the one that changed the version.
        transport: how requests travel; for tests.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = 0.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._http = httpx.Client(base_url=url, headers=_authorization(key), transport=transport)

    related = _blocking(Calls.related)
    tags = _blocking(Calls.tags)
    put = _blocking(Calls.put)
    put_many = _blocking(Calls.put_many)
    get = _blocking(Calls.get)
    fetch = _blocking(Calls.fetch)
    delete = _blocking(Calls.delete)
    record = _blocking(Calls.record)
    status = _blocking(Calls.status)

    def put_all(self, notes: Iterable[BulkNote], *, size: int = MAX_BULK) -> Iterator[BulkOut]:
        """Store any number of notes, ``size`` of them a request, and yield each answer as it comes.

        Positions of what was refused count over all notes.
        """
        for call in bulks(notes, size):
            yield self.send(call)

    def send(self, call: Call[T]) -> T:
        """Make a call. Raises Refused and NoAnswer."""
        patience = _Patience(self._patience_s)
        while True:
            try:
                return _outcome(call, self._http.send(_request(self._http, call, self._timeout_s)))
            except httpx.RequestError as error:
                raise _no_answer(error) from error
            except Refused as error:
                pause_s = patience.after(call, error)
            time.sleep(pause_s)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _awaited(
    build: Callable[Concatenate[Calls, P], Call[T]],
) -> Callable[Concatenate["AsyncNoteLLMClient", P], Coroutine[Any, Any, T]]:
    @wraps(build)
    async def method(self: "AsyncNoteLLMClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(build(_CALLS, *args, **kwargs))

    return method


class AsyncNoteLLMClient:
    """The service at ``url``, for asyncio. See `NoteLLMClient`."""

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = 0.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._http = httpx.AsyncClient(base_url=url, headers=_authorization(key), transport=transport)

    related = _awaited(Calls.related)
    tags = _awaited(Calls.tags)
    put = _awaited(Calls.put)
    put_many = _awaited(Calls.put_many)
    get = _awaited(Calls.get)
    fetch = _awaited(Calls.fetch)
    delete = _awaited(Calls.delete)
    record = _awaited(Calls.record)
    status = _awaited(Calls.status)

    async def put_all(self, notes: Iterable[BulkNote], *, size: int = MAX_BULK) -> AsyncIterator[BulkOut]:
        """See `NoteLLMClient.put_all`."""
        for call in bulks(notes, size):
            yield await self.send(call)

    async def send(self, call: Call[T]) -> T:
        """Make a call. Raises Refused and NoAnswer."""
        patience = _Patience(self._patience_s)
        while True:
            try:
                return _outcome(call, await self._http.send(_request(self._http, call, self._timeout_s)))
            except httpx.RequestError as error:
                raise _no_answer(error) from error
            except Refused as error:
                pause_s = patience.after(call, error)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Patience:
    """Whether a call that was refused is made again, and when."""

    def __init__(self, seconds: float) -> None:
        self._give_up = time.monotonic() + seconds

    def after(self, call: Call[Any], error: Refused) -> float:
        """Seconds to wait before the next try. Raises the error when there is none."""
        pause_s = error.retry_after_s
        if call.repeatable and pause_s is not None and time.monotonic() + pause_s < self._give_up:
            return pause_s
        raise error


def _no_answer(error: httpx.RequestError) -> NoAnswer:
    return NoAnswer(f"no service answers at {_place(error.request.url)}: {error or type(error).__name__}")


def _request(http: httpx.Client | httpx.AsyncClient, call: Call[Any], timeout_s: float) -> httpx.Request:
    return http.build_request(
        call.method,
        call.path,
        params=list(call.query) or None,
        headers=dict(call.headers),
        content=call.body,
        timeout=timeout_s + call.wait_s,
    )


def _outcome(call: Call[T], response: httpx.Response) -> T:
    if not (response.is_success or response.status_code == httpx.codes.NOT_MODIFIED):
        raise _refused(response)
    try:
        return call.read(response)
    except ValidationError as error:
        raise NoAnswer(f"what answers at {_place(response.url)} is not NoteLLM") from error


def _refused(response: httpx.Response) -> Refused:
    after = response.headers.get("Retry-After", "")
    retry_after_s = float(after) if after.isdecimal() else None
    try:
        error = ErrorOut.model_validate_json(response.content).error
    except ValidationError:
        return Refused(response.status_code, "", response.reason_phrase, "", retry_after_s)
    return Refused(response.status_code, error.code, error.message, error.request_id, retry_after_s)


def _authorization(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not (key and key.isascii() and key.isprintable()):
        raise ValueError("a key is visible ASCII characters")  # and is not shown
    return {"Authorization": f"Bearer {key}"}


def _place(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"
