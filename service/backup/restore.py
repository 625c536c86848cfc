"""A restore: puts a backup into an empty Redis.

Every file is checked before the first key is written. Until the end, a marker in Redis keeps every script of the
service from writing (`service.store.schema.UNLESS_RESTORING`); the last step registers the models, which workers and
indexers look for, and removes the marker. A restore that was killed is repeated with the same backup; records that are
written already stay.
"""

import gzip
import hashlib
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from model.note import Note
from model.progress import bar
from service.backup.files import (
    BATCH,
    HASHES,
    MANIFEST,
    NOTES,
    SHOWN,
    STREAMS,
    SUMS,
    BackupError,
    Line,
    Manifest,
    failures_file,
    fields_of,
    note_of,
    prediction_of,
    predictions_file,
    sums,
    vectors_file,
)
from service.store.cells.attributes import carried_types
from service.store.connection import redis_errors
from service.store.events import REMEMBERED_S
from service.store.records import StoredFailure, StoredNote, digest_of, parse_entry_id
from service.store.schema import (
    ACTIVE,
    ATTRIBUTES,
    COMPLETED,
    COUNTS,
    DEAD,
    EVENT,
    EVENTS,
    EXPERIMENTS,
    EXPOSURE,
    FAILED,
    LIBRARY,
    MODELS,
    NOTE,
    READER_KEY,
    READINGS,
    RESTORING,
    RULES,
    TYPES,
    WRITES,
)

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

    from service.store.cells.ring import Cells

# ARGV: the backup. Every write of the service leaves one of these keys. 1: go on; 0: not empty; -1: another restore.
BEGIN = (
    LIBRARY
    + f"""
local marker = redis.call('GET', '{RESTORING}')
if marker then return marker == ARGV[1] and 1 or -1 end
if redis.call('EXISTS', MODELS, ACTIVE, FILLED, EMBEDDINGS, DEAD, CURSORS, COUNTS) > 0
    or redis.call('EXISTS', '{EVENTS}', '{WRITES}', '{RULES}', '{EXPERIMENTS}') > 0 then
  return 0
end
redis.call('SET', '{RESTORING}', ARGV[1])
return 1
"""
)

# ARGV: records of notes and tombstones with their versions. A record of the same or a later version stays.
PUT_NOTES = (
    LIBRARY
    + """
local function tally(record, step)
  if deleted(record) then
    redis.call('HINCRBY', COUNTS, 'deleted', step)
  else
    local stored = cmsgpack.unpack(record)
    count_attributes(stored, step)
    count_tags(stored, step, 0)  -- when it came is not known
    if step > 0 then enter(stored) else leave(stored) end
  end
end
for i = 1, #ARGV do
  local id = cmsgpack.unpack(ARGV[i]).id
  local old = redis.call('GET', NOTE .. id)
  if not old or version(old) < version(ARGV[i]) then
    if old then tally(old, -1) end
    redis.call('SET', NOTE .. id, ARGV[i])
    tally(ARGV[i], 1)
  end
end
settle()
"""
)

# ARGV: the model, the kind, then ids and records. Of predictions those of an earlier version of a live note count, too.
PUT_PREDICTIONS = (
    LIBRARY
    + """
local old_count = ARGV[2] == 'predictions'
local kept = (old_count and READINGS or FAILED) .. ARGV[1]
for i = 3, #ARGV, 2 do
  local note, number = redis.call('GET', NOTE .. ARGV[i]), version(ARGV[i + 1])
  local old = redis.call('HGET', kept, ARGV[i])
  local counts = note and not deleted(note) and (version(note) == number or old_count and version(note) > number)
  if counts and not (old and version(old) >= number) then redis.call('HSET', kept, ARGV[i], ARGV[i + 1]) end
end
"""
)

_DELETE = {"event": "write", "method": "DELETE", "status": 204}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@dataclass(frozen=True, slots=True)
class Restored:
    """The store's counts after a restore; ``deleted_later`` notes were live in the backup and deleted after it.

    ``erased_later`` readers were erased after it.
    """

    live: int
    deleted: int
    deleted_later: int
    erased_later: int


def restore(cells: "Cells[SyncRedis]", folder: Path, deletes: Path | None = None) -> Restored:
    """Put a backup into an empty store; ``deletes`` is an audit log whose later deletes and erasures are repeated.

    The backup may be of another number of cells.

    Raises:
        BackupError: if the backup is damaged, unfinished or of a later format, the log cannot be read, or the store
            is not empty.
        StoreUnavailable: if Redis stopped answering; the same call finishes the work.
    """
    manifest = open_backup(folder)
    later, erased = _deleted_later(deletes, manifest.begun_at) if deletes else ([], [])
    with redis_errors():
        _begin(cells, folder)
        work = _Restore(cells, folder, manifest)
        work.notes()
        count = work.delete(later)
        for model in manifest.models:
            work.predictions(model)
            work.failures(model)
        for name, stream in STREAMS.items():
            work.stream(name, stream, frozenset(erased))
        work.erase(erased)
        for name in HASHES:
            if name in manifest.lines:
                work.hash(name)
        if SHOWN in manifest.lines:
            work.exposure()
        return work.finish(count, len(erased))


