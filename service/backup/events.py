"""The export of events and of answers: streams of Redis as Parquet files, by the day of arrival (UTC).

::

    events/
      _cursor.json                                     the newest entries of the streams that are in the files
      dt=2026-01-31/part-<entry>.parquet               events up to this entry of their stream
      _answers/dt=2026-01-31/part-<entry>.parquet      the same of answers

A part gets its name when it is on disk, and counts once the cursor has passed it: the next run removes the parts of a
killed run beyond the cursor and writes them again, so that nothing is lost, and no event exported twice. The day is by
the clock of Redis: a past day never changes, whatever a client says in ``ts``, which is a column, in microseconds since
1970. An answer may stand in two parts, after a gateway lost an acknowledgment, or an erasure cut its batch: its
``answer_id`` tells.

Readers stand in the files under their names, see `service.store.attribution.readers`; parts of older releases, which
hold their ids and lack the last columns, get names with the next run. The erasure of a reader is an entry of the
events, behind their last event before it. A run that comes to one removes them from all parts so far before its cursor
moves on.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pyarrow as pa
from tqdm import tqdm

from model.files import lock_folder, sync, write_json
from service.backup.erasure import NAMED, erase_from_files, name_readers, write
from service.errors import StoreUnavailable
from service.settings import SetupError
from service.store.attribution.answers import unpack
from service.store.attribution.log import REMOVE
from service.store.attribution.readers import name_of, name_of_digest, sync_key_of
from service.store.connection import redis_errors
from service.store.records import parse_entry_id
from service.store.schema import EVENTS, RESTORING, SERVED

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

CURSOR, ANSWERS = "_cursor.json", "_answers"
BATCH = 10_000
_BATCHES = 256  # of answers, up to a thousand each
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
    ],
    NAMED,
)
ANSWER_SCHEMA = pa.schema(
    [
        ("answer_id", pa.string()),
        ("ts", pa.int64()),
        ("scenario", pa.string()),
        ("model", pa.string()),
        ("ids", pa.list_(pa.string())),
        ("parameters", pa.string()),
        ("reader", pa.string()),
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("note_id", pa.string()),
        ("category", pa.string()),
        ("seconds", pa.float64()),
    ],
    NAMED,
)
_PART = re.compile(r"part-(\d+)-(\d+)\.parquet")

Entry = tuple[int, int]
Entries = Sequence[tuple[Entry, Mapping[bytes, bytes]]]
Row = dict[str, Any]
START: Entry = 0, 0


class ExportError(SetupError):
    """A folder to which no export can be added."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The numbers of exported events, of malformed ones, of rows removed with an erased reader, and of answers."""

    events: int
    malformed: int
    erased: int = 0
    answers: int = 0


