"""The live notes of the store as one file, as training reads them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.notes import write_notes
from model.files import publish
from model.note import Note
from model.progress import bar
from service.errors import StoreUnavailable
from service.store.connection import redis_errors
from service.store.records import StoredNote
from service.store.schema import COUNTS, EXPOSURE, NOTE, RESTORING

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

_BATCH = 1000


def export(cells: Iterable["SyncRedis"], path: Path) -> int:
    """Write the live notes of a store's cells as Parquet, by id; how many they are.

    Exposure is counted where no client gave it.

    Raises:
        StoreUnavailable: if Redis stopped answering, or is being restored.
    """
    notes: dict[str, Note] = {}
    for redis in cells:
        with redis_errors():
            live = int(redis.hget(COUNTS, "live") or 0)
            if redis.exists(RESTORING):
                raise StoreUnavailable("a restore is not finished")
        with bar("notes", live, "note") as progress:
            for scanned, found in _scanned(redis):
                notes |= {note.id: note for note in found}
                progress.update(scanned)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    write_notes(staged, [notes[note_id] for note_id in sorted(notes)])
    publish(staged, path)
    return len(notes)


def _scanned(redis: "SyncRedis") -> Iterator[tuple[int, list[Note]]]:
    """Records that were looked at, and the live notes among them."""
    cursor: Any = 0
    while True:
        with redis_errors():
            page: Any = redis.scan(cursor, match=NOTE + "*", count=_BATCH)
            cursor, keys = page
            ids = [key.removeprefix(NOTE.encode()) for key in keys]
            records: Any = redis.mget(keys) if keys else []
            shown: Any = redis.hmget(EXPOSURE, ids) if ids else []
        found = []
        for record, count in zip(records, shown, strict=True):
            try:
                stored = StoredNote.decode(record or b"", int(count or 0))
            except ValueError:
                continue
            if not stored.deleted:
                note = stored.note
                found.append(Note(note.id, note.title, note.content, note.hashtags, note.category, stored.exposure))
        yield len(keys), found
        if not cursor:
            return
