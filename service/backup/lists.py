"""Every note's list of related notes, in one Parquet file: the lists that the service answers with, without HTTP.

::

    lists.parquet              a row a note, in byte order of the ids: note_id, related_ids, scores
    .lists.parquet.parts/      until that is whole: the rows so far, a file a page of notes

A run that ends early leaves its parts, and the same command goes on after the last of them. Memory holds one page, and
the summaries of the settings' ``cached_notes``.
"""

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.types import Searcher
from model.files import lock_folder, publish
from model.progress import bar
from service.deadlines import Deadline
from service.errors import IndexUnavailable, NoteNotFound, NotePending
from service.recommend.note_cache import NoteCache
from service.recommend.query import SCORE_DIGITS, RelatedQuery
from service.recommend.ranking import RelatedNote
from service.recommend.related import Neighborhood, Origins, RelatedNotes
from service.recommend.seeds import Seeds
from service.settings import SetupError
from service.store.interfaces import NoteStore

PAGE = 1_000
# Notes whose lists are made together, and how often so many are under way: the shards search for some of a page while
# the lists of others are made.
TOGETHER, AT_ONCE = 256, 2
TIMEOUT_S = 10.0
SCHEMA = pa.schema(
    [("note_id", pa.string()), ("related_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
)
PROGRESS = b"notellm"

Row = tuple[str, Sequence[RelatedNote]]


class ListsError(SetupError):
    """Lists cannot be made, or not be continued; the message is one line with the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of one model, with at most ``k`` notes each, of all notes up to ``last``; an empty id: of all.

    ``pending`` notes have none, as no version of them is in the index.
    """

    model: str
    k: int
    notes: int = 0
    pending: int = 0
    last: str = ""

    @classmethod
    def of(cls, path: Path) -> Self:
        """What a part says of itself and those before it. Raises ListsError."""
        try:
            return cls(**json.loads(pq.read_schema(path).metadata[PROGRESS]))
        except (pa.ArrowInvalid, TypeError, KeyError, ValueError):
            raise ListsError(f"{path} is no part of a file of lists: remove {path.parent} to begin anew") from None


class RelatedLists:
    """Makes the lists of the notes of a store, from the index of one model.

    Args:
        cached_notes: how many notes' summaries are cached; with as many as there are notes, each is fetched once.
    """

    def __init__(self, store: NoteStore, searcher: Searcher, fingerprint: str, cached_notes: int) -> None:
        self._store = store
        self._fingerprint = fingerprint
        cache = NoteCache(store, cached_notes, TIMEOUT_S)
        self._seeds = Seeds(store, cache, searcher, fingerprint, PAGE)
        self._neighborhood = Neighborhood(cache, self._seeds, searcher, popularity_weight=0.0)
        self._under_way = asyncio.Semaphore(AT_ONCE)

    async def write(self, path: Path, k: int) -> Lists:
        """Write each note's k related notes, of hidden notes none; what is deleted or hidden is in no list.

        Each list is as of a moment of the run, or of the run that this one continues.

        Raises:
            ListsError: if a shard does not answer, or the parts there are of another model or k.
            FolderInUse: if another process writes the same file.
            StoreUnavailable: see `NoteStore`. The same call goes on where this one ended, in every case.
        """
        parts = path.with_name(f".{path.name}.parts")
        parts.mkdir(parents=True, exist_ok=True)
        with lock_folder(parts):
            for leftover in parts.glob(".*"):
                leftover.unlink()
            written = sorted(parts.iterdir())
            lists = Lists.of(written[-1]) if written else Lists(self._fingerprint, k)
            if (lists.model, lists.k) != (self._fingerprint, k):
                raise ListsError(
                    f"{parts} was begun with model {lists.model} and k = {lists.k}: finish that, or remove the folder"
                )
            total = (await self._store.counts(self._fingerprint)).live
            with bar("lists", total, "note") as progress:
                progress.update(lists.notes)
                while not written or lists.last:
                    before = lists.notes
                    lists = await self._write_part(parts / f"{len(written):08}.parquet", lists)
                    written.append(parts / f"{len(written):08}.parquet")
                    progress.update(lists.notes - before)
            staged = _joined(written, path, lists)
            # Before the file has its name: were they left beside it, the next run would take them for its own.
            shutil.rmtree(parts)
            publish(staged, path)
        return lists

    async def _write_part(self, path: Path, so_far: Lists) -> Lists:
        """Write the lists of the next page of notes."""
        page = await self._store.page(so_far.last, PAGE)
        note_ids = [record.note.id for record in page.records if not record.hidden]
        await self._seeds.prefetch(note_ids, TIMEOUT_S)
        calls = (self._related(note_ids[at : at + TOGETHER], so_far.k) for at in range(0, len(note_ids), TOGETHER))
        rows = [row for part in await asyncio.gather(*calls) for row in part]
        lists = replace(
            so_far,
            notes=so_far.notes + len(rows),
            pending=so_far.pending + len(note_ids) - len(rows),
            last=page.last or "",
        )
        staged = path.with_name(f".{path.name}")
        pq.write_table(_table(rows).replace_schema_metadata(_metadata(lists)), staged, compression="zstd")
        publish(staged, path)
        return lists

    async def _related(self, note_ids: Sequence[str], k: int) -> list[Row]:
        """The lists of these notes, without those that are not searchable, or were deleted meanwhile."""
        async with self._under_way:
            found = await self._neighborhood.of_cached(note_ids, RelatedQuery(k), Deadline(TIMEOUT_S))
            lists = [(note_id, found.get(note_id) or await self._alone(note_id, k)) for note_id in note_ids]
        return [(note_id, related.notes) for note_id, related in lists if related]

    async def _alone(self, note_id: str, k: int) -> RelatedNotes | None:
        try:
            related = await self._neighborhood.of_notes(Origins([note_id]), RelatedQuery(k), Deadline(TIMEOUT_S))
        except (NoteNotFound, NotePending):
            return None
        except IndexUnavailable as error:
            raise ListsError(f"{error}: the same command goes on when it does") from error
        if related.degraded:
            raise ListsError(
                f"only {related.shards_ok} of {related.shards_total} shards, or not the store, answered in time: "
                "the same command goes on where this one ended"
            )
        return related


def _table(rows: Sequence[Row]) -> pa.Table:
    """Flat columns and where each list begins: a list of lists would be looked through number by number."""
    starts = pa.array(np.cumsum([0, *(len(notes) for _, notes in rows)], dtype=np.int32))
    ids = pa.array([note.note_id for _, notes in rows for note in notes], pa.string())
    scores = np.round([note.score for _, notes in rows for note in notes], SCORE_DIGITS).astype(np.float32)
    lists = [pa.ListArray.from_arrays(starts, values) for values in (ids, pa.array(scores))]
    return pa.table([pa.array([note_id for note_id, _ in rows], pa.string()), *lists], SCHEMA)


def _metadata(lists: Lists) -> dict[bytes, bytes]:
    return {PROGRESS: json.dumps(asdict(lists)).encode()}


def _joined(parts: Sequence[Path], path: Path, lists: Lists) -> Path:
    """One file of the parts, which has not yet its name."""
    staged = path.with_name(f".{path.name}.part")
    schema = SCHEMA.with_metadata(_metadata(lists))
    with pq.ParquetWriter(staged, schema, compression="zstd") as file:
        for part in parts:
            file.write_table(pq.read_table(part).cast(schema))
    return staged
