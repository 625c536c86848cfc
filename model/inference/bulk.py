"""The first load of millions of notes: a file of notes becomes a folder of vectors, part by part.

::

    vectors/
      _manifest.json        what the parts are made of: model, input, notes a part
      part-00000.parquet    note_id and vector of the first notes, in the input's order
      part-00001.parquet    ...

A part appears under its name when all of it is on disk, so whatever ends a run, the next one finishes the rest and
does nothing twice. Names that begin with a dot or an underscore are skipped by readers of Parquet folders.
Memory holds one part, and all ids.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from model.backend import Backend
from model.data.notes import notes_file, stream_notes
from model.files import alone, settle
from model.inference.many import embed_part
from model.note import Note

MANIFEST = "_manifest.json"
NOTES_PER_PART = 10_000


class BulkError(ValueError):
    """A folder of vectors cannot be continued; the message says why and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class BulkLoad:
    """What a folder of vectors is made of, and how far it is. ``sha256`` is that of the input file."""

    source: Path
    out: Path
    fingerprint: str
    sha256: str
    notes: int
    notes_per_part: int

    @property
    def parts(self) -> int:
        """How many files there will be; the last one may hold fewer notes."""
        return -(-self.notes // self.notes_per_part)

    def path(self, part: int) -> Path:
        """Where a part is when it is finished."""
        return self.out / f"part-{part:05}.parquet"

    def finished(self) -> set[int]:
        """The parts that need not be done again."""
        return {part for part in range(self.parts) if self.path(part).exists()}

    def size(self, part: int) -> int:
        """Notes in a part."""
        return min(self.notes_per_part, self.notes - part * self.notes_per_part)


def begin(source: Path, out: Path, fingerprint: str, notes_per_part: int = NOTES_PER_PART) -> BulkLoad:
    """Open the load of a file of notes, or of a folder with one, into ``out``; a load begun there is continued.

    A new input is read once from end to end, so that a mistake in its last line shows before hours of work.

    Raises:
        DataError: if the file cannot be read as notes, or an id stands in it twice.
        BulkError: if the folder was begun with another model, input or size of parts.
    """
    source = notes_file(source)
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    begun = _begun(source, out)
    if begun is None:
        notes = sum(1 for _ in stream_notes(source))
        load = BulkLoad(source, out, fingerprint, sha256, notes, notes_per_part)
        _write_manifest(load)
        return load
    if begun.fingerprint != fingerprint:
        raise _other(out, f"vectors of model {begun.fingerprint}, and this checkpoint is {fingerprint}")
    if begun.sha256 != sha256:
        raise _other(out, f"vectors of another input than {source.name} is now")
    if begun.notes_per_part != notes_per_part:
        raise _other(out, f"parts of {begun.notes_per_part} notes, not of {notes_per_part}")
    return begun


def embed_missing(load: BulkLoad, backend: Backend) -> None:
    """Embed the parts that are not finished, in order; every note of them, and no other.

    Raises:
        FolderInUse: if another process is at work on the same folder.
    """
    assert backend.fingerprint == load.fingerprint
    with alone(load.out):
        finished = load.finished()
        done = sum(map(load.size, finished))
        notes = stream_notes(load.source)
        with tqdm(total=load.notes, initial=done, desc="embed", unit="note") as progress:
            for part in range(load.parts):
                found = list(islice(notes, load.notes_per_part))
                if part not in finished:
                    _write_part(load, part, found, embed_part(backend, found, progress))


def _write_part(load: BulkLoad, part: int, notes: Sequence[Note], vectors_ND: NDArray[np.float32]) -> None:
    path = load.path(part)
    beside = path.with_name(f".{path.name}")
    _write_vectors(beside, [note.id for note in notes], vectors_ND, load.fingerprint)
    settle(beside, path)


def _write_vectors(path: Path, ids: Sequence[str], vectors_ND: NDArray[np.float32], fingerprint: str) -> None:
    """Write embeddings as Parquet: note_id, vector (D float32); the model's fingerprint in the file's metadata."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
    table = pa.table({"note_id": pa.array(list(ids), pa.string()), "vector": vectors})
    pq.write_table(table.replace_schema_metadata({"fingerprint": fingerprint}), path, compression="zstd")


def _begun(source: Path, out: Path) -> BulkLoad | None:
    """The load that the folder's manifest tells of; None for a new folder."""
    try:
        held = json.loads((out / MANIFEST).read_bytes())
        return BulkLoad(source, out, **held)
    except FileNotFoundError:
        if any(out.glob("part-*.parquet")):
            raise _other(out, f"parts without {MANIFEST}") from None
        return None
    except (ValueError, TypeError):
        raise _other(out, f"a {MANIFEST} that cannot be read") from None


def _write_manifest(load: BulkLoad) -> None:
    load.out.mkdir(parents=True, exist_ok=True)
    held = dataclasses.asdict(load)
    del held["source"], held["out"]  # both may be moved between runs
    beside = load.out / f".{MANIFEST}"
    beside.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    settle(beside, load.out / MANIFEST)


def _other(out: Path, held: str) -> BulkError:
    return BulkError(f"{out} holds {held}: choose another --out, or remove {out} to begin anew")
