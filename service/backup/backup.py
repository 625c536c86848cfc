"""A backup: the keys of Redis that cannot be rebuilt, as a folder of plain files.

::

    backup/
      manifest.json                    format, time, models, lines of each file; the key of readers' names
      SHA256SUMS                       of every other file; `sha256sum -c SHA256SUMS` checks it, too
      notes.jsonl.gz                   notes and tombstones, with their versions
      readings-<model>.jsonl.gz        a model's predictions, without the vectors
      vectors-<model>.f32              their vectors in the same order, little-endian float32
      failures-<model>.jsonl.gz        dead-lettered versions of notes, with the reason
      events.jsonl.gz, dead.jsonl.gz   the two streams, entry by entry
      rules.jsonl.gz                   the rules of hashtags
      exposure.jsonl.gz                how often notes were shown
      experiments.jsonl.gz             the experiments, those that are over, too
      model/                           the checkpoint of the active model, if asked for

Every key of Redis:

==================================  =======  ==================================================================
key                                 fate     why
==================================  =======  ==================================================================
``notellm:v1:note:<id>``            kept     notes, tombstones and versions are the community's data
``notellm:v1:models``               kept     a model new to the store would predict for every note again
``notellm:v1:active``               kept     the active model stays the active one
``notellm:v1:readings:<model>``     kept     predictions cost GPU hours
``notellm:v1:failed:<model>``       kept     or notes that break workers would be tried again
``notellm:v1:dead``                 kept     the reasons stand nowhere else
``notellm:v1:events``               kept     pairs are made of them
``notellm:v1:seen:<user>``          dropped  the next gateway fills it in from the events that are still there
``notellm:v1:erasing:<digest>``     dropped  an erasure that was not finished was not acknowledged
``notellm:v1:event:<id>``           rebuilt  from the events, each to expire when it would have; not those of readers
                                             who were erased
``notellm:v1:exposure``             kept     events that were exported and removed cannot be counted again
``notellm:v1:exposed``              dropped  every index is built anew
``notellm:v1:served``               dropped  reports are made of what was exported of it
``notellm:v1:servedcounts``         dropped  with it
``notellm:v1:forgotten``            dropped  with it
``notellm:v1:listed:<day>:<m>``     dropped  figures of two days
``notellm:v1:answered:<time>``      dropped  figures of two hours
``notellm:v1:outcomes:<day>``       dropped  figures of two weeks; reports are made of exported events
``notellm:v1:readerkey``            kept     or readers would have other names than in the files exported so far
``notellm:v1:ids``                  rebuilt  the live ones of the notes
``notellm:v1:attributes``           rebuilt  counted from the notes
``notellm:v1:tag:<key>``            rebuilt  counted from the notes
``notellm:v1:tags``                 rebuilt  counted from the notes
``notellm:v1:tagnames``             rebuilt  counted from the notes
``notellm:v1:newtags:<day>``        rebuilt  counted from the notes; one without created_at is then an old one
``notellm:v1:newnotes``             rebuilt  with them
``notellm:v1:tagrules``             kept     or what was blocked would be suggested again
``notellm:v1:experiments``          kept     or readers would leave their arms, and reports lose theirs
``notellm:v1:findings``             dropped  `notellm experiment report` and `notellm learn` tell them again
``notellm:v1:watch``                dropped  nothing is known of the model before, whose figures are gone
``notellm:v1:guardian``             dropped  with it
``notellm:v1:webhook``              dropped  streams begin anew, and the webhook hears what comes then
``notellm:v1:webhookholder``        dropped  with it
``notellm:v1:counts``               rebuilt  counted from the notes
``notellm:v1:completed``            dropped  so that the next gateway looks what else is missing
``notellm:v1:writes``               rebuilt  a new stream, so that every cache starts empty
``notellm:v1:jobs:<model>``         rebuilt  by the model's next worker: a job for each note without a prediction
``notellm:v1:filled``               dropped  so that this worker queues them
``notellm:v1:embeddings``           dropped  an index whose cursor has no entry is rebuilt from the predictions
``notellm:v1:cursors``              dropped  they are of snapshots of another history
``notellm:v1:answer:<digest>``      dropped  one may acknowledge a write that the backup lacks; repeated, a write
                                             that it holds changes nothing
``notellm:v1:restoring``            dropped  there is no backup of half a store
``notellm:v1:format``               dropped  a restore writes the format of its own release
``notellm:v1:fence``                dropped  it holds nothing
``notellm:v1:cells``                dropped  a backup holds the notes of all cells, and may go into any number
``notellm:v1:types``                dropped  a restore into several cells makes it of the notes
==================================  =======  ==================================================================

Of several cells, the notes of all are in the same files.

A backup is made while the service runs. Each note, with every model's predictions for it, is as of one moment between
the beginning and the end. Every write and delete acknowledged before the beginning is in it, later ones may be. A note
may stand in it twice (Redis' SCAN): the higher version counts. Memory holds one batch.

The folder gets its name when all of it is on disk. Until then it is ``.<name>.unfinished``.
"""

