"""Every route of the contract as a call: its request, and how its answer is decoded. See `service.client.client`."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from ..contract.embeddings import EmbeddingsOut
from ..contract.events import EventsOut
from ..contract.experiments import ExperimentsOut, ReportedExperimentOut
from ..contract.hashtags import HashtagsOut, RuleOut, RulesOut, TrendsOut
from ..contract.learning import LearningOut
from ..contract.notes import BulkOut, NoteOut, NotesOut, WrittenOut
from ..contract.outcomes import OutcomesOut
from ..contract.related import AnswersOut, ListOut, RelatedOut
from ..contract.status import StatusOut
from ..contract.tags import TagsOut
from .bodies import BulkNote, EventFields, ListRules, NoteChanges, NoteFields, RelatedRules, TextFields

# A thousand of the longest notes are more than the service takes at once: `bulks` ends a bulk here, too.
MAX_BULK_BYTES = 16 * 1024 * 1024

_MOST_IN_A_QUERY = 50  # ids; more do not fit into a request line everywhere

_JSON = {"Content-Type": "application/json"}
_MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
_NDJSON = {"Content-Type": "application/x-ndjson"}

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A note and its entity tag; the note is None when its tag is still the given one."""

    note: NoteOut | None
    etag: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how its answer is decoded. Sending a ``repeatable`` request again changes nothing."""

    method: str
    path: str
    decode: Callable[[httpx.Response], T]
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    wait_s: float = 0.0


class Calls:
    """Every route of the contract as a call."""

    def related(self, note_id: str, *, reader: str | None = None, **rules: Unpack[RelatedRules]) -> Call[RelatedOut]:
        """Notes related to a stored one, by descending score; ``reader`` decides on the arm of an experiment."""
        path, headers = f"{_note(note_id)}/related", _reader(reader)
        if "boosts" in rules or len(_several(rules.get("exclude", ()))) > _MOST_IN_A_QUERY:
            return _with_body(Call("POST", path, _as(RelatedOut), headers=headers), _rules(rules))
        return Call("GET", path, _as(RelatedOut), _query(rules), headers)

    def related_to(
        self,
        positives: Sequence[str] = (),
        *,
        negatives: Sequence[str] = (),
        text: TextFields | None = None,
        reader: str | None = None,
        **rules: Unpack[RelatedRules],
    ) -> Call[ListOut]:
        """Notes near several notes and a text, and far from the ``negatives``; none of these stands in the answer."""
        seeds = {"positives": list(positives), "negatives": list(negatives), "text": text}
        call = Call("POST", "/related", _as(ListOut), headers=_reader(reader))
        return _with_body(call, {**seeds, **_rules(rules)})

    def related_batch(self, requests: Sequence[Mapping[str, object]], *, reader: str | None = None) -> Call[AnswersOut]:
        """Up to 64 requests at once: bodies of `related_to`, or of `related` with a ``note_id``; an answer for each."""
        call = Call("POST", "/related/batch", _as(AnswersOut), headers=_reader(reader))
        return _with_body(call, {"requests": list(requests)})

    def search(self, q: str, *, reader: str | None = None, **rules: Unpack[ListRules]) -> Call[ListOut]:
        """Live notes by the meaning of some words."""
        return _with_body(Call("POST", "/search", _as(ListOut), headers=_reader(reader)), {"q": q, **_rules(rules)})

    def tags(
        self,
        title: str = "",
        content: str = "",
        *,
        hashtags: Sequence[str] = (),
        max_hashtags: int = 5,
        vocabulary: Literal["open", "known"] = "open",
        related: int = 0,
        reader: str | None = None,
    ) -> Call[TagsOut]:
        """Hashtags, a category and ``related`` related notes for a draft; ``hashtags`` are its own."""
        draft = {
            "title": title,
            "content": content,
            "hashtags": hashtags,
            "max_hashtags": max_hashtags,
            "vocabulary": vocabulary,
            "related": related,
        }
        return _with_body(Call("POST", "/notes/tags", _as(TagsOut), headers=_reader(reader)), draft)

    def embed(self, texts: str | Sequence[str]) -> Call[EmbeddingsOut]:
        """The vectors of up to 64 texts, in the space of the index, each as a list of numbers."""
        wanted = {"input": texts if isinstance(texts, str) else list(texts)}
        return _with_body(Call("POST", "/v1/embeddings", _as(EmbeddingsOut)), wanted)

    def put(
        self,
        note_id: str,
        note: NoteFields,
        *,
        wait_s: float = 0.0,
        if_version: int | Literal["any"] | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
        reader: str | None = None,
        answer_id: str | None = None,
    ) -> Call[WrittenOut]:
        """Store a note, replacing the whole of an older one; wait up to ``wait_s`` (0..10) for it to be searchable.

        ``answer_id`` is that of the suggestions (`tags`) with which ``reader`` wrote it.
        """
        conditions = _if_version(if_version) | ({"If-None-Match": "*"} if if_absent else {})
        return Call(
            "PUT",
            _note(note_id),
            _as(WrittenOut),
            [("wait", str(wait_s))] if wait_s else (),
            _JSON | conditions | _idempotency(idempotency_key) | _reader(reader) | _answer(answer_id),
            _json(note),
            repeatable=not conditions or idempotency_key is not None,
            wait_s=wait_s,
        )

    def patch(
        self,
        note_id: str,
        changes: NoteChanges,
        *,
        wait_s: float = 0.0,
        if_version: int | Literal["any"] | None = None,
        idempotency_key: str | None = None,
        reader: str | None = None,
        answer_id: str | None = None,
    ) -> Call[WrittenOut]:
        """Change parts of a note and leave the others; see `put` for the rest."""
        conditions = _if_version(if_version)
        return Call(
            "PATCH",
            _note(note_id),
            _as(WrittenOut),
            [("wait", str(wait_s))] if wait_s else (),
            _MERGE_PATCH | conditions | _idempotency(idempotency_key) | _reader(reader) | _answer(answer_id),
            _json(changes),
            repeatable=not conditions or idempotency_key is not None,
            wait_s=wait_s,
        )

    def put_many(self, notes: Iterable[BulkNote], *, idempotency_key: str | None = None) -> Call[BulkOut]:
        """Store up to 1,000 notes in one request; the answer lists the refused notes."""
        return _bulk([_json(note) for note in notes], idempotency_key=idempotency_key)

    def get(self, note_id: str) -> Call[NoteOut]:
        """A note, its version and status, and what the model suggests for it."""
        return Call("GET", _note(note_id), _as(NoteOut))

    def list(self, *, limit: int = 100, after: str = "", filter: str = "") -> Call[NotesOut]:  # noqa: A002
        """Live notes in byte order of their ids, after one that need not exist; only those that match a filter.

        A page may hold fewer notes than ``limit``: ``next`` says what the next page comes after, None at the end.
        """
        named = (("after", after), ("filter", filter))
        query = [("limit", str(limit)), *((name, value) for name, value in named if value)]
        return Call("GET", "/notes", _as(NotesOut), query)

    def fetch(self, note_id: str, etag: str = "") -> Call[Fetched]:
        """A note and its entity tag; only the tag when it is still the given one."""
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
        """Store up to 1,000 events of readers; an event that was sent before counts as a duplicate."""
        call = Call("POST", "/events", _as(EventsOut), headers=_idempotency(idempotency_key))
        return _with_body(call, {"events": list(events)})

    def erase_user(self, user_id: str, *, idempotency_key: str | None = None) -> Call[None]:
        """Remove all that is kept of a reader; needs the scope ``admin``."""
        path, headers = f"/users/{_escaped(user_id)}", _idempotency(idempotency_key)
        return Call("DELETE", path, lambda _: None, headers=headers)

    def hashtags(self, prefix: str = "", *, limit: int = 100, after: str = "") -> Call[HashtagsOut]:
        """Hashtags in use, most used first; ``after`` takes ``next`` of the page before."""
        query = [("prefix", prefix), ("limit", str(limit)), ("after", after)]
        return Call("GET", "/hashtags", _as(HashtagsOut), query)

    def trending(self, *, days: int = 7, limit: int = 100) -> Call[TrendsOut]:
        """Hashtags that the notes of the last days carry more often than those before."""
        query = [("days", str(days)), ("limit", str(limit))]
        return Call("GET", "/hashtags/trending", _as(TrendsOut), query)

    def hashtag_rules(self) -> Call[RulesOut]:
        """The aliases and the blocked hashtags."""
        return Call("GET", "/hashtags/rules", _as(RulesOut))

    def alias_hashtag(self, tag: str, alias_of: str, *, idempotency_key: str | None = None) -> Call[RuleOut]:
        """Have ``alias_of`` suggested in the place of a hashtag; needs the scope ``admin``."""
        call = Call("PUT", f"/hashtags/{_escaped(tag)}", _as(RuleOut), headers=_idempotency(idempotency_key))
        return _with_body(call, {"alias_of": alias_of})

    def block_hashtag(self, tag: str, *, idempotency_key: str | None = None) -> Call[RuleOut]:
        """Have a hashtag never suggested; needs the scope ``admin``."""
        call = Call("PUT", f"/hashtags/{_escaped(tag)}", _as(RuleOut), headers=_idempotency(idempotency_key))
        return _with_body(call, {"blocked": True})

    def remove_hashtag_rule(self, tag: str, *, idempotency_key: str | None = None) -> Call[None]:
        """Remove the rule of a hashtag, if it has one; needs the scope ``admin``."""
        path, headers = f"/hashtags/{_escaped(tag)}", _idempotency(idempotency_key)
        return Call("DELETE", path, lambda _: None, headers=headers)

    def outcomes(self, *, days: int = 7) -> Call[OutcomesOut]:
        """How often what was shown was clicked in the last days, by the events that name an answer."""
        return Call("GET", "/outcomes", _as(OutcomesOut), [("days", str(days))])

    def experiments(self) -> Call[ExperimentsOut]:
        """All experiments, the last one first."""
        return Call("GET", "/experiments", _as(ExperimentsOut))

    def experiment(self, name: str) -> Call[ReportedExperimentOut]:
        """One experiment, with the report that was made of it last."""
        return Call("GET", f"/experiments/{_escaped(name)}", _as(ReportedExperimentOut))

    def learning(self) -> Call[LearningOut]:
        """The last turns of learning."""
        return Call("GET", "/learning", _as(LearningOut))

    def status(self) -> Call[StatusOut]:
        """Notes by status, the queue, the index, the model, and how fresh the index is."""
        return Call("GET", "/status", _as(StatusOut))


def bulks(notes: Iterable[BulkNote], size: int) -> Iterator[Call[BulkOut]]:
    """Calls that write any number of notes, at most ``size`` and 16 MiB each; positions count over all notes."""
    start, lines, bulk_bytes = 0, list[bytes](), 0
    for line in map(_json, notes):
        if lines and (len(lines) == size or bulk_bytes + len(line) > MAX_BULK_BYTES):
            yield _bulk(lines, start)
            start, lines, bulk_bytes = start + len(lines), [], 0
        lines.append(line)
        bulk_bytes += len(line) + 1
    if lines:
        yield _bulk(lines, start)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _note(note_id: str) -> str:
    return f"/notes/{_escaped(note_id)}"


def _escaped(text: str) -> str:
    """One part of a path."""
    part = quote(text, safe=":")
    # It may be dots alone, which httpx and proxies would resolve as directories.
    return part if part.strip(".") else part.replace(".", "%2E")


def _rules(rules: Mapping[str, object]) -> dict[str, object]:
    """Rules as a body has them, where one category may stand for a list of one."""
    several = {name: list(_several(rules[name])) for name in ("category", "exclude") if name in rules}
    return {**rules, **several}


def _query(rules: Mapping[str, object]) -> list[tuple[str, str]]:
    """Rules as a query string has them."""
    return [
        (name, str(int(one)) if isinstance(one, bool) else str(one))
        for name, value in _rules(rules).items()
        if value is not None
        for one in (value if isinstance(value, list) else [value])
    ]


def _several(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _if_version(version: int | Literal["any"] | None) -> dict[str, str]:
    match version:
        case None:
            return {}
        case "any":
            return {"If-Match": "*"}
        case _:
            return {"If-Match": f'"{version}"'}


def _reader(reader: str | None) -> dict[str, str]:
    return {} if reader is None else {"X-Reader-ID": quote(reader, safe="")}


def _answer(answer_id: str | None) -> dict[str, str]:
    return {} if answer_id is None else {"X-Answer-ID": answer_id}


def _idempotency(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def _as(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: model.model_validate_json(response.content)


def _fetched(response: httpx.Response) -> Fetched:
    changed = response.status_code != httpx.codes.NOT_MODIFIED
    note = NoteOut.model_validate_json(response.content) if changed else None
    return Fetched(note, response.headers.get("ETag", ""))


def _with_body(call: Call[T], body: object) -> Call[T]:
    return replace(call, headers={**_JSON, **call.headers}, body=_json(body))


def _bulk(lines: Sequence[bytes], start: int = 0, idempotency_key: str | None = None) -> Call[BulkOut]:
    """The notes as NDJSON; the first is the one at ``start`` among all of them."""

    def decode(response: httpx.Response) -> BulkOut:
        answer = BulkOut.model_validate_json(response.content)
        moved = [one.model_copy(update={"position": start + one.position}) for one in answer.rejected]
        return BulkOut(accepted=answer.accepted, rejected=moved)

    headers = _NDJSON | _idempotency(idempotency_key)
    # An empty body is no NDJSON.
    return Call("POST", "/notes", decode, headers=headers, body=b"\n".join(lines) or b"[]")
