"""The gateway's cache of notes, which is never out of date.

Redis keeps a log of what was written. Before an answer goes out, the cache asks what came since it asked last, forgets
those notes, and fetches what it lacks, all in one atomic step: an answer shows every write that was acknowledged before
its request came. One such question serves all the answers that wait for it, so a busy gateway asks once for many.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from service import metrics
from service.deadlines import within
from service.errors import StoreUnavailable
from service.store.interfaces import NoteStore
from service.store.records import StoredNote

_HELD, _FETCHED = metrics.CARDS.labels("held"), metrics.CARDS.labels("fetched")

Waiting = tuple[list[str], "asyncio.Future[dict[str, NoteSummary | None]]"]


@dataclass(slots=True, eq=False)
class NoteSummary:
    """A live note without its text: what an answer shows of it, and what ranking needs.

    ``rendered`` belongs to whoever writes answers, to keep its form of the note in; ours is made once and read often.
    """

    note_id: str
    version: int
    title: str
    category: str | None
    hashtags: tuple[str, ...]
    author: str | None
    exposure: int
    rendered: bytes = b""

    @classmethod
    def of(cls, record: StoredNote | None) -> Self | None:
        """The summary of a record; None for a tombstone or for none."""
        if record is None or record.deleted:
            return None
        note = record.note
        return cls(note.id, record.version, note.title, note.category, note.hashtags, record.author, note.exposure)


class NoteCache:
    """The cards of a store, at most ``capacity`` of them held. For one event loop.

    A question that takes longer than ``patience_s`` has failed. Who asks may have to wait for the one before, too.
    """

    def __init__(self, store: NoteStore, capacity: int, patience_s: float) -> None:
        self._store = store
        self._capacity = capacity
        self._patience_s = patience_s
        self._held: dict[str, NoteSummary] = {}
        self._writes = 0  # that were heard of
        self._cursor: str | None = None
        self._waiting: list[Waiting] = []
        self._asking: asyncio.Task[None] | None = None

    def recall(self, note_id: str) -> NoteSummary | None:
        """The card that is held, which may be out of date: only to begin with, while `get` has the last word."""
        return self._held.get(note_id)

    async def get(self, note_ids: Sequence[str]) -> list[NoteSummary | None]:
        """Cards in the order asked for, as of a moment after the call; None for ids never seen, and deleted ones.

        Raises StoreUnavailable.
        """
        writes = self._writes
        cards = list(map(self._held.get, note_ids))
        if None not in cards:
            await self._ask([])
            if writes == self._writes:
                _HELD.inc(len(cards))
                return cards
        return await self._fetched(note_ids)

    async def _fetched(self, note_ids: Sequence[str]) -> list[NoteSummary | None]:
        """The same where some are not held, or not any more."""
        fetched: dict[str, NoteSummary | None] = {}
        while lacking := [note_id for note_id in note_ids if note_id not in fetched and note_id not in self._held]:
            # What was held may be forgotten with the answer.
            brought = await self._ask(lacking)
            fetched |= {note_id: brought[note_id] for note_id in lacking}
        _FETCHED.inc(len(fetched))
        _HELD.inc(len(note_ids) - len(fetched))
        return [fetched[note_id] if note_id in fetched else self._held[note_id] for note_id in note_ids]

    async def _ask(self, lacking: list[str]) -> dict[str, NoteSummary | None]:
        """What the next question brings; it goes out after this call, never before."""
        future: asyncio.Future[dict[str, NoteSummary | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((lacking, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_for_all())
        return await future

    async def _ask_for_all(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                try:
                    async with within(self._patience_s, StoreUnavailable):
                        fetched = await self._fetch({note_id for lacking, _ in waiting for note_id in lacking})
                except Exception as error:  # it belongs to those who wait
                    _settle(waiting, error)
                else:
                    _settle(waiting, fetched)
        finally:
            self._asking = None

    async def _fetch(self, note_ids: Iterable[str]) -> dict[str, NoteSummary | None]:
        asked = list(note_ids)
        view = await self._store.view(asked, self._cursor)
        if view.written is None:
            self._writes += 1
            self._held.clear()
        else:
            # Of notes that are not held, too: a card may have had to make room while somebody waited with it.
            self._writes += len(view.written)
            for note_id in view.written:
                self._held.pop(note_id, None)
        self._cursor = view.cursor
        fetched = {note_id: NoteSummary.of(record) for note_id, record in zip(asked, view.records, strict=True)}
        if view.cursor is not None:
            self._hold(fetched)
        return fetched

    def _hold(self, fetched: dict[str, NoteSummary | None]) -> None:
        # Ids without a note are not held: anybody can make up any number of them.
        self._held |= {note_id: card for note_id, card in fetched.items() if card}
        while len(self._held) > self._capacity:
            del self._held[next(iter(self._held))]


def _settle(waiting: Sequence[Waiting], outcome: dict[str, NoteSummary | None] | Exception) -> None:
    for _, future in waiting:
        if future.done():  # its request gave up
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
