"""A file of notes becomes a folder of vectors, part by part.

::

    vectors/
      _manifest.json        model, input, and notes a part
      part-00000.parquet    note_id and vector of the first notes, in the input's order
      part-00001.parquet    ...

A part appears under its name when all of it is on disk, so the run after a crash does only the missing parts. Several
processes may share a load, each with a shard of the parts; who writes a part has a lock on it. Readers of Parquet
folders skip names that begin with a dot or an underscore. Memory holds one part, and all ids.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from model.backend import Backend
from model.data.notes import LabeledNote, notes_files, stream_labeled, stream_notes
from model.files import lock_file, lock_folder, publish, write_json
from model.inference.many import embed_part
from model.note import Note

MANIFEST = "_manifest.json"
NOTES_PER_PART = 10_000


class BulkError(ValueError):
    """A folder of vectors cannot be continued; the message is one line with the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class BulkLoad:
    """A load into a folder of vectors, and its progress. ``sha256`` is that of the input: of its file, or of
    the digests of its files."""

    source: Sequence[Path]
    out: Path
    fingerprint: str
    sha256: str
    notes: int
    notes_per_part: int

    @property
    def parts(self) -> int:
        """How many files there will be; the last one may hold fewer notes."""
        return -(-self.notes // self.notes_per_part)

    def shard(self, number: int, shards: int) -> range:
        """The parts of one of so many processes, which are counted from 0: every ``shards``-th."""
        return range(number, self.parts, shards)

    def path(self, part: int) -> Path:
        """The path of a finished part."""
        return self.out / f"part-{part:05}.parquet"

    def finished(self) -> set[int]:
        """The parts on disk."""
        return {part for part in range(self.parts) if self.path(part).exists()}

    def size(self, part: int) -> int:
        """Notes in a part."""
        return min(self.notes_per_part, self.notes - part * self.notes_per_part)


def begin(source: Path, out: Path, fingerprint: str, notes_per_part: int = NOTES_PER_PART) -> BulkLoad:
    """Open the load of a file of notes, or of a folder with one, into ``out``; a load begun there is continued.

    A new input is checked to its last line first, before hours of work.

    Raises:
        DataError: if the file cannot be read as notes, or an id stands in it twice.
        BulkError: if the folder was begun with another model, input or size of parts.
    """
    files = notes_files(source)
    sha256 = _sha256(files)
    begun = _begun(files, out)
    if begun is None:
        notes = sum(1 for _ in stream_notes(files))
        begun = _begin_once(BulkLoad(files, out, fingerprint, sha256, notes, notes_per_part))
    if begun.fingerprint != fingerprint:
        raise _other(out, f"vectors of model {begun.fingerprint}, and this checkpoint is {fingerprint}")
    if begun.sha256 != sha256:
        raise _other(out, f"vectors of another input than {source.name} is now")
    if begun.notes_per_part != notes_per_part:
        raise _other(out, f"parts of {begun.notes_per_part} notes, not of {notes_per_part}")
    return begun


def finished_load(source: Path, out: Path) -> BulkLoad:
    """The load of a file of notes, or of a folder with one, whose every part is in ``out``.

    Raises:
        DataError: if there is no such file.
        BulkError: if parts are missing, or the folder holds vectors of other notes.
    """
    files = notes_files(source)
    load = _begun(files, out)
    if load is None:
        raise BulkError(f"{out} holds no {MANIFEST}: it is not what `notellm embed` wrote")
    if load.sha256 != _sha256(files):
        raise BulkError(f"{out} holds vectors of another input than {source.name} is now: embed it into a new folder")
    missing = load.parts - len(load.finished())
    if missing:
        raise BulkError(f"{missing} of {load.parts} parts are missing in {out}: run the same `notellm embed` again")
    return load


def embedded_notes(load: BulkLoad) -> Iterator[tuple[list[LabeledNote], NDArray[np.float32]]]:
    """The notes of each part with their vectors, shape (notes, D). Raises BulkError on a part of something else."""
    notes = stream_labeled(load.source)
    for part in range(load.parts):
        own = list(islice(notes, load.notes_per_part))
        table = pq.read_table(load.path(part))
        if table["note_id"].to_pylist() != [labeled.note.id for labeled in own]:
            raise BulkError(f"{load.path(part)} holds vectors of other notes: remove it, and run `notellm embed` again")
        yield own, table["vector"].combine_chunks().flatten().to_numpy().reshape(len(own), -1)


def embed_missing(load: BulkLoad, backend: Backend, parts: range | None = None) -> None:
    """Embed those of the parts that are not finished, in order; of all parts by default.

    Raises:
        FolderInUse: if another process is at work on one of them.
    """
    assert backend.fingerprint == load.fingerprint
    with progress_of(load, parts) as progress:
        for part, notes in missing(load, parts):
            with writing(load, part, notes) as write:
                write(embed_part(backend, notes, progress))


def progress_of(load: BulkLoad, parts: range | None = None) -> "tqdm[Any]":
    """A bar of the notes of these parts, of all by default, that starts at those of finished ones."""
    own, finished = _own(load, parts), load.finished()
    done = sum(load.size(part) for part in own if part in finished)
    return tqdm(total=sum(map(load.size, own)), initial=done, desc="embed", unit="note")


def missing(load: BulkLoad, parts: range | None = None) -> Iterator[tuple[int, list[Note]]]:
    """Those of the parts, of all by default, that are not finished by their turn, with their notes, in order."""
    notes, own = stream_notes(load.source), _own(load, parts)
    for part in range(load.parts):
        of_part = list(islice(notes, load.notes_per_part))
        if part in own and not load.path(part).exists():
            yield part, of_part


@contextmanager
def writing(load: BulkLoad, part: int, notes: Sequence[Note]) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """What publishes the vectors of a part, shape (notes, D), while no other process is at work on it.

    Raises:
        FolderInUse: if one is.
    """
    path = load.path(part)
    staged = path.with_name(f".{path.name}")

    def write(vectors_ND: NDArray[np.float32]) -> None:
        _write_vectors(staged, [note.id for note in notes], vectors_ND, load.fingerprint)
        publish(staged, path)

    with lock_file(staged):
        yield write


def _own(load: BulkLoad, parts: range | None) -> range:
    return range(load.parts) if parts is None else parts


def _write_vectors(path: Path, ids: Sequence[str], vectors_ND: NDArray[np.float32], fingerprint: str) -> None:
    """Write embeddings as Parquet: note_id, vector (D float32); the model's fingerprint in the file's metadata."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
    table = pa.table({"note_id": pa.array(list(ids), pa.string()), "vector": vectors})
    pq.write_table(table.replace_schema_metadata({"fingerprint": fingerprint}), path, compression="zstd")


def _sha256(files: Sequence[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(one.digest() for one in digests))
    return whole.hexdigest()


def _begun(source: Sequence[Path], out: Path) -> BulkLoad | None:
    """The load of the folder's manifest; None for a new folder."""
    try:
        return BulkLoad(source, out, **json.loads((out / MANIFEST).read_bytes()))
    except FileNotFoundError:
        if any(out.glob("part-*.parquet")):
            raise _other(out, f"parts without {MANIFEST}") from None
        return None
    except (ValueError, TypeError):
        raise _other(out, f"a {MANIFEST} that cannot be read") from None


def _begin_once(load: BulkLoad) -> BulkLoad:
    """Write the manifest, unless another process of the same load, which began at the same time, was faster."""
    load.out.mkdir(parents=True, exist_ok=True)
    with lock_folder(load.out, wait=True):
        if begun := _begun(load.source, load.out):
            return begun
        fields = dataclasses.asdict(load)
        del fields["source"], fields["out"]  # both may be moved between runs
        write_json(load.out / MANIFEST, fields)
        return load


def _other(out: Path, content: str) -> BulkError:
    return BulkError(f"{out} holds {content}: choose another --out, or remove {out} to begin anew")
