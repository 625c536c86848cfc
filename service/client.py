"""A client of the HTTP API, blocking (`NoteLLM`) and asynchronous (`AsyncNoteLLM`), over one description of its calls.

::

    with NoteLLM("http://127.0.0.1:8000") as notellm:
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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, Generic, Literal, NotRequired, ParamSpec, Required, Self, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import orjson
from pydantic import BaseModel, ValidationError

from service.schemas import (
    MAX_BULK,
    BulkOut,
    ErrorOut,
    EventsOut,
    NoteOut,
    RejectedOut,
    RelatedOut,
    StatusOut,
    TagsOut,
    WrittenOut,
)

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 20.0  # longer than any deadline of the service
# A bulk ends here, too: a thousand of the longest notes are more than the service takes at once.
MAX_BULK_BYTES = 16 * 1024 * 1024

_JSON = {"Content-Type": "application/json"}
_NDJSON = {"Content-Type": "application/x-ndjson"}

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
P = ParamSpec("P")


class NoteFields(TypedDict, total=False):
    """A note to write; see the contract for the bounds. A title or a content is enough."""

    title: str
    content: str
    hashtags: Sequence[str]
    category: str | None
    author: str | None
    exposure: int
    created_at: str | None


class BulkNote(NoteFields, total=False):
    """A note of a bulk write."""

    note_id: Required[str]


class EventFields(TypedDict):
    """What a reader did with a note; ``ts`` is RFC 3339, or in seconds since 1970."""

    event_id: str
    user_id: str
    note_id: str
    source_note_id: NotRequired[str | None]
    type: Literal["view", "click", "like", "save"]
    ts: str | float


@dataclass(frozen=True, slots=True)
class Fetched:
    """A note as it is now, and its entity tag; None when it is as it was under the tag that was given."""

    note: NoteOut | None
    etag: str


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


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how its answer is read. A ``repeatable`` one does nothing more when it is sent again."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    wait_s: float = 0.0

    def outcome(self, response: httpx.Response) -> T:
        """What the service says. Raises Refused and NoAnswer."""
        if not (response.is_success or response.status_code == httpx.codes.NOT_MODIFIED):
            raise _refused(response)
        try:
            return self.read(response)
        except ValidationError as error:
            raise NoAnswer(f"what answers at {_place(response.url)} is not NoteLLM") from error


class Calls:
    """Every route of the contract as a call."""

    def related(
        self,
        note_id: str,
        *,
        k: int = 10,
        category: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        exclude_author: bool = False,
        diversity: float = 0.0,
        debias: float = 0.0,
        explain: bool = False,
    ) -> Call[RelatedOut]:
        """Notes related to a stored one, by descending score."""
        query = [
            ("k", str(k)),
            *(("category", one) for one in _several(category)),
            *(("exclude", one) for one in _several(exclude)),
            ("exclude_author", str(int(exclude_author))),
            ("diversity", str(diversity)),
            ("debias", str(debias)),
            ("explain", str(int(explain))),
        ]
        return Call("GET", f"{_note(note_id)}/related", _as(RelatedOut), query)

    def tags(
        self,
        title: str = "",
        content: str = "",
        *,
        hashtags: Sequence[str] = (),
        max_hashtags: int = 5,
        vocabulary: Literal["open", "known"] = "open",
        related: int = 0,
    ) -> Call[TagsOut]:
        """Hashtags, a category and, if wanted, related notes for a draft; ``hashtags`` are those it has."""
        draft = {
            "title": title,
            "content": content,
            "hashtags": hashtags,
            "max_hashtags": max_hashtags,
            "vocabulary": vocabulary,
            "related": related,
        }
        return _with_body(Call("POST", "/notes/tags", _as(TagsOut)), draft)

    def put(
        self,
        note_id: str,
        note: NoteFields,
        *,
        wait_s: float = 0.0,
        if_version: int | Literal["any"] | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Call[WrittenOut]:
        """Store a note, replacing the whole of an older one; wait up to ``wait_s`` (0..10) for it to be searchable."""
        conditions = _if_version(if_version) | ({"If-None-Match": "*"} if if_absent else {})
        return Call(
            "PUT",
            _note(note_id),
            _as(WrittenOut),
            [("wait", str(wait_s))] if wait_s else (),
            _JSON | conditions | _idempotency(idempotency_key),
            orjson.dumps(note),
            repeatable=not conditions or idempotency_key is not None,
            wait_s=wait_s,
        )

    def put_many(self, notes: Iterable[BulkNote], *, idempotency_key: str | None = None) -> Call[BulkOut]:
        """Store up to 1,000 notes in one request; those that are refused stand in the answer."""
        return _bulk([orjson.dumps(note) for note in notes], idempotency_key)

    def get(self, note_id: str) -> Call[NoteOut]:
        """A note, its version and status, and what the model suggests for it."""
        return Call("GET", _note(note_id), _as(NoteOut))

    def fetch(self, note_id: str, etag: str = "") -> Call[Fetched]:
        """A note and its entity tag; only the tag while the note is as it was under the one given."""
        return Call("GET", _note(note_id), _fetched, headers={"If-None-Match": etag} if etag else {})

    def delete(
        self, note_id: str, *, if_version: int | Literal["any"] | None = None, idempotency_key: str | None = None
    ) -> Call[None]:
        """Delete a note; from then on no answer contains it."""
        conditions = _if_version(if_version)
        return Call(
            "DELETE",
            _note(note_id),
            lambda _: None,
            headers=conditions | _idempotency(idempotency_key),
            repeatable=not conditions or idempotency_key is not None,
        )

    def record(self, events: Iterable[EventFields], *, idempotency_key: str | None = None) -> Call[EventsOut]:
        """Keep what readers did, up to 1,000 events; one that was sent before counts as a duplicate."""
        call = Call("POST", "/events", _as(EventsOut), headers=_idempotency(idempotency_key))
        return _with_body(call, {"events": list(events)})

    def status(self) -> Call[StatusOut]:
        """Notes by status, the queue, the index, the model, and how fresh the index is."""
        return Call("GET", "/status", _as(StatusOut))


_CALLS = Calls()


def _blocking(build: Callable[Concatenate[Calls, P], Call[T]]) -> Callable[Concatenate["NoteLLM", P], T]:
    @wraps(build)
    def method(self: "NoteLLM", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(_CALLS, *args, **kwargs))

    return method


class NoteLLM:
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
        for start, lines in _bulks(notes, size):
            yield _shifted(self.send(_bulk(lines)), start)

    def send(self, call: Call[T]) -> T:
        """Make a call. Raises Refused and NoAnswer."""
        patience = _Patience(self._patience_s)
        while True:
            try:
                return call.outcome(self._http.send(_request(self._http, call, self._timeout_s)))
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
) -> Callable[Concatenate["AsyncNoteLLM", P], Coroutine[Any, Any, T]]:
    @wraps(build)
    async def method(self: "AsyncNoteLLM", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(build(_CALLS, *args, **kwargs))

    return method


class AsyncNoteLLM:
    """The service at ``url``, for asyncio. See `NoteLLM`."""

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
        """See `NoteLLM.put_all`."""
        for start, lines in _bulks(notes, size):
            yield _shifted(await self.send(_bulk(lines)), start)

    async def send(self, call: Call[T]) -> T:
        """Make a call. Raises Refused and NoAnswer."""
        patience = _Patience(self._patience_s)
        while True:
            try:
                return call.outcome(await self._http.send(_request(self._http, call, self._timeout_s)))
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


def _note(note_id: str) -> str:
    path = quote(note_id, safe=":")
    # Dots alone are an id here, and directories to whatever tidies a URL on the way.
    return f"/notes/{path if path.strip('.') else path.replace('.', '%2E')}"


def _several(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _if_version(version: int | Literal["any"] | None) -> dict[str, str]:
    match version:
        case None:
            return {}
        case "any":
            return {"If-Match": "*"}
        case _:
            return {"If-Match": f'"{version}"'}


def _idempotency(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def _as(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: model.model_validate_json(response.content)


def _fetched(response: httpx.Response) -> Fetched:
    changed = response.status_code != httpx.codes.NOT_MODIFIED
    note = NoteOut.model_validate_json(response.content) if changed else None
    return Fetched(note, response.headers.get("ETag", ""))


def _with_body(call: Call[T], body: object) -> Call[T]:
    return replace(call, headers={**_JSON, **call.headers}, body=orjson.dumps(body))


def _bulk(lines: Sequence[bytes], idempotency_key: str | None = None) -> Call[BulkOut]:
    headers = _NDJSON | _idempotency(idempotency_key)
    # No line at all is no NDJSON.
    return Call("POST", "/notes", _as(BulkOut), headers=headers, body=b"\n".join(lines) or b"[]")


def _bulks(notes: Iterable[BulkNote], size: int) -> Iterator[tuple[int, list[bytes]]]:
    """The notes as lines, at most ``size`` and 16 MiB a bulk, each with the position of its first."""
    start, lines, held_bytes = 0, list[bytes](), 0
    for line in map(orjson.dumps, notes):
        if lines and (len(lines) == size or held_bytes + len(line) > MAX_BULK_BYTES):
            yield start, lines
            start, lines, held_bytes = start + len(lines), [], 0
        lines.append(line)
        held_bytes += len(line) + 1
    if lines:
        yield start, lines


def _shifted(answer: BulkOut, start: int) -> BulkOut:
    moved = [RejectedOut(position=start + one.position, code=one.code, message=one.message) for one in answer.rejected]
    return BulkOut(accepted=answer.accepted, rejected=moved)