def open_backup(folder: Path) -> Manifest:
    """The manifest of a backup whose every byte is as it was written. Raises BackupError."""
    try:
        expected = (folder / SUMS).read_bytes()
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BackupError(f"{folder} is no finished backup: {error.strerror}: {Path(error.filename).name}") from None
    actual = sums(folder).encode()
    if actual != expected:
        differing = {*actual.splitlines()} ^ {*expected.splitlines()}
        names = sorted({line.decode(errors="replace").partition("  ")[2] for line in differing})
        raise BackupError(f"{folder} is damaged, restore another one; not as written: {', '.join(names) or SUMS}")
    try:
        return Manifest.parse(text)
    except BackupError as error:
        raise BackupError(f"{folder} cannot be restored: {error}") from None


def _begin(cells: "Cells[SyncRedis]", folder: Path) -> None:
    name = hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
    # A run that was killed at its end may have finished other cells: the first is the last.
    again = cells.first.get(RESTORING) == name.encode()
    for place, redis in enumerate(cells):
        match redis.register_script(BEGIN)(args=[name]):
            case 0 if not (again and place):
                raise BackupError(
                    "the store is not empty: stop the service, and name an empty Redis or a new state folder"
                )
            case -1:
                raise BackupError(
                    "a restore of another backup was begun in this store: finish that one, or begin with an empty Redis"
                )


class _Cell:
    """A cell that is filled."""

    def __init__(self, redis: "SyncRedis") -> None:
        self.redis = redis
        self.put_notes = redis.register_script(PUT_NOTES)
        self.put_predictions = redis.register_script(PUT_PREDICTIONS)


