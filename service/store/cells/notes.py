"""`NoteStore` over several cells. A write is atomic in the cell of its note; one of several notes, in each cell."""

import hashlib
import heapq
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, TypeVar

from indexer.types import IndexedVector
from model.text.hashtags import fold
from service.errors import StoreUnavailable
from service.store.cells.attributes import AttributeTypes
from service.store.cells.hashtags import CellHashtags
from service.store.cells.ring import Cells, gathered
from service.store.connection import redis_errors
from service.store.idempotency import REQUEST
from service.store.interfaces import Counts, Expected, Page, Refusal, Suggestion, View
from service.store.notes import RedisStore
from service.store.records import StoredNote

if TYPE_CHECKING:
    from redis.asyncio import Redis

R = TypeVar("R")

_NEVER = "-"  # the cursor of a cell in which nothing was written


class CellNotes:
    """`NoteStore` over several cells; of a full queue each has its part."""

    def __init__(self, cells: "Cells[Redis]", max_queue: int) -> None:
        self._cells = cells.map(lambda redis: RedisStore(redis, -(-max_queue // len(cells))))
        self._types = AttributeTypes(cells)
        self._hashtags = CellHashtags(cells)

    async def put(self, notes: Sequence[StoredNote], expected: Expected = None) -> list[int | Refusal]:
        """See `NoteStore`. Where a cell does not answer, or its queue is full, the notes of others may be stored.

        Notes with attributes cost another round trip, to the first cell.
        """
        refused = await self._types.refusals(notes)
        kept = [note for place, note in enumerate(notes) if place not in refused]

        async def stored(store: RedisStore, some: list[StoredNote]) -> list[int | Refusal]:
            versions = await self._write(store, store.put(some, expected))
            if len(versions) != len(some):  # this request, before another type of an attribute was refused
                raise StoreUnavailable("a part of this write was made before: repeat it without its key")
            return versions

        versions = iter(await self._cells.routed(kept, lambda note: note.note.id, stored))
        return [refused[place] if place in refused else next(versions) for place in range(len(notes))]

    async def delete(self, note_id: str, expected: Expected = None) -> bool:
        """See `NoteStore`."""
        store = self._cells.of_note(note_id)
        return await self._write(store, store.delete(note_id, expected))

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        """See `NoteStore`."""
        return await self._cells.routed(note_ids, str, lambda store, some: store.get(some))

    async def view(self, note_ids: Sequence[str], since: str | None) -> View:
        """See `NoteStore`; of each cell as of one moment."""
        places = [self._cells.place_of(note_id) for note_id in note_ids]
        own: list[list[str]] = [[] for _ in self._cells]
        for note_id, place in zip(note_ids, places, strict=True):
            own[place].append(note_id)
        cursors = since.split(",") if since else [_NEVER] * len(self._cells)
        views = await gathered(
            store.view(some, None if cursor == _NEVER else cursor)
            for store, some, cursor in zip(self._cells, own, cursors, strict=True)
        )
        records = [iter(view.records) for view in views]
        written: list[str] | None = [] if since else None
        for view, cursor in zip(views, cursors, strict=True):
            # Where nothing was written before and now, nothing was in between.
            of_cell = [] if (cursor, view.cursor) == (_NEVER, None) else view.written
            written = None if written is None or of_cell is None else written + of_cell
        cursors = [view.cursor or _NEVER for view in views]
        found = ",".join(cursors) if set(cursors) != {_NEVER} else None
        return View([next(records[place]) for place in places], written, found)

    async def page(self, after: str, limit: int) -> Page:
        """See `NoteStore`; of each cell as of one moment."""
        pages = await gathered(store.page(after, limit) for store in self._cells)
        # Behind the last id of a page that goes on, the cell has others: there the merged page ends, too.
        ends = [page.last.encode() for page in pages if page.last is not None]
        records = [record for page in pages for record in page.records]
        merged = heapq.nsmallest(limit + 1, records, key=lambda record: record.note.id.encode())
        whole = [record for record in merged if not ends or record.note.id.encode() <= min(ends)]
        if len(whole) > limit:
            return Page(whole[:limit], whole[limit - 1].note.id)
        return Page(whole, min(ends).decode() if ends else None)

    async def index_ids(self) -> None:
        """See `RedisStore`."""
        await gathered(store.index_ids() for store in self._cells)

    async def suggestion(self, note_id: str, fingerprint: str) -> Suggestion | None:
        """See `NoteStore`."""
        return await self._cells.of_note(note_id).suggestion(note_id, fingerprint)

    async def suggestions(self, note_ids: Sequence[str], fingerprint: str) -> list[Suggestion | None]:
        """See `NoteStore`."""
        return await self._cells.routed(note_ids, str, lambda store, some: store.suggestions(some, fingerprint))

    async def vector(self, note_id: str, fingerprint: str) -> IndexedVector | None:
        """See `NoteStore`."""
        return await self._cells.of_note(note_id).vector(note_id, fingerprint)

    async def counts(self, fingerprint: str) -> Counts:
        """See `NoteStore`."""
        found = await gathered(store.counts(fingerprint) for store in self._cells)
        return Counts(
            sum(counts.live for counts in found),
            sum(counts.failed for counts in found),
            sum(counts.queue_depth for counts in found),
            max(counts.oldest_job_s for counts in found),
        )

    async def attribute_types(self) -> dict[str, str]:
        """See `NoteStore`."""
        return await self._types.carried()

    async def spellings(self, tags: Sequence[str]) -> list[str | None]:
        """See `NoteStore`."""
        if not tags:
            return []
        with redis_errors():
            found = await self._hashtags.added_spellings([fold(tag) for tag in tags])
        return [next(iter(own), None) for own in found]

    async def _write(self, store: RedisStore, call: Awaitable[R]) -> R:
        """A write with its outcome under the idempotency key.

        `Answers` looks at keys in the first cell, and there alone refuses one that came with another request. In other
        cells the outcome has a name that no other request has.
        """
        name, digest = REQUEST.get()
        if not name or store is self._cells.first:
            return await call
        own = hashlib.blake2b((name + digest).encode(), digest_size=16).hexdigest()
        token = REQUEST.set((own, digest))
        try:
            return await call
        finally:
            REQUEST.reset(token)
