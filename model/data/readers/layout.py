"""The shared parts of the readers: published files in, row by row, and notes and events in our layout out.

A row is named in errors as `model.data.rows` names it: the 1-based line of a text file, the 0-based row of a Parquet
file. A field that is missing means another layout and is an error; null and NaN mean "not given".
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from model.data import rows
from model.data.events import CLICKS, EVENT_COLUMNS
from model.data.files import DataError, place, text_lines
from model.data.notes import NOTE_COLUMNS
from model.note import Note

NOTES_FILE = "notes.parquet"
EVENTS_FILE = "events.parquet"

_NOTE_TYPES = (pa.string(), pa.string(), pa.string(), pa.list_(pa.string()), pa.string(), pa.int64())
_EVENT_TYPES = (pa.string(), pa.string(), pa.string(), pa.int64())
_NOTES = pa.schema(list(zip(NOTE_COLUMNS, _NOTE_TYPES, strict=True)))
_EVENTS = pa.schema(list(zip(EVENT_COLUMNS, _EVENT_TYPES, strict=True)))
_ROWS_PER_GROUP = 65_536
_KINDS: Mapping[type, str] = {str: "strings", int: "whole numbers", dict: "objects"}

T = TypeVar("T")


class Event(NamedTuple):
    """One line of a log, in the order of `EVENT_COLUMNS`; ``event`` is a key of `CLICKS`, ``ts`` in any one unit."""

    user_id: str
    note_id: str
    event: str
    ts: int | None


class Source(NamedTuple):
    """A published set, loaded as it is iterated: first the events, on the way of which exposure is counted."""

    events: Iterator[Event]
    notes: Iterator[Note]


class Written(NamedTuple):
    """How many rows a conversion wrote."""

    notes: int
    events: int


def write(out: Path, source: Source, *, clicks_only: bool = False) -> Written:
    """Write ``notes.parquet`` and ``events.parquet`` into a folder: both, or neither if the source has a mistake.

    Of notes with the same id the first stays, for the splits of a set overlap. ``clicks_only`` leaves out the
    events that are mere views; the notes' exposure counts them all the same.

    Raises:
        DataError: if the source is not in its published layout, or holds no notes or no events.
    """
    out.mkdir(parents=True, exist_ok=True)
    events = (event for event in source.events if CLICKS[event.event]) if clicks_only else source.events
    with tempfile.TemporaryDirectory(dir=out, prefix=".convert-") as folder:
        unfinished = Path(folder)
        num_events = _write(unfinished / EVENTS_FILE, _EVENTS, events)
        num_notes = _write(unfinished / NOTES_FILE, _NOTES, map(_columns, _distinct(source.notes)))
        for kind, count in (("events", num_events), ("notes", num_notes)):
            if not count:
                raise DataError(f"the source holds no {kind}")
        for name in (EVENTS_FILE, NOTES_FILE):
            (unfinished / name).replace(out / name)
    return Written(num_notes, num_events)


def load_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank, see `model.data.files.text_lines`.

    Raises:
        DataError: if there is no such file, it is empty, or it cannot be read or unpacked.
    """
    empty = True
    for line in text_lines(_existing(path), place(path)):
        empty = False
        yield line
    if empty:
        raise DataError(f"{place(path)} is empty")


def load_parquet(path: Path, columns: Sequence[str]) -> Iterator[rows.Row]:
    """Each row as (place, the named columns), loaded batch by batch.

    Raises:
        DataError: if there is no such file, it is not Parquet, lacks a column, or has no rows.
    """
    empty = True
    for row in rows.parquet_rows(_existing(path), place(path), columns, columns):
        empty = False
        yield row
    if empty:
        raise DataError(f"{place(path)} is empty")


def text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field's text, empty if it is not given. Raises DataError."""
    _require([name], row, where)
    return rows.text(row, name, where) or ""


def identifier(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field's text or whole number as an id. Raises DataError if there is none."""
    value = _given(row, name, where)
    found = value if isinstance(value, str) else "" if value is None else str(whole(row, name, where))
    if not found:
        raise DataError(f"{where}: {name} must not be empty")
    return found


def several(row: Mapping[str, Any], name: str, kind: type[T], where: str) -> list[T]:
    """A field's list of strings, whole numbers or objects, empty if it is not given. Raises DataError."""
    value = _given(row, name, where)
    if value is not None and not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
        raise DataError(f"{where}: {name} must be a list of {_KINDS[kind]}")
    return value or []


def whole(row: Mapping[str, Any], name: str, where: str) -> int | None:
    """A field's whole number, also where a column with gaps stores it as a float. Raises DataError."""
    _require([name], row, where)
    return rows.whole(row, name, where)


def _given(row: Mapping[str, Any], name: str, where: str) -> Any:
    _require([name], row, where)
    return rows.given(row, name)


def _require(names: Iterable[str], found: Iterable[str], where: str) -> None:
    for name in names:
        if name not in found:
            raise DataError(f"{where}: {name} is missing; it holds {rows.listed(found)}")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path


def _distinct(notes: Iterable[Note]) -> Iterator[Note]:
    met: set[str] = set()
    for note in notes:
        if note.id not in met:
            met.add(note.id)
            yield note


def _columns(note: Note) -> tuple[Any, ...]:
    return note.id, note.title, note.content, note.hashtags, note.category, note.exposure


def _write(path: Path, schema: pa.Schema, rows: Iterable[tuple[Any, ...]]) -> int:
    """Write rows group by group, however many there are; how many there were."""
    remaining, count = iter(rows), 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            columns = zip(*group, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(group)
    return count
