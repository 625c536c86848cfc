"""A backup: what Redis holds and nothing else could make again, as a folder of plain files.

::

    backup/
      manifest.json                    format, when, models, what each file holds
      SHA256SUMS                       of every other file; `sha256sum -c SHA256SUMS` checks it, too
      notes.jsonl.gz                   notes and tombstones, with their versions
      readings-<model>.jsonl.gz        what a model said of notes, without the vectors
      vectors-<model>.f32              their vectors in the same order, little-endian float32
      failures-<model>.jsonl.gz        versions of notes that a model's workers gave up, with the reason
      events.jsonl.gz, dead.jsonl.gz   the two streams, entry by entry
      model/                           the checkpoint of the active model, if wanted

Every key of Redis, and what becomes of it:

==================================  =======  ==================================================================
key                                 fate     why
==================================  =======  ==================================================================
``notellm:v1:note:<id>``            kept     notes, tombstones and versions are what a community trusted us with
``notellm:v1:models``               kept     a model that was never seen would read every note again
``notellm:v1:active``               kept     the model that answered goes on answering
``notellm:v1:readings:<model>``     kept     reading again is what costs GPU hours
``notellm:v1:failed:<model>``       kept     or notes that break workers would be tried anew
``notellm:v1:dead``                 kept     why they were given up is written nowhere else
``notellm:v1:events``               kept     pairs are made of them
``notellm:v1:event:<id>``           rebuilt  of the events, for what is left of the time that ids are known
``notellm:v1:tag:<key>``            rebuilt  counted from the notes
``notellm:v1:counts``               rebuilt  counted from the notes
``notellm:v1:writes``               rebuilt  begun anew, so that every cache forgets what it held
``notellm:v1:jobs:<model>``         rebuilt  by the model's next worker: a job for each note that it has not read
``notellm:v1:filled``               dropped  so that this worker queues them
``notellm:v1:embeddings``           dropped  an index whose cursor has no entry is rebuilt from the readings
``notellm:v1:cursors``              dropped  of snapshots that do not belong to this history
``notellm:v1:answer:<digest>``      dropped  one may tell of a write that the backup does not hold; done again, the
                                             write changes nothing that is not the same
``notellm:v1:restoring``            dropped  there is no backup of half a store
==================================  =======  ==================================================================

A backup is made while the service runs. It promises: each note, with what every model said of it, is as of one
moment between the beginning and the end; what was acknowledged before the beginning is in it, so that a delete from
before never comes back; what is written meanwhile may be in it or not. A note may stand in it twice (Redis' SCAN):
the higher version counts. Memory holds one batch.

The folder appears under its name when all of it is on disk. Until then it is ``.<name>.unfinished`` beside it.
"""

import gzip
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from model.files import alone, sync
from model.progress import bar
from service.backup.files import (
    BATCH,
    FINGERPRINT,
    MANIFEST,
    MODEL,
    NOTES,
    STREAMS,
    SUMS,
    BackupError,
    Line,
    Manifest,
    failures_file,
    lines_of,
    note_line,
    reading_line,
    readings_file,
    stream_line,
    sums,
    vectors_file,
)
from service.errors import StoreUnavailable
from service.store.connection import redis_errors
from service.store.records import Failure, StoredNote, StoredPrediction, pack_vector
from service.store.schema import ACTIVE, COUNTS, FAILED, MODELS, NOTE, READINGS, RESTORING

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

_COMPRESSION = 3