import gzip
import heapq
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from model.files import lock_folder, sync
from model.progress import bar
from service.backup.files import (
    BATCH,
    FINGERPRINT,
    HASHES,
    MANIFEST,
    MODEL,
    NOTES,
    SHOWN,
    STREAMS,
    SUMS,
    BackupError,
    Hash,
    Line,
    Manifest,
    failures_file,
    line_files,
    note_line,
    prediction_line,
    predictions_file,
    stream_line,
    sums,
    vectors_file,
)
from service.errors import StoreUnavailable
from service.store.attribution.readers import sync_key_of
from service.store.cells.ring import Cells
from service.store.connection import redis_errors
from service.store.records import StoredFailure, StoredNote, StoredPrediction, pack_vector, parse_entry_id
from service.store.schema import ACTIVE, COUNTS, EXPOSURE, FAILED, MODELS, NOTE, READINGS, RESTORING

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

_COMPRESSION = 3


def back_up(cells: "Cells[SyncRedis]", folder: Path, checkpoint: Path | None = None) -> Manifest:
    """Write a backup into a new folder; with ``checkpoint``, the one of the active model, its files are in it.

    Raises:
        BackupError: if the folder exists, the checkpoint is of another model, or models changed or notes were removed
            during the backup.
        StoreUnavailable: if Redis stopped answering, or is being restored.
        OSError: if the disk cannot hold it.
    """
    fingerprint = _fingerprint(checkpoint) if checkpoint else None
    with _staged(folder) as staged:
        with ExitStack() as stack:
            with redis_errors():  # one connection: a scan that goes on after a restart of Redis would miss notes
                clients = cells.map(lambda redis: redis.client())  # type: ignore[no-untyped-call]
            manifest = _Backup(clients.map(stack.enter_context), staged).write()
        if checkpoint:
            if fingerprint != manifest.active:
                raise BackupError(f"{checkpoint} is the model {fingerprint}, and {manifest.active or 'none'} is active")
            shutil.copytree(checkpoint, staged / MODEL)
        (staged / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        (staged / SUMS).write_text(sums(staged), encoding="utf-8")
        _sync_all(staged)
    return manifest


class _Backup:
    """One backup."""

    def __init__(self, cells: "Cells[SyncRedis]", folder: Path) -> None:
        self._cells = cells
        self._folder = folder
        self._live = self._deleted = self._malformed = 0
        self._models: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self._files: dict[str, Any] = {}

    def write(self) -> Manifest:
        begun_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._models, _, expected = self._state()
        for model in self._models:
            if not FINGERPRINT.fullmatch(model):
                raise BackupError(f"the model {model!r} has a name that no file can have")
        with ExitStack() as stack:
            for name in line_files(self._models):
                self._lines[name] = 0
                self._files[name] = stack.enter_context(gzip.open(self._folder / name, "wb", _COMPRESSION))
            for name in map(vectors_file, self._models):
                self._files[name] = stack.enter_context((self._folder / name).open("wb"))
            with bar("notes", expected, "note") as progress:
                for redis in self._cells:
                    self._write_notes(redis, progress)
            for name, stream in STREAMS.items():
                self._write_stream(name, stream)
            for name, kept in HASHES.items():
                self._write_hash(name, kept)
            for redis in self._cells:
                self._write_exposure(redis)
        models, active, _ = self._state()
        if models != self._models:
            raise BackupError("a model was registered or retired meanwhile: begin again")
        if self._live + self._deleted + self._malformed < expected:
            raise BackupError("notes were removed from Redis meanwhile, which no command of ours does")
        counts = self._live, self._deleted, self._lines
        key = sync_key_of(self._cells.first).hex()
        return Manifest(begun_at, self._models, active, *counts, malformed=self._malformed, reader_key=key)

    def _state(self) -> tuple[dict[str, int], str | None, int]:
        """Models, the active one, and the number of notes and tombstones."""
        found = []
        for redis in self._cells:
            with redis_errors(), redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(MODELS)
                pipe.get(ACTIVE)
                pipe.hmget(COUNTS, ["live", "deleted"])
                pipe.exists(RESTORING)
                found.append(pipe.execute())
        if any(restoring for *_, restoring in found):
            raise StoreUnavailable("a restore is not finished")
        models, active, *_ = found[0]
        dims = {model.decode(): int(dim) for model, dim in sorted(models.items())}
        return dims, active and active.decode(), sum(int(count or 0) for _, _, counts, _ in found for count in counts)

    def _write_notes(self, redis: "SyncRedis", progress: Any) -> None:
        for keys in _keys(redis):
            with redis_errors(), redis.pipeline(transaction=True) as pipe:
                ids = [key.removeprefix(NOTE.encode()) for key in keys]
                pipe.mget(keys)
                for model in self._models:
                    pipe.hmget(READINGS + model, ids)
                    pipe.hmget(FAILED + model, ids)
                notes, *of_models = pipe.execute()
            self._write_records(notes)
            for model, predictions, failures in zip(self._models, of_models[::2], of_models[1::2], strict=True):
                self._write_predictions(model, ids, predictions, failures)
            progress.update(len(keys))

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

    def _write_predictions(
        self, model: str, ids: Sequence[bytes], predictions: Sequence[bytes | None], failures: Sequence[bytes | None]
    ) -> None:
        for id_, prediction, failure in zip(ids, predictions, failures, strict=True):
            try:
                if prediction is not None:
                    self._write_prediction(model, id_.decode(), StoredPrediction.decode(prediction))
                if failure is not None:
                    self._write(failures_file(model), {"id": id_.decode()} | asdict(StoredFailure.decode(failure)))
            except ValueError:
                self._malformed += 1

    def _write_prediction(self, model: str, note_id: str, predicted: StoredPrediction) -> None:
        if len(predicted.vector) != self._models[model]:
            raise ValueError(f"a vector of {model} has {self._models[model]} numbers")
        self._files[vectors_file(model)].write(pack_vector(predicted.vector))
        self._write(predictions_file(model), prediction_line(note_id, predicted))

    def _write_stream(self, name: str, stream: str) -> None:
        """The entries of all cells by their time, each later than the one before."""
        last = 0, -1
        for at, fields in heapq.merge(*(_entries(redis, stream) for redis in self._cells), key=itemgetter(0)):
            last = at if at > last else (last[0], last[1] + 1)
            self._write(name, {"entry": f"{last[0]}-{last[1]}"} | stream_line(stream, fields))

    def _write_hash(self, name: str, kept: Hash) -> None:
        with redis_errors():
            fields: Any = self._cells.first.hgetall(kept.key)
        for field, value in fields.items():  # as they are, the number of changes with them
            self._write(name, {kept.field: field.decode(), kept.value: value.decode()})

    def _write_exposure(self, redis: "SyncRedis") -> None:
        with redis_errors():
            for note_id, count in redis.hscan_iter(EXPOSURE, count=BATCH):
                self._write(SHOWN, {"id": note_id.decode(), "shown": int(count)})

    def _write(self, name: str, line: Line) -> None:
        self._files[name].write(orjson.dumps(line) + b"\n")
        self._lines[name] += 1


def _keys(redis: "SyncRedis") -> Iterator[list[bytes]]:
    cursor: Any = 0
    while True:
        with redis_errors():
            page: Any = redis.scan(cursor, match=NOTE + "*", count=BATCH)
        cursor, keys = page
        if keys:
            yield keys
        if not cursor:
            return


def _entries(redis: "SyncRedis", stream: str) -> Iterator[tuple[tuple[int, int], dict[bytes, bytes]]]:
    after = "-"
    while True:
        with redis_errors():
            entries: Any = redis.xrange(stream, after, count=BATCH)
        for entry, fields in entries:
            yield parse_entry_id(entry.decode()), fields
        if len(entries) < BATCH:
            return
        after = f"({entries[-1][0].decode()}"


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder that gets its name at the end of the block."""
    if folder.exists():
        raise BackupError(f"{folder} is there already: name a new folder")
    if not folder.parent.is_dir():
        raise BackupError(f"{folder.parent} is no folder: make it first")
    staged = folder.with_name(f".{folder.name}.unfinished")
    with lock_folder(folder.parent):
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
