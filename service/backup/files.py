"""What the files of a backup hold, for writing and for reading: each line beside its inverse."""

import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any, Self

import msgpack

from model.note import Note
from model.progress import bar
from service.settings import SetupError
from service.store.records import StoredNote, StoredPrediction, unpack_vector
from service.store.schema import DEAD, EVENTS

FORMAT = 1
MANIFEST, SUMS, NOTES, MODEL = "manifest.json", "SHA256SUMS", "notes.jsonl.gz", "model"
STREAMS = {"events.jsonl.gz": EVENTS, "dead.jsonl.gz": DEAD}
BATCH = 256
FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Line = dict[str, Any]


class BackupError(SetupError):
    """A backup that cannot be made or used."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. ``models`` are fingerprints with the dimension of their vectors; ``lines`` are by file."""

    begun_at: str
    models: dict[str, int]
    active: str | None
    live: int
    deleted: int
    lines: dict[str, int]
    malformed: int = 0
    format: int = FORMAT
    notellm: str = field(default_factory=lambda: importlib.metadata.version("notellm"))

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Inverse of what `back_up` writes. Raises BackupError when it is something else, or of a later format."""
        try:
            held = json.loads(text)
            if held["format"] > FORMAT:
                raise BackupError(
                    f"it was made by notellm {held['notellm']} in format {held['format']}, and this one reads up to "
                    f"{FORMAT}; install that version"
                )
            found = cls(**held)
            named = all(FINGERPRINT.fullmatch(model) for model in found.models)
            whole = found.lines.keys() == {*lines_of(found.models)}
        except (ValueError, TypeError, KeyError, AttributeError):
            named = whole = False
        if not (named and whole):
            raise BackupError(f"its {MANIFEST} is none")
        return found


def readings_file(model: str) -> str:
    """What a model said."""
    return f"readings-{model}.jsonl.gz"


def vectors_file(model: str) -> str:
    """Its vectors."""
    return f"vectors-{model}.f32"


def failures_file(model: str) -> str:
    """What its workers gave up."""
    return f"failures-{model}.jsonl.gz"


def lines_of(models: Mapping[str, int]) -> list[str]:
    """The files of lines that a backup with these models has."""
    of_models = [file(model) for model in models for file in (readings_file, failures_file)]
    return [NOTES, *of_models, *STREAMS]


def sums(folder: Path) -> str:
    """Digest and name of every file but SHA256SUMS, as `sha256sum` writes them, with a bar of the bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    lines = []
    with bar("checksums", sum(path.stat().st_size for path in files), "B") as progress:
        for path in files:
            with path.open("rb") as file:
                lines.append(f"{file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
            progress.update(path.stat().st_size)
    return "".join(lines)


def note_line(stored: StoredNote) -> Line:
    """A note, or a tombstone, as a line."""
    if stored.deleted:
        return {"note_id": stored.note.id, "version": stored.version, "deleted": True}
    note = {"note_id": stored.note.id, "version": stored.version, **asdict(stored.note)}
    del note["id"]
    return note | {"author": stored.author, "created_at": stored.created_at}


def note_of(line: Line) -> StoredNote:
    """Inverse of `note_line`."""
    if line.get("deleted"):
        return StoredNote(Note(line["note_id"]), line["version"], deleted=True)
    note = Note(
        line["note_id"],
        line["title"],
        line["content"],
        tuple(line["hashtags"]),
        line["category"],
        line["exposure"],
    )
    return StoredNote(note, line["version"], line["author"], line["created_at"])


def reading_line(note_id: str, read: StoredPrediction) -> Line:
    """What a model said of a note, as a line; the vector stands elsewhere."""
    return {
        "id": note_id,
        "version": read.version,
        "hashtags": read.hashtags,
        "category": read.category,
        "source": read.source.hex(),
    }


def reading_of(line: Line, model: str, vector: bytes) -> StoredPrediction:
    """Inverse of `reading_line`."""
    return StoredPrediction(
        line["version"],
        model,
        unpack_vector(vector),
        tuple((tag, score) for tag, score in line["hashtags"]),
        line["category"] and (line["category"][0], line["category"][1]),
        bytes.fromhex(line["source"]),
    )


def stream_line(stream: str, fields: Mapping[bytes, bytes]) -> Line:
    """An entry of `STREAMS`, without its id."""
    if stream == EVENTS:
        return {"event": msgpack.unpackb(fields[b"event"])}
    return {"fields": {name.decode(): value.decode() for name, value in fields.items()}}


def fields_of(line: Line) -> dict[Any, Any]:
    """Inverse of `stream_line`."""
    return dict(line["fields"]) if "fields" in line else {"event": msgpack.packb(line["event"])}
