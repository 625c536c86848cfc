"""The store's seams in memory, held to the same contract tests as those on Redis. Each can hang and fail."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import overload

from indexer.types import IndexedVector
from model.note import Note
from model.text.hashtags import fold
from model.text.suggestions import spelled
from service.contract.fields import Attribute
from service.errors import KeyReused, NotAsExpected, NoteLLMError, QueueFull, StillRunning, StoreUnavailable
from service.store.attribution.outcomes import Outcomes, fields_of, outcomes_of
from service.store.interfaces import (
    Answer,
    Conflict,
    Counts,
    Expected,
    Page,
    Refusal,
    Suggestion,
    TooManyNames,
    View,
)
from service.store.records import SEEN_MOST, SEEN_S, Event, StoredNote
from service.store.schema import MOST_ATTRIBUTE_NAMES


class Faults:
    """How a twin fails: it refuses while ``down``, never answers while ``hangs``, waits while ``open`` is not set."""

    def __init__(self) -> None:
        self.down = False
        self.hangs = False
        self.open = asyncio.Event()
        self.open.set()

    async def reached(self) -> None:
        """Return when the twin answers. Raises StoreUnavailable."""
        if self.hangs:
            await asyncio.Event().wait()
        await self.open.wait()
        if self.down:
            raise StoreUnavailable("the store does not answer")


class MemoryStore(Faults):
    """`NoteStore` in a dict; ``jobs`` are the notes that wait for a worker, with their versions.

    ``moved`` are those whose prediction is of a new version, of which an index has to hear.
    """

    def __init__(self, max_queue: int = 1_000_000) -> None:
        super().__init__()
        self.jobs: list[tuple[str, int]] = []
        self.moved: list[tuple[str, int]] = []
        self._max_queue = max_queue
        self._records: dict[str, StoredNote] = {}
        self._suggestions: dict[str, Suggestion] = {}
        self._vectors: dict[str, IndexedVector] = {}
        self._log: list[str] = []
        self.views = 0
        self.shown: Counter[str] = Counter()

    async def put(self, notes: Sequence[StoredNote], expected: Expected = None) -> list[int | Refusal]:
        """See `NoteStore`."""
        await self.reached()
        if expected is not None:
            self._expect(notes[0].note.id, expected)
        seen = Counter(record.note.id for record in notes)
        needed = sum(seen[record.note.id] > 1 or self._needs_job(record) for record in notes)
        if needed and len(self.jobs) + needed > self._max_queue:
            raise QueueFull("too many notes wait to be embedded")
        return [self._put(record) for record in notes]

    async def delete(self, note_id: str, expected: Expected = None) -> bool:
        """See `NoteStore`."""
        await self.reached()
        old = self._records.get(note_id)
        if old and expected is not None:
            self._expect(note_id, expected)
        if old and not old.deleted:
            self._log.append(note_id)
            del self.shown[note_id]
            self._records[note_id] = StoredNote(Note(note_id), old.version + 1, deleted=True)
            self._suggestions.pop(note_id, None)
            self._vectors.pop(note_id, None)
        return old is not None

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        """See `NoteStore`."""
        await self.reached()
        return [self._counted(self._records.get(note_id)) for note_id in note_ids]

    async def view(self, note_ids: Sequence[str], since: str | None) -> View:
        """See `NoteStore`."""
        self.views += 1
        records = await self.get(note_ids)
        end = len(self._log)
        return View(records, None if since is None else self._log[int(since) : end], str(end) if end else None)

    async def page(self, after: str, limit: int) -> Page:
        """See `NoteStore`."""
        await self.reached()
        live = sorted(id_ for id_, record in self._records.items() if id_ > after and not record.deleted)
        records = [self._counted(self._records[note_id]) for note_id in live[:limit]]
        return Page(records, records[-1].note.id if len(live) > limit else None)

    async def suggestion(self, note_id: str, fingerprint: str) -> Suggestion | None:  # noqa: ARG002 - it knows one model
        """See `NoteStore`."""
        await self.reached()
        return self._suggestions.get(note_id)

    async def suggestions(self, note_ids: Sequence[str], fingerprint: str) -> list[Suggestion | None]:
        """See `NoteStore`."""
        return [await self.suggestion(note_id, fingerprint) for note_id in note_ids]

    async def vector(self, note_id: str, fingerprint: str) -> IndexedVector | None:  # noqa: ARG002
        """See `NoteStore`."""
        await self.reached()
        return self._vectors.get(note_id)

    async def counts(self, fingerprint: str) -> Counts:  # noqa: ARG002
        """See `NoteStore`."""
        await self.reached()
        live = sum(not record.deleted for record in self._records.values())
        failed = sum(suggestion.failure is not None for suggestion in self._suggestions.values())
        return Counts(live, failed, len(self.jobs), oldest_job_s=0.5 if self.jobs else 0.0)

    async def attribute_types(self) -> dict[str, str]:
        """See `NoteStore`."""
        await self.reached()
        return {name: _type(value) for record in self._records.values() for name, value in record.attributes.items()}

    async def spellings(self, tags: Sequence[str]) -> list[str | None]:
        """See `NoteStore`."""
        await self.reached()
        shown = self.counted()
        live = [spelled(record.note.hashtags) for record in shown]
        counts = [Counter(written[fold(tag)] for written in live if fold(tag) in written) for tag in tags]
        return [max(count, key=lambda spelling: (count[spelling], spelling), default=None) for count in counts]

    @overload
    def _counted(self, record: StoredNote) -> StoredNote: ...
    @overload
    def _counted(self, record: None) -> None: ...
    def _counted(self, record: StoredNote | None) -> StoredNote | None:
        return record and replace(record, shown=self.shown[record.note.id])

    def counted(self) -> list[StoredNote]:
        """The records whose hashtags count: neither deleted nor hidden."""
        return [record for record in self._records.values() if not (record.deleted or record.hidden)]

    def suggest(self, note_id: str, suggestion: Suggestion) -> None:
        """Plays the worker: stores its prediction or failure."""
        self._suggestions[note_id] = suggestion

    def predict(self, note_id: str, indexed: IndexedVector) -> None:
        """Plays the worker: stores the vector of its prediction."""
        self._vectors[note_id] = indexed

    def _put(self, record: StoredNote) -> int | Refusal:
        note_id = record.note.id
        old = self._records.get(note_id)
        if old and _same(record, old):
            return old.version
        if refusal := self._conflict(record) or self._one_too_many(record):
            return refusal
        version = old.version + 1 if old else 1
        predicted = self._predicted(record)
        self._records[note_id] = replace(record, version=version, shown=0)
        if predicted:
            self.moved.append((note_id, version))
            self._suggestions[note_id] = replace(predicted, version=version)
            if note_id in self._vectors:
                self._vectors[note_id] = replace(self._vectors[note_id], version=version)
        else:
            self.jobs.append((note_id, version))
        self._log.append(note_id)
        return version

    def _needs_job(self, record: StoredNote) -> bool:
        old = self._records.get(record.note.id)
        return not (old and _same(record, old)) and self._predicted(record) is None

    def _predicted(self, record: StoredNote) -> Suggestion | None:
        """The prediction for the version before, if this one says the same to a model."""
        old, suggestion = self._records.get(record.note.id), self._suggestions.get(record.note.id)
        if old is None or old.deleted or _text(old) != _text(record):
            return None
        return suggestion if suggestion and suggestion.version == old.version and not suggestion.failure else None

    def _conflict(self, record: StoredNote) -> Conflict | None:
        for name, value in record.attributes.items():
            for known in (other.attributes.get(name) for other in self._records.values()):
                if known is not None and _type(known) != _type(value):
                    return Conflict(name, _type(known), _type(value))
        return None

    def _one_too_many(self, record: StoredNote) -> TooManyNames | None:
        others = {name for id_, one in self._records.items() if id_ != record.note.id for name in one.attributes}
        before = self._records.get(record.note.id)
        new = record.attributes.keys() - others - (before.attributes.keys() if before else set())
        return TooManyNames(min(new)) if new and len(others | record.attributes.keys()) > MOST_ATTRIBUTE_NAMES else None

    def _expect(self, note_id: str, expected: Expected) -> None:
        old = self._records.get(note_id)
        version = old.version if old and not old.deleted else None
        holds = version is None if expected == "none" else version is not None and expected in ("any", version)
        if not holds:
            raise NotAsExpected("the note is not at the version that the request names")


class MemoryEvents(Faults):
    """`EventLog` in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Event] = {}
        self._erased: set[str] = set()  # ids of events

    async def append(self, events: Sequence[Event]) -> int:
        """See `EventLog`."""
        await self.reached()
        new = {event.event_id: event for event in reversed(events) if event.event_id not in self.kept}
        new = {event_id: event for event_id, event in new.items() if event_id not in self._erased}
        self.kept |= new
        return len(new)

    async def seen(self, user_id: str) -> list[str]:
        """See `EventLog`."""
        await self.reached()
        now = time.time()
        last: dict[str, float] = {}
        for event in self.kept.values():
            if event.user_id == user_id and event.type != "impression" and event.ts > now - SEEN_S:
                last[event.note_id] = max(last.get(event.note_id, 0.0), min(event.ts, now))
        return sorted(last, key=lambda note_id: (last[note_id], note_id), reverse=True)[:SEEN_MOST]

    async def outcomes(self, days: int) -> Outcomes:  # noqa: ARG002 - all of its events came today
        """See `EventLog`."""
        await self.reached()
        return outcomes_of([Counter(field for event in self.kept.values() for field in fields_of(event))])

    async def erase(self, user_id: str) -> None:
        """See `EventLog`."""
        await self.reached()
        self._erased |= {event_id for event_id, event in self.kept.items() if event.user_id == user_id}
        self.kept = {event_id: event for event_id, event in self.kept.items() if event.user_id != user_id}


class MemoryAnswers(Faults):
    """`Answers` in a dict; none expires."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, tuple[bytes, Answer | None]] = {}

    async def once(self, key: str, request: bytes, run: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """See `Answers`."""
        await self.reached()
        digest = hashlib.blake2b(request).digest()
        if key in self._kept:
            return _repeated(*self._kept[key], digest), True
        self._kept[key] = digest, None
        try:
            answer = await run()
        except NoteLLMError:
            del self._kept[key]
            raise
        self._kept[key] = digest, answer
        return answer, False


def _same(record: StoredNote, old: StoredNote) -> bool:
    """Whether a client wrote the same."""
    return replace(record, version=old.version, detected=old.detected, shown=0) == old


def _text(record: StoredNote) -> tuple[str, str, tuple[str, ...]]:
    return record.note.title, record.note.content, record.note.hashtags


def _type(value: Attribute) -> str:
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
        case _:
            return "list"


def _repeated(first: bytes, answer: Answer | None, digest: bytes) -> Answer:
    if first != digest:
        raise KeyReused("this idempotency key was used for another request")
    if answer is None:
        raise StillRunning("a request with this idempotency key is being answered")
    return answer
