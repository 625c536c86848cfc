"""The gateway's cache of note summaries, which is never out of date.

Redis keeps a log of writes. Before an answer goes out, the cache asks for the writes since its last request, forgets
those notes, and fetches the notes it lacks, all in one atomic step: an answer shows every write that was acknowledged
before its request came. Answers that wait at the same time share one such request.

While Redis is away there is nothing to ask. What was deleted, and what was written since it was last fetched, is kept
apart until then, so that an answer without Redis leaves it out: decision 057.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from indexer.filters.expression import Expression
from indexer.types import Fields
from service import metrics
from service.deadlines import within
from service.errors import StoreUnavailable
from service.recommend.lru import LruCache
from service.recommend.near_copies import Fingerprint
from service.store.interfaces import NoteStore
from service.store.records import StoredNote, fields_of

log = logging.getLogger(__name__)

_CACHED, _FETCHED = metrics.NOTES_LOOKED_UP.labels("held"), metrics.NOTES_LOOKED_UP.labels("fetched")


@dataclass(slots=True, eq=False)
class NoteSummary:
    """A live note without its text: the part of it that answers show, filters compare and ranking needs.

    ``fingerprint`` is of title and content. ``rendered`` is the note as
    `service.api.responses` writes it, empty until an answer first needed it.
    """

    note_id: str
    version: int
    title: str
    category: str | None
    hashtags: tuple[str, ...]
    author: str | None
    exposure: int
    fingerprint: Fingerprint
    fields: Fields = field(default_factory=dict)
    hidden: bool = False
    rendered: bytes = b""

    @classmethod
    def of(cls, record: StoredNote | None) -> Self | None:
        """The summary of a record; None for a tombstone or None."""
        if record is None or record.deleted:
            return None
        note, fields = record.note, fields_of(record)
        return cls(
            note.id,
            record.version,
            note.title,
            note.category,
            note.hashtags,
            record.author,
            record.exposure,
            Fingerprint.of(note.title, note.content),
            fields,
            record.hidden,
        )

    @property
    def created_at(self) -> float | None:
        """In seconds since 1970."""
        created_at = self.fields.get("created_at")
        return created_at if isinstance(created_at, float) else None


Summaries = dict[str, NoteSummary | None]
Waiting = tuple[Sequence[str], asyncio.Future[Summaries]]  # the ids that one answer lacks


class NoteCache:
    """Summaries of a store's notes, at most ``capacity`` of them cached. For one event loop.

    A request to the store fails after ``timeout_s``. An answer may have to wait for the one under way, too.
    """

    def __init__(self, store: NoteStore, capacity: int, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._cached = LruCache[NoteSummary](capacity)
        # Since it was last fetched, or it is hidden; whether it is known to be deleted.
        self._changed = LruCache[bool](capacity)
        self._withdrawn_meanwhile: set[str] = set()  # while a request was under way
        self._writes = 0  # seen in the log so far
        self._cursor: str | None = None
        self._waiting: list[Waiting] = []
        self._refreshing: asyncio.Task[None] | None = None

    def peek(self, note_id: str) -> NoteSummary | None:
        """The cached summary, which may be out of date until `get` confirms it."""
        return self._cached.get(note_id)

    def withdraw(self, note_id: str, *, deleted: bool) -> None:
        """A write was acknowledged that deletes or hides the note."""
        self._cached.pop(note_id, None)
        self._changed.put(note_id, deleted)
        if self._refreshing:  # a request that goes out later sees the write
            self._withdrawn_meanwhile.add(note_id)

    def is_deleted(self, note_id: str) -> bool:
        """Whether the note is known to be deleted, as far as was heard."""
        return self._changed.get(note_id, False)

    def is_certain(self, note_id: str, passing: Expression | None = None) -> bool:
        """Whether what an index holds of the note may be shown: nothing was heard of it since it was fetched, and it
        was not hidden then, and passed. The word of an index alone may be that of its last snapshot."""
        summary = self._cached.get(note_id)
        if note_id in self._changed:
            return False
        return summary is None or not (summary.hidden or (passing and not passing.matches(summary.fields)))

    async def get(self, note_ids: Sequence[str]) -> list[NoteSummary | None]:
        """Summaries in the order of the ids, as of a moment after the call; None for unknown and deleted notes.

        Raises StoreUnavailable.
        """
        writes = self._writes
        summaries = self._cached.use(note_ids)
        if None not in summaries:
            await self._refresh([])
            if writes == self._writes:
                _CACHED.inc(len(summaries))
                return summaries
        return await self._get_missing(note_ids)

    async def get_or_none(self, note_ids: Sequence[str]) -> list[NoteSummary | None] | None:
        """The same; None when the store does not answer."""
        try:
            return await self.get(note_ids)
        except StoreUnavailable:
            log.warning("store_unavailable", extra={"records": len(note_ids)})
            return None

    async def _get_missing(self, note_ids: Sequence[str]) -> list[NoteSummary | None]:
        fetched: Summaries = {}
        while missing := [note_id for note_id in note_ids if note_id not in fetched and note_id not in self._cached]:
            # The same request may tell of a write to a cached note, which is then missing as well.
            refreshed = await self._refresh(missing)
            fetched |= {note_id: refreshed[note_id] for note_id in missing}
        _FETCHED.inc(len(fetched))
        _CACHED.inc(len(note_ids) - len(fetched))
        return [fetched[note_id] if note_id in fetched else self._cached.get(note_id) for note_id in note_ids]

    async def _refresh(self, missing: Sequence[str]) -> Summaries:
        """The missing summaries and others, from a request that goes out after this call, never before."""
        future: asyncio.Future[Summaries] = asyncio.get_running_loop().create_future()
        self._waiting.append((missing, future))
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh_for_all())
        return await future

    async def _refresh_for_all(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                try:
                    async with within(self._timeout_s, StoreUnavailable):
                        fetched = await self._fetch({note_id for missing, _ in waiting for note_id in missing})
                except Exception as error:  # each waiting answer raises it
                    _settle(waiting, error)
                else:
                    _settle(waiting, fetched)
        finally:
            self._refreshing = None

    async def _fetch(self, missing: Iterable[str]) -> Summaries:
        note_ids = list(missing)
        self._withdrawn_meanwhile.clear()
        view = await self._store.view(note_ids, self._cursor)
        if view.written is None:
            self._writes += 1
            self._cached.clear()
        else:
            # Notes that are not cached count, too: one may have been evicted while an answer waited with its summary.
            self._writes += len(view.written)
            for note_id in view.written:
                self._cached.pop(note_id, None)
                self._changed.put(note_id, self.is_deleted(note_id))
        self._cursor = view.cursor
        fetched = {note_id: NoteSummary.of(record) for note_id, record in zip(note_ids, view.records, strict=True)}
        for record in view.records:
            if record and record.deleted:
                self._changed.put(record.note.id, True)
        for note_id in fetched.keys() - self._withdrawn_meanwhile:
            # Ids without a note are not cached: anybody can make up any number of them.
            if summary := fetched[note_id]:
                if summary.hidden:
                    self._changed.put(note_id, False)
                else:
                    self._changed.pop(note_id, None)
                if view.cursor is not None:
                    self._cached.put(note_id, summary)
        return fetched


def _settle(waiting: Iterable[Waiting], outcome: Summaries | Exception) -> None:
    for _, future in waiting:
        if future.done():  # its request was canceled
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
