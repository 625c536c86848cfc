"""The export of events: the stream of Redis as Parquet files, by the day on which events arrived (UTC).

::

    events/
      _cursor.json                            the newest entry of the stream that is in the files
      dt=2026-01-31/part-<entry>.parquet      events up to this entry of the stream
      dt=2026-02-01/...

A part gets its name when it is on disk, and counts once the cursor has passed it: the next run removes the parts of a
killed run beyond the cursor and writes them again, so that no event is lost or exported twice. The day is by the clock
of Redis: a past day never changes, whatever a client says in ``ts``, which is a column, in microseconds since 1970.

But for readers who were erased: their erasure is an entry of the stream, behind their last event before it. A run that
comes to one removes them from all parts so far before its cursor moves on. Parts of older releases lack the last
columns.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from model.files import lock_folder, publish, sync, write_json
from service.backup.erasure import erase_from_files
from service.errors import StoreUnavailable
from service.settings import SetupError
from service.store.connection import redis_errors
from service.store.records import parse_entry_id
from service.store.schema import EVENTS, RESTORING

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

CURSOR = "_cursor.json"
BATCH = 10_000
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("note_id", pa.string()),
        ("event", pa.string()),
        ("ts", pa.int64()),
        ("source_note_id", pa.string()),
        ("event_id", pa.string()),
        ("value", pa.float64()),
        ("answer_id", pa.string()),
        ("position", pa.int64()),
    ]
)
_PART = re.compile(r"part-(\d+)-(\d+)\.parquet")

Entry = tuple[int, int]
Row = dict[str, Any]
START: Entry = 0, 0


class ExportError(SetupError):
    """A folder to which no export can be added."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The numbers of exported events, of malformed ones, and of those that were removed with an erased reader."""

    events: int
    malformed: int
    erased: int = 0


def export(redis: "SyncRedis", folder: Path, *, remove: bool = False) -> Exported:
    """Export the events since the last run into the folder; with ``remove``, delete all exported ones from Redis.

    Raises:
        FolderInUse: if another export writes to the folder.
        ExportError: if it holds something else.
        StoreUnavailable: if Redis stopped answering, or is being restored.
        OSError: if the disk cannot hold them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = malformed = removed = 0
    with lock_folder(folder), tqdm(desc="events", unit="event", delay=1, disable=None) as bar:
        cursor = _cursor(folder)
        _remove_uncounted(folder, cursor)
        while entries := _entries(redis, cursor):
            cursor = parse_entry_id(entries[-1][0].decode())
            erased = {fields[b"erased"].decode() for _, fields in entries if b"erased" in fields}
            removed += erase_from_files(_parts(folder), erased)
            rows = [
                (parse_entry_id(name.decode()), _row(fields)) for name, fields in entries if b"erased" not in fields
            ]
            _write_parts(folder, cursor, rows)
            _write_cursor(folder, cursor)
            bad = sum(row is None for _, row in rows)
            events, malformed = events + len(rows) - bad, malformed + bad
            bar.update(len(rows))
        if remove:
            with redis_errors():
                redis.xtrim(EVENTS, minid=_name((cursor[0], cursor[1] + 1)), approximate=False)
    return Exported(events, malformed, removed)


def _entries(redis: "SyncRedis", cursor: Entry) -> list[Any]:
    with redis_errors(), redis.pipeline(transaction=True) as pipe:
        pipe.exists(RESTORING)
        pipe.xrange(EVENTS, f"({_name(cursor)}", count=BATCH)
        restoring, entries = pipe.execute()
    if restoring:
        raise StoreUnavailable("a restore is not finished")
    return list(entries)


def _row(fields: dict[bytes, bytes]) -> Row | None:
    """An event as a row; None for a malformed one."""
    try:
        event = msgpack.unpackb(fields[b"event"])
        return {
            "user_id": event["user_id"],
            "note_id": event["note_id"],
            "event": event["type"],
            "ts": round(event["ts"] * 1_000_000),
            "source_note_id": event["source_note_id"],
            "event_id": event["event_id"],
            **{name: event.get(name) for name in ("value", "answer_id", "position")},
        }
    except (ValueError, KeyError, TypeError):
        return None


def _write_parts(folder: Path, cursor: Entry, rows: Sequence[tuple[Entry, Row | None]]) -> None:
    days: dict[str, list[Row]] = {}
    for (ms, _), row in rows:
        if row:
            days.setdefault(f"dt={datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}", []).append(row)
    for day, of_day in days.items():
        if not (folder / day).is_dir():
            (folder / day).mkdir()
            sync(folder)
        path = folder / day / f"part-{cursor[0]:015}-{cursor[1]:06}.parquet"
        unfinished = path.with_name(f".{path.name}")
        pq.write_table(pa.Table.from_pylist(of_day, SCHEMA), unfinished, compression="zstd")
        publish(unfinished, path)


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("dt=*/*.parquet") if _PART.fullmatch(path.name))


def _remove_uncounted(folder: Path, cursor: Entry) -> None:
    for path in folder.glob("dt=*/*.parquet"):
        part = _PART.fullmatch(path.name)
        if path.name.startswith(".part-") or (part and (int(part[1]), int(part[2])) > cursor):
            path.unlink()


def _cursor(folder: Path) -> Entry:
    try:
        return parse_entry_id(json.loads((folder / CURSOR).read_bytes())["entry"])
    except FileNotFoundError:
        if any(folder.glob("[!.]*")):  # a run that was killed at its start leaves a hidden file
            raise ExportError(f"{folder} holds other files and no {CURSOR}: name a new folder") from None
        _write_cursor(folder, START)  # before the first part, so that a folder of parts without it is another's
        return START
    except (ValueError, KeyError, TypeError):
        raise ExportError(f"{folder / CURSOR} cannot be read: name a new folder") from None


def _write_cursor(folder: Path, cursor: Entry) -> None:
    write_json(folder / CURSOR, {"entry": _name(cursor)})


def _name(entry: Entry) -> str:
    return f"{entry[0]}-{entry[1]}"
