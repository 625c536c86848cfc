"""Notes as files (see `model.data.rows`), and the closed set of their categories."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.data.files import DataError, data_files, text_lines
from model.data.rows import count, identifier, load_rows, shown, strings, text
from model.note import Note

NOTE_COLUMNS = ("note_id", "title", "content", "hashtags", "category", "exposure")


def load_notes(path: Path) -> list[Note]:
    """Notes of a file, of a folder of parts, or of what is called ``notes`` in a folder, in order.

    Only ``note_id`` is required. A note without text and hashtags is kept; see `is_blank`.

    Raises:
        DataError: if a file cannot be read as notes, or an id is there twice.
    """
    return list(stream_notes(notes_files(path)))


def notes_files(path: Path) -> list[Path]:
    """The files of notes that a path names, see `model.data.files.data_files`. Raises DataError."""
    return data_files(path, "notes", NOTE_COLUMNS)


def stream_notes(files: Sequence[Path]) -> Iterator[Note]:
    """The notes of files, in order, with their ids alone in memory. Raises DataError as `load_notes` does."""
    ids: set[str] = set()
    for where, row in load_rows(files, NOTE_COLUMNS, required=("note_id",)):
        note = _note(row, where)
        if note.id in ids:
            raise DataError(f"{where}: note_id {shown(note.id)} is there twice")
        ids.add(note.id)
        yield note
    if not ids:
        raise DataError(f"{files[0].name} holds no notes")


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


def _note(row: Mapping[str, Any], where: str) -> Note:
    return Note(
        id=identifier(row, "note_id", where),
        title=text(row, "title", where) or "",
        content=text(row, "content", where) or "",
        hashtags=strings(row, "hashtags", where),
        category=text(row, "category", where) or None,
        exposure=count(row, "exposure", where),
    )