def export(redis: "SyncRedis", folder: Path, *, remove: bool = False, keep_days: int | None = None) -> Exported:
    """Export the events and answers since the last run into the folder.

    With ``remove``, all exported ones are deleted from Redis; with ``keep_days``, older days from the folder.

    Raises:
        FolderInUse: if another export writes to the folder.
        ExportError: if it holds something else.
        StoreUnavailable: if Redis stopped answering, or is being restored.
        OSError: if the disk cannot hold them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        work = _Export(redis, folder)
        work.events()
        work.answers()
        if remove:
            work.remove()
        if keep_days is not None:
            _drop_days(folder, keep_days)
        return Exported(work.counts["events"], work.counts["malformed"], work.counts["erased"], work.counts["answers"])


class _Export:
    """One run."""

    def __init__(self, redis: "SyncRedis", folder: Path) -> None:
        self._redis = redis
        self._folder = folder
        self.counts = dict.fromkeys(("events", "malformed", "erased", "answers"), 0)
        self._cursors = _cursors(folder)
        for below, cursor in ((folder, self._cursors[EVENTS]), (folder / ANSWERS, self._cursors[SERVED])):
            _remove_uncounted(below, cursor)
        self._key = sync_key_of(redis)
        name_readers(_parts(folder), self._key)

    def events(self) -> None:
        names: dict[str, str] = {}
        for last, entries in self._batches(EVENTS, BATCH):
            erased = {name_of_digest(said.decode(), self._key) for _, said in _fields(entries, b"erased")}
            self.counts["erased"] += erase_from_files(_parts(self._folder), "user_id", erased)
            erase_from_files(_parts(self._folder / ANSWERS), "reader", erased)
            rows = [(entry, self._event(record, names)) for entry, record in _fields(entries, b"event")]
            whole = [(entry, row) for entry, row in rows if row]
            _write_parts(self._folder, last, whole, SCHEMA)
            self._move(EVENTS, last)
            self.counts["malformed"] += len(entries) - len(whole) - sum(b"erased" in fields for _, fields in entries)
            self.counts["events"] += len(whole)

    def answers(self) -> None:
        for last, entries in self._batches(SERVED, _BATCHES):
            rows = [(entry, row) for entry, batch in _fields(entries, b"answers") for row in _answers(batch)]
            _write_parts(self._folder / ANSWERS, last, rows, ANSWER_SCHEMA)
            self._move(SERVED, last)
            self.counts["answers"] += len(rows)

    def remove(self) -> None:
        """Delete from Redis what is in the files."""
        past, answered = (self._cursors[stream] for stream in (EVENTS, SERVED))
        with redis_errors():
            self._redis.xtrim(EVENTS, minid=_name((past[0], past[1] + 1)), approximate=False)
            remove = self._redis.register_script(REMOVE)
            while remove(args=[_name(answered), _BATCHES]) == _BATCHES:
                pass

    def _event(self, record: bytes, names: dict[str, str]) -> Row | None:
        """An event as a row; None for a malformed one. ``names`` are those of the readers so far."""
        try:
            event = msgpack.unpackb(record)
            user = event["user_id"]
            if user not in names:
                names[user] = name_of(user, self._key)
            return {
                "user_id": names[user],
                "note_id": event["note_id"],
                "event": event["type"],
                "ts": round(event["ts"] * 1_000_000),
                "source_note_id": event["source_note_id"],
                "event_id": event["event_id"],
                **{name: event.get(name) for name in ("value", "answer_id", "position")},
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _batches(self, stream: str, count: int) -> Iterator[tuple[Entry, Entries]]:
        """The entries behind the cursor, in batches, each with its last one; the cursor has to be moved."""
        what = stream.rpartition(":")[2]
        with tqdm(desc=what, unit=" entries", delay=1, disable=None) as bar:
            while True:
                with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
                    pipe.exists(RESTORING)
                    pipe.xrange(stream, f"({_name(self._cursors[stream])}", count=count)
                    restoring, found = pipe.execute()
                if restoring:
                    raise StoreUnavailable("a restore is not finished")
                if not found:
                    return
                entries = [(parse_entry_id(name.decode()), fields) for name, fields in found]
                yield entries[-1][0], entries
                bar.update(len(entries))

    def _move(self, stream: str, entry: Entry) -> None:
        self._cursors[stream] = entry
        _write_cursor(self._folder, self._cursors)


def _fields(entries: Entries, name: bytes) -> Iterator[tuple[Entry, bytes]]:
    return ((entry, fields[name]) for entry, fields in entries if name in fields)


def _answers(batch: bytes) -> Iterator[Row]:
    """A batch of answers as rows; none of a malformed one."""
    try:
        answers = unpack(batch)
    except ValueError:
        return
    for answer in answers:
        row = answer._asdict()
        yield row | {"ts": round(row.pop("time") * 1_000_000), "ids": list(answer.ids)}


def _write_parts(folder: Path, last: Entry, rows: Sequence[tuple[Entry, Row]], schema: pa.Schema) -> None:
    """The rows by day, as parts that are named by the last entry of their batch."""
    days: dict[str, list[Row]] = {}
    for (ms, _), row in rows:
        days.setdefault(f"dt={datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}", []).append(row)
    for day, of_day in days.items():
        if not (folder / day).is_dir():
            (folder / day).mkdir(parents=True)
            sync(folder)
        write(folder / day / f"part-{last[0]:015}-{last[1]:06}.parquet", pa.Table.from_pylist(of_day, schema))


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("dt=*/*.parquet") if _PART.fullmatch(path.name))


def _remove_uncounted(folder: Path, cursor: Entry) -> None:
    for path in folder.glob("dt=*/*.parquet"):
        part = _PART.fullmatch(path.name)
        if path.name.startswith(".part-") or (part and (int(part[1]), int(part[2])) > cursor):
            path.unlink()


def _drop_days(folder: Path, days: int) -> None:
    oldest = f"dt={datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}"
    for below in (folder, folder / ANSWERS):
        for day in below.glob("dt=*"):
            if day.name < oldest:
                shutil.rmtree(day)


def _cursors(folder: Path) -> dict[str, Entry]:
    try:
        known = json.loads((folder / CURSOR).read_bytes())
        # Older releases wrote no answers.
        return {EVENTS: parse_entry_id(known["entry"]), SERVED: parse_entry_id(known.get("answers", _name(START)))}
    except FileNotFoundError:
        if any(folder.glob("[!.]*")):  # a run that was killed at its start leaves a hidden file
            raise ExportError(f"{folder} holds other files and no {CURSOR}: name a new folder") from None
        cursors = {EVENTS: START, SERVED: START}
        _write_cursor(folder, cursors)  # before the first part, so that a folder of parts without it is another's
        return cursors
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ExportError(f"{folder / CURSOR} cannot be read: name a new folder") from None


def _write_cursor(folder: Path, cursors: Mapping[str, Entry]) -> None:
    write_json(folder / CURSOR, {"entry": _name(cursors[EVENTS]), "answers": _name(cursors[SERVED])})


def _name(entry: Entry) -> str:
    return f"{entry[0]}-{entry[1]}"
