"""The files of a backup: their names, and each kind of line with its inverse."""

import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgpack

from model.note import Note
from model.progress import bar
from service.settings import SetupError
from service.store.records import StoredNote, StoredPrediction, unpack_vector
from service.store.schema import DEAD, EVENTS, EXPERIMENTS, RULES

# 1 knew no attributes, languages and hidden notes, and no rules of hashtags; 2 no experiments, exposure and key of
# readers' names
FORMAT = 3
MANIFEST, SUMS, NOTES, MODEL = "manifest.json", "SHA256SUMS", "notes.jsonl.gz", "model"
HASHTAG_RULES, EXPERIMENT_RECORDS, SHOWN = "rules.jsonl.gz", "experiments.jsonl.gz", "exposure.jsonl.gz"
STREAMS = {"events.jsonl.gz": EVENTS, "dead.jsonl.gz": DEAD}
BATCH = 256
FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Line = dict[str, Any]


class Hash(NamedTuple):
    """A hash of Redis: its key, the format that it is in since, and what a line calls a field and its value."""

    key: str
    since: int
    field: str
    value: str


HASHES = {HASHTAG_RULES: Hash(RULES, 2, "tag", "rule"), EXPERIMENT_RECORDS: Hash(EXPERIMENTS, 3, "name", "experiment")}


class BackupError(SetupError):
    """A backup that cannot be made or used."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a backup: fingerprints with the dimension of their vectors, and the number of lines by file.

    ``reader_key`` is in hexadecimal digits, and empty in backups of older releases.
    """

    begun_at: str
    models: dict[str, int]
    active: str | None
    live: int
    deleted: int
    lines: dict[str, int]
    malformed: int = 0
    reader_key: str = ""
    format: int = FORMAT
    notellm: str = field(default_factory=lambda: importlib.metadata.version("notellm"))

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """The manifest that `back_up` wrote. Raises BackupError when it is malformed, or of a later format."""
        try:
            fields = json.loads(text)
            if fields["format"] > FORMAT:
                raise BackupError(
                    f"it was made by notellm {fields['notellm']} in format {fields['format']}, and this one reads "
                    f"up to {FORMAT}; install that version"
                )
            manifest = cls(**fields)
            bytes.fromhex(manifest.reader_key)
            named = all(FINGERPRINT.fullmatch(model) for model in manifest.models)
            whole = manifest.lines.keys() == {*line_files(manifest.models, manifest.format)}
        except (ValueError, TypeError, KeyError, AttributeError):
            named = whole = False
        if not (named and whole):
            raise BackupError(f"its {MANIFEST} is none")
        return manifest


def predictions_file(model: str) -> str:
    """A model's predictions."""
    return f"readings-{model}.jsonl.gz"


def vectors_file(model: str) -> str:
    """The vectors of its predictions."""
    return f"vectors-{model}.f32"


def failures_file(model: str) -> str:
    """Its failures."""
    return f"failures-{model}.jsonl.gz"


def line_files(models: Mapping[str, int], format_: int = FORMAT) -> list[str]:
    """The files of lines in a backup of this format with these models."""
    of_models = [file(model) for model in models for file in (predictions_file, failures_file)]
    hashes = [name for name, kept in HASHES.items() if format_ >= kept.since]
    return [NOTES, *of_models, *STREAMS, *hashes, *([SHOWN] if format_ >= 3 else [])]


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
    """The line of a note or tombstone."""
    if stored.deleted:
        return {"note_id": stored.note.id, "version": stored.version, "deleted": True}
    note = {"note_id": stored.note.id, "version": stored.version, **asdict(stored.note)}
    del note["id"]
    names = ("author", "created_at", "attributes", "language", "hidden", "detected")
    return note | {name: getattr(stored, name) for name in names}


def note_of(line: Line) -> StoredNote:
    """Inverse of `note_line`."""
    if line.get("deleted"):
        return StoredNote(Note(line["note_id"]), line["version"], deleted=True)
    title, content, hashtags = line["title"], line["content"], tuple(line["hashtags"])
    note = Note(line["note_id"], title, content, hashtags, line["category"], line["exposure"])
    # Lines of older releases end with `created_at`.
    attributes = {
        name: tuple(value) if isinstance(value, list) else value for name, value in line.get("attributes", {}).items()
    }
    return StoredNote(
        note,
        line["version"],
        line["author"],
        line["created_at"],
        attributes=attributes,
        language=line.get("language"),
        hidden=line.get("hidden", False),
        detected=line.get("detected"),
    )


def prediction_line(note_id: str, predicted: StoredPrediction) -> Line:
    """The line of a prediction, without its vector."""
    return {
        "id": note_id,
        "version": predicted.version,
        "hashtags": predicted.hashtags,
        "category": predicted.category,
        "source": predicted.source.hex(),
    }


def prediction_of(line: Line, model: str, vector: bytes) -> StoredPrediction:
    """Inverse of `prediction_line`."""
    return StoredPrediction(
        line["version"],
        model,
        unpack_vector(vector),
        tuple((tag, score) for tag, score in line["hashtags"]),
        line["category"] and (line["category"][0], line["category"][1]),
        bytes.fromhex(line["source"]),
    )


def stream_line(stream: str, fields: Mapping[bytes, bytes]) -> Line:
    """The line of an entry of `STREAMS`, without its id."""
    if stream == EVENTS and b"event" in fields:
        return {"event": msgpack.unpackb(fields[b"event"])}
    return {"fields": {name.decode(): value.decode() for name, value in fields.items()}}


def fields_of(line: Line) -> dict[Any, Any]:
    """Inverse of `stream_line`."""
    return dict(line["fields"]) if "fields" in line else {"event": msgpack.packb(line["event"])}
