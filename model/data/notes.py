"""Notes as files (see `model.data.rows`), and the closed set of their categories."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from model.data.files import SUFFIXES, DataError, data_files, text_lines
from model.data.rows import count, given, identifier, kind_of, load_rows, shown, strings, text
from model.data.times import MOST_SECONDS
from model.note import Note

NOTE_COLUMNS = ("note_id", "title", "content", "hashtags", "category", "exposure")
LABEL_COLUMNS = ("author", "created_at", "attributes", "language", "hidden")


@dataclass(frozen=True, slots=True)
class LabeledNote:
    """A note, and those of its `LABEL_COLUMNS` that the file gives, which no model sees.

    ``attributes`` is a dictionary of what JSON knows, ``created_at`` a text (RFC 3339 where it was none).
    """

    note: Note
    labels: Mapping[str, Any]


def load_notes(path: Path) -> list[Note]:
    """Notes of a file, of a folder of parts, or of what is called ``notes`` in a folder, in order.

    Only ``note_id`` is required. A note without text and hashtags is kept; see `is_blank`.

    Raises:
        DataError: if a file cannot be read as notes, or an id is there twice.
    """
    return list(stream_notes(notes_files(path)))


def has_notes(folder: Path) -> bool:
    """Whether a folder holds notes under their name, as files of events alone do not."""
    return any((folder / f"notes{suffix}").exists() for suffix in ("", *SUFFIXES))


def notes_files(path: Path) -> list[Path]:
    """The files of notes that a path names, see `model.data.files.data_files`. Raises DataError."""
    return data_files(path, "notes", NOTE_COLUMNS)


def stream_notes(files: Sequence[Path]) -> Iterator[Note]:
    """The notes of files, in order, with their ids alone in memory. Raises DataError as `load_notes` does."""
    return (note for note, _, _ in _stream(files, NOTE_COLUMNS))


def stream_labeled(files: Sequence[Path]) -> Iterator[LabeledNote]:
    """The same with what the files say of the notes besides. Raises DataError."""
    columns = NOTE_COLUMNS + LABEL_COLUMNS
    return (LabeledNote(note, _labels(row, where)) for note, row, where in _stream(files, columns))


def write_notes(path: Path, notes: Sequence[Note]) -> None:
    """Write notes as Parquet, with every column that `load_notes` knows."""
    import pyarrow as pa  # not every command that loads notes needs it
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.string(), pa.string(), pa.list_(pa.string()), pa.string(), pa.int64())
    rows = [(note.id, note.title, note.content, list(note.hashtags), note.category, note.exposure) for note in notes]
    columns = [pa.array([row[place] for row in rows], kind) for place, kind in enumerate(kinds)]
    pq.write_table(pa.table(columns, names=list(NOTE_COLUMNS)), path, compression="zstd")


def is_blank(note: Note) -> bool:
    """True for a note without text and hashtags: no ranker can tell two of them apart."""
    return not (note.title.strip() or note.content.strip() or any(tag.strip() for tag in note.hashtags))


def load_categories(path: Path, notes: Sequence[Note]) -> tuple[str, ...]:
    """The closed set of a file, one category a line, sorted.

    Raises:
        DataError: if the file cannot be read or is empty, or a note has a category that is not in it.
    """
    categories = set()
    for where, line in text_lines(path, path.name):
        try:
            categories.add(line.decode().strip())
        except UnicodeDecodeError:
            raise DataError(f"{where}: not valid UTF-8") from None
    categories.discard("")
    if not categories:
        raise DataError(f"{path.name} holds no categories")
    for note in notes:
        if note.category is not None and note.category not in categories:
            raise DataError(f"note {note.id!r} has the category {note.category!r}, which is not in {path.name}")
    return tuple(sorted(categories))


def _stream(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[Note, Mapping[str, Any], str]]:
    ids: set[str] = set()
    for where, row in load_rows(files, columns, required=("note_id",)):
        note = _note(row, where)
        if note.id in ids:
            raise DataError(f"{where}: note_id {shown(note.id)} is there twice")
        ids.add(note.id)
        yield note, row, where
    if not ids:
        raise DataError(f"{files[0].name} holds no notes")


def _labels(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    hidden = given(row, "hidden")
    if not isinstance(hidden, bool | None):
        raise DataError(f"{where}: hidden must be true or false, got {kind_of(hidden)}")
    labels = {
        "author": text(row, "author", where),
        "created_at": _created_at(row, where),
        "attributes": _attributes(row, where),
        "language": text(row, "language", where) or None,
        "hidden": hidden,
    }
    return {name: value for name, value in labels.items() if value not in (None, {})}


def _created_at(row: Mapping[str, Any], where: str) -> str | None:
    """A text as it is, a timestamp of Parquet, or a number of seconds since 1970."""
    value = given(row, "created_at")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS:
        value = datetime.fromtimestamp(float(value), UTC)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if not isinstance(value, str | None):
        raise DataError(f"{where}: created_at must be a time, or seconds since 1970, got {kind_of(value)}")
    return value


def _attributes(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Of a struct, a map or JSON text; null, NaN and empty lists mean not given."""
    value = given(row, "attributes")
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{where}: attributes is not valid JSON: {error.msg}") from None
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)  # a map of Parquet
    if not isinstance(value, dict | None):
        raise DataError(f"{where}: attributes must be an object, or one as JSON text, got {kind_of(value)}")
    named = ((name, _attribute(one, name, where)) for name, one in (value or {}).items())
    return {name: one for name, one in named if one is not None and one != []}


def _attribute(value: object, name: str, where: str) -> object:
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise DataError(f"{where}: attributes.{name} must be finite")
    if not isinstance(value, str | int | float | list | dict | None):
        raise DataError(f"{where}: attributes.{name} must be what JSON knows, got {kind_of(value)}")
    return value


def _note(row: Mapping[str, Any], where: str) -> Note:
    return Note(
        id=identifier(row, "note_id", where),
        title=text(row, "title", where) or "",
        content=text(row, "content", where) or "",
        hashtags=strings(row, "hashtags", where),
        category=text(row, "category", where) or None,
        exposure=count(row, "exposure", where),
    )
