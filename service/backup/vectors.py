"""Notes that were embedded without the service, into its store with their vectors: no worker reads them again."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from model.data.notes import LabeledNote
from model.inference.bulk.load import BulkError, BulkLoad, embedded_notes, finished_load
from model.progress import bar
from service.api.records import note_records
from service.api.validation import explain
from service.contract.notes import BulkNoteIn
from service.store.cells.attributes import SyncAttributeTypes
from service.store.connection import redis_errors
from service.store.interfaces import Refusal
from service.store.records import StoredNote, StoredPrediction, pack_vector
from service.store.schema import LUA, MODELS
from service.store.scripts.notes import PUT_NOTE, refusal

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

    from service.store.cells.ring import Cells

T = TypeVar("T")
R = TypeVar("R")
# Notes of one script, which nothing else in Redis runs beside.
_BATCH = 200
_SHOWN = 5

# ARGV: the model, the dimension of its vectors. A store's first model is active. 1 if its vectors can be loaded.
OPEN = (
    LUA
    + """
if redis.call('EXISTS', MODELS) == 0 then
  redis.call('HSET', MODELS, ARGV[1], ARGV[2])
  redis.call('SET', ACTIVE, ARGV[1])
end
return registered(ARGV[1]) and 1 or 0
"""
)

# ARGV: the model, the time in ms, then for each note: record and prediction, their versions not yet known, vector.
# Stores all and returns how many predictions were not there before; then for each note that was not stored its place,
# from 0, and why: see `PUT_NOTE`.
PUT_PREDICTED = (
    LUA
    + PUT_NOTE
    + """
