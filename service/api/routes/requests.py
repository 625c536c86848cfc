"""What every route takes out of its request, and what it answers with."""

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, cast
from urllib.parse import unquote

import orjson
from fastapi import Path, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from service.api.queries import parse_query
from service.contract.fields import ID_PATTERN
from service.errors import (
    BadRequest,
    IndexUnavailable,
    Internal,
    Malformed,
    TooLarge,
    UnsupportedMedia,
    WorkerUnavailable,
)
from service.keys import Key
from service.recommend.recommender import Recommender
from service.setting_groups import HttpSettings
from service.store.attribution.answers import Scenario, ServedAnswer, new_answer_id
from service.store.attribution.buffer import AnswerBuffer
from service.store.interfaces import Answer, Answers

JSON = "application/json"
REPLAYED = "Idempotency-Replayed"
READER, ANSWER = "X-Reader-ID", "X-Answer-ID"
UNKNOWN = "X-Unknown-Attributes"
# Errors that another model may not have.
_OF_MODEL = {IndexUnavailable.code, WorkerUnavailable.code, Internal.code}
_MAX_KEY_CHARS = 255
_ANSWER = re.compile(r"[!-~]{1,64}")
_READER = re.compile(r"[!-~]{1,1536}")  # 128 characters of four bytes, percent-encoded

P = TypeVar("P", bound=BaseModel)
Id = Annotated[str, Path(pattern=ID_PATTERN, description="1 to 128 of A-Z a-z 0-9 . _ ~ : -")]


# Not dependencies of FastAPI: resolving one takes longer than serializing ten notes.
def parameters_of(request: Request, model: type[P]) -> P:
    """The query parameters. Raises BadRequest."""
    return parse_query(model, request.scope["query_string"])


def recommender_of(request: Request, reader: str | None = None) -> Recommender:
    """The recommender of the model that is active now; for a reader in an experiment, that of their arm."""
    return cast(Recommender, request.app.state.recommender(reader))


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers a request, or one of a batch, and for whom: of this its record in the log of answers is made.

    ``reader`` is empty where the request names none.
    """

    recommender: Recommender
    buffer: AnswerBuffer
    reader: str = ""
    experiment: str = ""
    arm: str = ""
    started: float = field(default_factory=time.perf_counter)

    def log(self, scenario: Scenario, digest: str, ids: Sequence[str], *, note_id: str = "", category: str = "") -> str:
        """Log an answer with these ids, in order, to rules of this digest; returns its own id, which events name."""
        model, seconds = self.recommender.fingerprint, self._seconds
        answer_id = new_answer_id(scenario, model, self.arm)
        source = scenario, model, ids, digest, self.reader, self.experiment, self.arm
        self.buffer.add(ServedAnswer(answer_id, time.time(), *source, note_id, category, seconds))
        if scenario == "tags":
            self.buffer.counts.answered(model, "tags", seconds)
        else:
            self.buffer.counts.answered(model, "list", seconds, empty=not ids)
        return answer_id

    def log_failure(self, code: str) -> None:
        """Count an error of ours in the place of an answer; log it if the reader is in an experiment, for the arm."""
        model = self.recommender.fingerprint
        if code in _OF_MODEL:
            self.buffer.counts.failed(model)
        if self.arm:
            answer_id = new_answer_id("failed", model, self.arm)
            source = "", self.reader, self.experiment, self.arm
            failure = ServedAnswer(answer_id, time.time(), "failed", model, [code], *source, seconds=self._seconds)
            self.buffer.add(failure)

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self.started


def answering_of(request: Request, for_user: str | None = None) -> Answering:
    """What answers this request; ``for_user`` is the reader whom its rules name, else its headers may.

    The state of the request keeps it, for an error that comes in place of the answer. Raises BadRequest.
    """
    named = reader_of(request)
    reader = for_user or named
    recommender = recommender_of(request, reader)
    assignment = recommender.assignment
    place = (assignment.experiment, assignment.arm.name) if assignment else ()
    answering = Answering(recommender, cast(AnswerBuffer, request.app.state.buffer), reader or "", *place)
    request.state.answering = answering
    return answering


def reader_of(request: Request) -> str | None:
    """The reader whom the headers name, if they name one. Raises BadRequest."""
    header = request.headers.get(READER)
    if header is None:
        return None
    if not _READER.fullmatch(header):
        raise BadRequest(f"{READER} is 1 to 1536 visible ASCII characters, others percent-encoded")
    return unquote(header)


def answer_named(request: Request) -> str | None:
    """The answer with whose suggestions a note is written, if the request names it. Raises BadRequest.

    To be called before the note is stored: then the header of its reader is known to be right, too.
    """
    header = request.headers.get(ANSWER)
    if header is not None and not _ANSWER.fullmatch(header):
        raise BadRequest(f"{ANSWER} is 1 to 64 visible ASCII characters")
    reader_of(request)
    return header


def log_written(request: Request, answer_id: str | None, note_id: str, hashtags: Sequence[str]) -> None:
    """A note was stored: log its hashtags with the answer that suggested some, if the request named it."""
    if answer_id is not None:
        by = answering_of(request)
        record = ServedAnswer(answer_id, time.time(), "written", by.recommender.fingerprint, hashtags)
        by.buffer.add(record._replace(reader=by.reader, note_id=note_id))


def limits_of(request: Request) -> HttpSettings:
    """The settings that say how large a body may be."""
    return cast(HttpSettings, request.app.state.http)


def check_media_type(request: Request, taken: Sequence[str]) -> None:
    """Raises UnsupportedMedia unless the body is declared as one of these types."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in taken:
        raise UnsupportedMedia(f"a body here is declared as Content-Type: {' or '.join(taken)}")


async def once(request: Request, body: bytes, run: Callable[[], Awaitable[Answer]]) -> Response:
    """The answer of ``run``, or the first one to this idempotency key of this caller."""
    key = request.headers.get("idempotency-key")
    if key is None:
        answer, replayed = await run(), False
    else:
        if not (key.isascii() and key.isprintable() and 0 < len(key) <= _MAX_KEY_CHARS):
            raise BadRequest("an idempotency key is 1 to 255 visible ASCII characters")
        identity = [
            request.method,
            request.scope["path"],
            request.scope["query_string"],
            request.headers.get("if-match"),
            request.headers.get("if-none-match"),
            body,
        ]
        caller = cast(Key | None, getattr(request.state, "key", None))
        answers = cast(Answers, request.app.state.answers)
        answer, replayed = await answers.once(f"{caller.id if caller else ''} {key}", repr(identity).encode(), run)
    headers = {REPLAYED: "true"} if replayed else {}
    if answer.etag:
        headers["ETag"] = answer.etag
    return Response(answer.body, answer.status, headers, JSON if answer.body else None)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body; refused as soon as it is known to be too large.

    `service.server.admission` limits the time it takes, and unpacks gzip: what comes out is what counts.
    """
    declared = "" if "content-encoding" in request.headers else request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > max_bytes:
        raise TooLarge(f"a body here is at most {max_bytes} bytes")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise TooLarge(f"a body here is at most {max_bytes} bytes")
    except ClientDisconnect:
        raise Malformed("the body is incomplete") from None
    return bytes(body)


def json_answer(content: object, headers: Mapping[str, str] | None = None) -> Response:
    """200 with this content."""
    return Response(orjson.dumps(content), headers=headers, media_type=JSON)


def named_unknown(names: Sequence[str]) -> dict[str, str]:
    """The header that names the attributes in filters that no note has."""
    return {UNKNOWN: ", ".join(names)} if names else {}
