"""A client of the HTTP API, blocking (`NoteLLMClient`) and for asyncio (`AsyncNoteLLMClient`).

::

    with NoteLLMClient("http://127.0.0.1:8000") as notellm:
        notellm.put("n1", {"title": "Three days in Kyoto"}, wait_s=10)
        for item in notellm.related("n1", k=5).items:
            print(item.score, item.title)

Every error is a ClientError, see `service.client.errors`.
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
from .bodies import BulkNote
from .calls import Call, Calls, bulks
from .connection import Connection
from .errors import NoAnswer, Refused

T = TypeVar("T")
P = ParamSpec("P")
_CALLS = Calls()


def _blocking(build: Callable[Concatenate[Calls, P], Call[T]]) -> Callable[Concatenate["NoteLLMClient", P], T]:
    @wraps(build)
    def method(self: "NoteLLMClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(_CALLS, *args, **kwargs))

    return method


class NoteLLMClient(Connection[httpx.Client, httpx.BaseTransport]):
    """The service at ``url``, blocking; may be used by several threads.

    Args:
        key: of the service's key file, when keys are on.
        timeout_s: how long an answer may take, not counting the ``wait_s`` of a call.
        patience_s: how long in all a call is retried that is refused with ``Retry-After``, each time after that
            pause. A conditional write is retried only with an idempotency key: without one, nobody could tell whether
            the first try changed the version.
        transport: how requests travel; for tests.
    """

    _new_http = httpx.Client
    _new_transport = httpx.HTTPTransport

    related = _blocking(Calls.related)
    related_to = _blocking(Calls.related_to)
    related_batch = _blocking(Calls.related_batch)
    search = _blocking(Calls.search)
    tags = _blocking(Calls.tags)
    embed = _blocking(Calls.embed)
    put = _blocking(Calls.put)
    patch = _blocking(Calls.patch)
    put_many = _blocking(Calls.put_many)
    get = _blocking(Calls.get)
    list = _blocking(Calls.list)
    fetch = _blocking(Calls.fetch)
    delete = _blocking(Calls.delete)
    record = _blocking(Calls.record)
    erase_user = _blocking(Calls.erase_user)
    hashtags = _blocking(Calls.hashtags)
    trending = _blocking(Calls.trending)
    hashtag_rules = _blocking(Calls.hashtag_rules)
    alias_hashtag = _blocking(Calls.alias_hashtag)
    block_hashtag = _blocking(Calls.block_hashtag)
    remove_hashtag_rule = _blocking(Calls.remove_hashtag_rule)
    status = _blocking(Calls.status)
    outcomes = _blocking(Calls.outcomes)
    experiments = _blocking(Calls.experiments)
    experiment = _blocking(Calls.experiment)
    learning = _blocking(Calls.learning)

    def put_all(self, notes: Iterable[BulkNote], *, size: int = MAX_BULK) -> Iterator[BulkOut]:
        """Store any number of notes, ``size`` of them a request, and yield each answer as it comes.

        Positions of refused notes count over all notes.
        """
        for call in bulks(notes, size):
            yield self.send(call)

    def send(self, call: Call[T]) -> T:
        """Make a call. Raises Refused and NoAnswer."""
        patience = _Patience(self._patience_s)
        while True:
            try:
                return _outcome(call, self._http.send(self._request(call)))
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


class AsyncNoteLLMClient(Connection[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """The service at ``url``, for asyncio. See `NoteLLMClient`."""

    _new_http = httpx.AsyncClient
    _new_transport = httpx.AsyncHTTPTransport

    related = _awaited(Calls.related)
    related_to = _awaited(Calls.related_to)
    related_batch = _awaited(Calls.related_batch)
    search = _awaited(Calls.search)
    tags = _awaited(Calls.tags)
    embed = _awaited(Calls.embed)
    put = _awaited(Calls.put)
    patch = _awaited(Calls.patch)
    put_many = _awaited(Calls.put_many)
    get = _awaited(Calls.get)
    list = _awaited(Calls.list)
    fetch = _awaited(Calls.fetch)
    delete = _awaited(Calls.delete)
    record = _awaited(Calls.record)
    erase_user = _awaited(Calls.erase_user)
    hashtags = _awaited(Calls.hashtags)
    trending = _awaited(Calls.trending)
    hashtag_rules = _awaited(Calls.hashtag_rules)
    alias_hashtag = _awaited(Calls.alias_hashtag)
    block_hashtag = _awaited(Calls.block_hashtag)
    remove_hashtag_rule = _awaited(Calls.remove_hashtag_rule)
    status = _awaited(Calls.status)
    outcomes = _awaited(Calls.outcomes)
    experiments = _awaited(Calls.experiments)
    experiment = _awaited(Calls.experiment)
    learning = _awaited(Calls.learning)

    async def put_all(self, notes: Iterable[BulkNote], *, size: int = MAX_BULK) -> AsyncIterator[BulkOut]:
        """See `NoteLLMClient.put_all`."""
        for call in bulks(notes, size):
            yield await self.send(call)

    async def send(self, call: Call[T]) -> T:
        """Make a call. Raises Refused and NoAnswer."""
        patience = _Patience(self._patience_s)
        while True:
            try:
                return _outcome(call, await self._http.send(self._request(call)))
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
    """Whether a refused call is retried, and when."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def after(self, call: Call[Any], error: Refused) -> float:
        """Seconds to wait before the next try. Raises the error when there is no other try."""
        pause_s = error.retry_after_s
        if call.repeatable and pause_s is not None and time.monotonic() + pause_s < self._deadline:
            return pause_s
        raise error


def _no_answer(error: httpx.RequestError) -> NoAnswer:
    return NoAnswer(f"no service answers at {_place(error.request.url)}: {error or type(error).__name__}")


def _outcome(call: Call[T], response: httpx.Response) -> T:
    if not (response.is_success or response.status_code == httpx.codes.NOT_MODIFIED):
        raise _refused(response)
    try:
        return call.decode(response)
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


def _place(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"