def back_up(redis: "SyncRedis", folder: Path, checkpoint: Path | None = None) -> Manifest:
    """Write a backup into a new folder; with ``checkpoint``, its files and that it is the active model's are in it.

    Raises:
        BackupError: if the folder is there, the checkpoint is of another model, or the store changed its models or
            its contents were removed meanwhile.
        StoreUnavailable: if Redis stopped answering, or is being restored.
        OSError: if the disk cannot hold it.
    """
    fingerprint = _fingerprint(checkpoint) if checkpoint else None
    with _staged(folder) as staged:
        with redis_errors():  # one connection: to scan on after a restart of Redis would miss notes
            one = redis.client()  # type: ignore[no-untyped-call]
        with one:
            manifest = _Backup(one, staged).write()
        if checkpoint:
            if fingerprint != manifest.active:
                raise BackupError(f"{checkpoint} is the model {fingerprint}, and {manifest.active or 'none'} is active")
            shutil.copytree(checkpoint, staged / MODEL)
        (staged / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        (staged / SUMS).write_text(sums(staged), encoding="utf-8")
        _sync_all(staged)
    return manifest


class _Backup:
    """One run over the store."""

    def __init__(self, redis: "SyncRedis", folder: Path) -> None:
        self._redis = redis
        self._folder = folder
        self._live = self._deleted = self._malformed = 0
        self._models: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self._files: dict[str, Any] = {}

    def write(self) -> Manifest:
        begun_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._models, _, expected = self._moment()
        for model in self._models:
            if not FINGERPRINT.fullmatch(model):
                raise BackupError(f"the model {model!r} has a name that no file can have")
        with ExitStack() as stack:
            for name in lines_of(self._models):
                self._lines[name] = 0
                self._files[name] = stack.enter_context(gzip.open(self._folder / name, "wb", _COMPRESSION))
            for name in map(vectors_file, self._models):
                self._files[name] = stack.enter_context((self._folder / name).open("wb"))
            self._write_notes(expected)
            for name, stream in STREAMS.items():
                self._write_stream(name, stream)
        models, active, _ = self._moment()
        if models != self._models:
            raise BackupError("a model was registered or retired meanwhile: begin again")
        if self._live + self._deleted + self._malformed < expected:
            raise BackupError("notes were removed from Redis meanwhile, which no command of ours does")
        return Manifest(
            begun_at, self._models, active, self._live, self._deleted, self._lines, malformed=self._malformed
        )

    def _moment(self) -> tuple[dict[str, int], str | None, int]:
        """Models, the active one, and how many notes and tombstones there are."""
        with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(MODELS)
            pipe.get(ACTIVE)
            pipe.hmget(COUNTS, ["live", "deleted"])
            pipe.exists(RESTORING)
            models, active, counts, restoring = pipe.execute()
        if restoring:
            raise StoreUnavailable("a restore is not finished")
        dims = {model.decode(): int(dim) for model, dim in sorted(models.items())}
        return dims, active and active.decode(), sum(int(count or 0) for count in counts)

    def _write_notes(self, expected: int) -> None:
        with bar("notes", expected, "note") as progress:
            for keys in self._keys():
                with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
                    ids = [key.removeprefix(NOTE.encode()) for key in keys]
                    pipe.mget(keys)
                    for model in self._models:
                        pipe.hmget(READINGS + model, ids)
                        pipe.hmget(FAILED + model, ids)
                    notes, *said = pipe.execute()
                self._write_records(notes)
                for model, readings, failures in zip(self._models, said[::2], said[1::2], strict=True):
                    self._write_said(model, ids, readings, failures)
                progress.update(len(keys))

    def _keys(self) -> Iterator[list[bytes]]:
        cursor: Any = 0
        while True:
            with redis_errors():
                found: Any = self._redis.scan(cursor, match=NOTE + "*", count=BATCH)
            cursor, keys = found
            if keys:
                yield keys
            if not cursor:
                return

    def _write_records(self, records: Sequence[bytes | None]) -> None:
        for record in records:
            try:
                stored = StoredNote.decode(record or b"")
            except ValueError:
                self._malformed += 1
                continue
            self._live += not stored.deleted
            self._deleted += stored.deleted
            self._write(NOTES, note_line(stored))

    def _write_said(
        self, model: str, ids: Sequence[bytes], readings: Sequence[bytes | None], failures: Sequence[bytes | None]
    ) -> None:
        for id_, reading, failure in zip(ids, readings, failures, strict=True):
            try:
                if reading is not None:
                    self._write_reading(model, id_.decode(), StoredPrediction.decode(reading))
                if failure is not None:
                    gave_up = Failure.decode(failure)
                    line = {"id": id_.decode(), "version": gave_up.version, "reason": gave_up.reason}
                    self._write(failures_file(model), line)
            except ValueError:
                self._malformed += 1

    def _write_reading(self, model: str, note_id: str, read: StoredPrediction) -> None:
        if len(read.vector) != self._models[model]:
            raise ValueError(f"a vector of {model} has {self._models[model]} numbers")
        self._files[vectors_file(model)].write(pack_vector(read.vector))
        self._write(readings_file(model), reading_line(note_id, read))

    def _write_stream(self, name: str, stream: str) -> None:
        after = "-"
        while True:
            with redis_errors():
                entries: Any = self._redis.xrange(stream, after, count=BATCH)
            for entry, fields in entries:
                self._write(name, {"entry": entry.decode()} | stream_line(stream, fields))
            if len(entries) < BATCH:
                return
            after = f"({entries[-1][0].decode()}"

    def _write(self, name: str, line: Line) -> None:
        self._files[name].write(orjson.dumps(line) + b"\n")
        self._lines[name] += 1


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end of the block."""
    if folder.exists():
        raise BackupError(f"{folder} is there already: name a new folder")
    if not folder.parent.is_dir():
        raise BackupError(f"{folder.parent} is no folder: make it first")
    staged = folder.with_name(f".{folder.name}.unfinished")
    with alone(folder.parent):
        shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
        staged.mkdir(mode=0o700)
        try:
            yield staged
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        staged.rename(folder)
        sync(folder.parent)


def _fingerprint(checkpoint: Path) -> str:
    from model.network.checkpoint import CheckpointError, load_manifest

    try:
        return load_manifest(checkpoint).fingerprint
    except CheckpointError as error:
        raise BackupError(str(error)) from error


def _sync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)