class _Restore:
    """One restore; every step may be repeated."""

    def __init__(self, cells: "Cells[SyncRedis]", folder: Path, manifest: Manifest) -> None:
        self._cells = cells.map(_Cell)
        self._redis = cells.first
        self._folder = folder
        self._manifest = manifest

    def notes(self) -> None:
        for lines in self._batches(NOTES, "notes"):
            for cell, own in self._split(lines, "note_id"):
                cell.put_notes(args=[note_of(line).encode() for line in own])

    def delete(self, ids: Sequence[str]) -> int:
        count = 0
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            count += sum(
                self._delete(cell, [batch[place] for place in own]) for cell, own in self._cells.split(batch, str)
            )
        return count

    def predictions(self, model: str) -> None:
        size = 4 * self._manifest.models[model]
        file = self._folder / vectors_file(model)
        with _readable(file), file.open("rb") as vectors:
            for lines in self._batches(predictions_file(model), f"predictions of {model}"):
                said = [line | {"said": prediction_of(line, model, vectors.read(size)).encode()} for line in lines]
                self._put_predictions(model, "predictions", said)

    def failures(self, model: str) -> None:
        for lines in self._batches(failures_file(model), f"failures of {model}"):
            said = [line | {"said": StoredFailure(line["version"], line["reason"]).encode()} for line in lines]
            self._put_predictions(model, "failures", said)

    def stream(self, name: str, stream: str, erased: Set[str]) -> None:
        """Entries keep their ids, so that a reader of the stream goes on at its cursor.

        Events are in the first cell, dead letters in those of their notes.
        """
        now_s = int(self._redis.time()[0])
        for lines in self._batches(name, stream.rpartition(":")[2]):
            to_cells = [(self._cells.first, lines)]
            if stream == DEAD:
                to_cells = self._split([line | {"note_id": line["fields"]["id"]} for line in lines], "note_id")
            for cell, own in to_cells:
                self._add(cell, stream, own, now_s, erased)

    def erase(self, readers: Sequence[str]) -> None:
        """Tell whoever exports the events."""
        for digest in readers:
            self._redis.xadd(EVENTS, {"erased": digest})

    def hash(self, name: str) -> None:
        kept = HASHES[name]
        for lines in self._batches(name, name.partition(".")[0]):
            self._redis.hset(kept.key, mapping={line[kept.field]: line[kept.value] for line in lines})

    def exposure(self) -> None:
        for lines in self._batches(SHOWN, "exposure"):
            for cell, own in self._split(lines, "id"):
                cell.redis.hset(EXPOSURE, mapping={line["id"]: line["shown"] for line in own})

    def finish(self, deleted_later: int, erased_later: int) -> Restored:
        self._claim_types()
        if self._manifest.reader_key:
            self._redis.set(READER_KEY, bytes.fromhex(self._manifest.reader_key))
        counts = [self._finish(cell.redis) for cell in (*self._cells.others, self._cells.first)]
        live, deleted = (sum(int(count or 0) for count in both) for both in zip(*counts, strict=True))
        return Restored(live, deleted, deleted_later, erased_later)

    def _finish(self, redis: "SyncRedis") -> Sequence[Any]:
        """Returns how many notes and tombstones the cell has."""
        with redis.pipeline(transaction=True) as pipe:
            for model, dim in self._manifest.models.items():
                pipe.hset(MODELS, model, str(dim))
            if self._manifest.active:
                pipe.set(ACTIVE, self._manifest.active)
            pipe.xadd(WRITES, {"id": ""})  # no cache can follow a stream without an entry
            pipe.delete(RESTORING, COMPLETED)
            pipe.hmget(COUNTS, ["live", "deleted"])
            *_, counts = pipe.execute()
        return list(counts)

    def _claim_types(self) -> None:
        """See `service.store.cells.attributes`."""
        if len(self._cells) > 1:
            typed: list[Any] = [cell.redis.hkeys(ATTRIBUTES) for cell in self._cells]
            types: dict[Any, Any] = dict(carried_types(typed))
            if types:
                self._redis.hset(TYPES, mapping=types)

    def _put_predictions(self, model: str, kind: str, lines: Sequence[Line]) -> None:
        for cell, own in self._split(lines, "id"):
            cell.put_predictions(args=[model, kind, *(word for line in own for word in (line["id"], line["said"]))])

    def _delete(self, cell: _Cell, ids: Sequence[str]) -> int:
        records: Any = cell.redis.mget([NOTE + id_ for id_ in ids])
        notes = [StoredNote.decode(record) for record in records if record]
        tombstones = [StoredNote(Note(old.note.id), old.version + 1, deleted=True) for old in notes if not old.deleted]
        with cell.redis.pipeline(transaction=True) as pipe:
            for tombstone in tombstones:
                for model in self._manifest.models:
                    pipe.hdel(READINGS + model, tombstone.note.id)
                    pipe.hdel(FAILED + model, tombstone.note.id)
            cell.put_notes(args=[tombstone.encode() for tombstone in tombstones], client=pipe)
            pipe.execute()
        return len(tombstones)

    def _add(self, cell: _Cell, stream: str, lines: Sequence[Line], now_s: int, erased: Set[str]) -> None:
        """Add the entries of a stream that are later than its last one."""
        last = _newest(cell.redis, stream)
        with cell.redis.pipeline(transaction=True) as pipe:
            for line in lines:
                at = parse_entry_id(line["entry"])
                if "event" in line and erased and digest_of(line["event"]["user_id"]) in erased:
                    pipe.xdel(stream, line["entry"])  # of a try that knew no log
                elif at > last:
                    pipe.xadd(stream, fields_of(line), id=line["entry"])
                left_s = at[0] // 1000 + REMEMBERED_S - now_s
                if "event" in line and left_s > 0:
                    pipe.set(EVENT + line["event"]["event_id"], "", ex=left_s)
            pipe.execute()

    def _split(self, lines: Sequence[Line], name: str) -> list[tuple[_Cell, list[Line]]]:
        """The lines by the cell of the note that this field names."""
        split = self._cells.split(lines, lambda line: str(line[name]))
        return [(cell, [lines[place] for place in own]) for cell, own in split]

    def _batches(self, name: str, what: str) -> Iterator[list[Line]]:
        with (
            _readable(self._folder / name),
            gzip.open(self._folder / name, "rb") as file,
            bar(what, self._manifest.lines[name], "line") as progress,
        ):
            while lines := [orjson.loads(line) for line in islice(file, BATCH)]:
                yield lines
                progress.update(len(lines))


def _newest(redis: "SyncRedis", stream: str) -> tuple[int, int]:
    newest: Any = redis.xrevrange(stream, count=1)
    return parse_entry_id(newest[0][0].decode()) if newest else (0, 0)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """A failing disk raises BackupError, and is not taken for a failing Redis."""
    try:
        yield
    except OSError as error:
        raise BackupError(f"{file}: {error.strerror or error}") from error


def _deleted_later(file: Path, begun_at: str) -> tuple[list[str], list[str]]:
    """Ids of the notes whose delete was acknowledged after this time, by the gateways' clocks; and erased readers."""
    ids: dict[str, None] = {}
    erased: dict[str, None] = {}
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                with _named(f"{file} line {number}"):
                    entry = orjson.loads(line)
                    if not _TIME.fullmatch(entry["time"]):
                        raise ValueError
                    if _DELETE.items() <= entry.items() and entry["time"] >= begun_at:
                        ids |= dict.fromkeys(entry.get("notes", ()))
                        erased |= dict.fromkeys(entry.get("erased", ()))
    except OSError as error:
        raise BackupError(f"{file}: {error.strerror}") from None
    return list(ids), list(erased)


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(f"{where} is none of an audit log (NOTELLM_AUDIT_FILE): mend it, or take it out") from None