local model, models, outcome = ARGV[1], redis.call('HKEYS', MODELS), {0}
for i = 3, #ARGV, 3 do
  local stored = cmsgpack.unpack(ARGV[i])
  local number = put_note(ARGV[i], stored, redis.call('GET', NOTE .. stored.id), models, model, '')
  if type(number) == 'table' then
    outcome[#outcome + 1] = {(i - 3) / 3, unpack(number)}
  else
    local prediction = with_version(ARGV[i + 1], number)
    outcome[1] = outcome[1] + publish(model, stored.id, number, stored, prediction, ARGV[i + 2], ARGV[2])
  end
end
settle()
return outcome
"""
)


@dataclass(slots=True)
class LoadedVectors:
    """Counts of a load: notes that are in the store with their vectors, how many of these are new, and the notes that
    the service would refuse; ``problems`` has the first few of those, each in one line."""

    model: str
    notes: int = 0
    new: int = 0
    rejected: int = 0
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The summary that the command prints."""
        lines = [f"{self.notes} notes with vectors of model {self.model} in the store, {self.new} of them new"]
        if self.rejected:
            lines += [f"{self.rejected} were rejected:", *(f"  {problem}" for problem in self.problems)]
        return "\n".join(lines)


def load_vectors(cells: "Cells[SyncRedis]", source: Path, folder: Path) -> LoadedVectors:
    """Put notes and what `notellm embed` wrote for them into the store; a repeated call changes nothing.

    The notes have no suggestions of their own. Other registered models read them as they read any.

    Raises:
        BulkError: if notes and vectors do not belong together, or are of a model that is not registered.
        DataError: if the notes cannot be read.
        StoreUnavailable: if Redis stopped answering; the same call finishes the work.
    """
    load = finished_load(source, folder)
    done = LoadedVectors(load.fingerprint)
    with (
        redis_errors(),
        bar("load", load.notes, "note") as progress,
        ThreadPoolExecutor(1) as preparing,
        ThreadPoolExecutor(1) as storing,
    ):
        store = _Store(cells)
        prepared = _one_ahead(preparing, lambda batch: _prepared(load.fingerprint, *batch), _batches(cells, load))
        for batch, new, refused in _one_ahead(storing, lambda batch: (batch, *store.put(batch)), prepared):
            _count(done, batch, new, refused)
            progress.update(batch.size)
    return done


@dataclass(frozen=True, slots=True)
class _Batch:
    """Notes of one script, which are of one cell, with its arguments for each; those that the contract refuses."""

    size: int
    model: str
    records: list[StoredNote]
    args: list[tuple[Any, ...]]
    refused: list[tuple[str, str]]


class _Store:
    """The cells, and in each the script that stores."""

    def __init__(self, cells: "Cells[SyncRedis]") -> None:
        self._puts = cells.map(lambda redis: redis.register_script(PUT_PREDICTED))
        self._types = SyncAttributeTypes(cells)

    def put(self, batch: _Batch) -> tuple[int, dict[int, Refusal]]:
        """Returns how many predictions were not there before, and of the notes that were refused their places."""
        refused = self._types.refusals(batch.records) if len(self._puts) > 1 else {}
        kept = [place for place in range(len(batch.records)) if place not in refused]
        if not kept:
            return 0, refused
        put = self._puts.of_note(batch.records[0].note.id)
        args = [batch.model, int(time.time() * 1000), *(word for place in kept for word in batch.args[place])]
        new, *refusals = put(args=args)
        return int(new), refused | {kept[int(place)]: refusal(why) for place, *why in refusals}


def _batches(cells: "Cells[SyncRedis]", load: BulkLoad) -> Iterator[tuple[list[LabeledNote], NDArray[np.float32]]]:
    for part, (notes, vectors_ND) in enumerate(embedded_notes(load)):
        if not part:
            for redis in cells:
                _open(redis, load, vectors_ND.shape[1])
        for _, own in cells.split(notes, lambda labeled: labeled.note.id):
            for start in range(0, len(own), _BATCH):
                batch = own[start : start + _BATCH]
                yield [notes[place] for place in batch], vectors_ND[batch]


def _one_ahead(pool: ThreadPoolExecutor, step: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The step of each item, in order. The next item is fetched while it runs: Redis works on one batch while the
    languages of the next are detected, which takes no lock of Python, and one more is read."""
    before: Future[R] | None = None
    for item in items:
        following = pool.submit(step, item)
        if before is not None:
            yield before.result()
        before = following
    if before is not None:
        yield before.result()


def _open(redis: "SyncRedis", load: BulkLoad, dim: int) -> None:
    if not redis.register_script(OPEN)(args=[load.fingerprint, dim]):
        known = ", ".join(sorted(model.decode() for model in redis.hkeys(MODELS)))  # type: ignore[union-attr]
        raise BulkError(
            f"{load.out} holds vectors of model {load.fingerprint}, and the store is of {known}: embed with that "
            "checkpoint, or start a worker of this model first"
        )


def _prepared(model: str, notes: Sequence[LabeledNote], vectors_ND: NDArray[np.float32]) -> _Batch:
    checked, refused = [], []
    for labeled, vector in zip(notes, vectors_ND, strict=True):
        try:
            checked.append((_checked(labeled), vector))
        except ValidationError as error:
            refused.append((labeled.note.id, explain(error)))
    records = note_records([body for body, _ in checked])
    args = [
        (record.encode(), StoredPrediction(0, model, vector, (), None).encode(), pack_vector(vector))
        for record, (_, vector) in zip(records, checked, strict=True)
    ]
    return _Batch(len(notes), model, records, args, refused)


def _count(done: LoadedVectors, batch: _Batch, new: int, refused: Mapping[int, Refusal]) -> None:
    for note_id, problem in batch.refused:
        _reject(done, note_id, problem)
    done.new += new
    done.notes += len(batch.records) - len(refused)
    for place, why in sorted(refused.items()):
        _reject(done, batch.records[place].note.id, str(why))


def _reject(done: LoadedVectors, note_id: str, problem: str) -> None:
    done.rejected += 1
    done.problems = (*done.problems, f"{' '.join(note_id.splitlines())[:128]}: {problem}")[:_SHOWN]


def _checked(labeled: LabeledNote) -> BulkNoteIn:
    """The body of a write of this note. Raises ValidationError where the contract refuses it."""
    note = labeled.note
    fields = {
        "note_id": note.id,
        "title": note.title,
        "content": note.content,
        "hashtags": list(note.hashtags),
        "category": note.category,
        "exposure": note.exposure,
        **labeled.labels,
    }
    return BulkNoteIn.model_validate(fields)
