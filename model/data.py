"""Notes, events and related pairs as files: Parquet or JSON lines in, Parquet out.

A row is named in errors as a person would look it up: the 1-based line of a ``.jsonl`` file, the 0-based row
of a ``.parquet`` file. Columns that are not named here are ignored; null and NaN mean "not given". Events may also lie
in a folder ``events``, in Parquet files by day: ``events/dt=2026-01-31/*.parquet``.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from model.note import Note

NOTE_COLUMNS = ("note_id", "title", "content", "hashtags", "category", "exposure")
EVENT_COLUMNS = ("user_id", "note_id", "event", "ts")
PAIR_COLUMNS = ("note_id", "related_id", "score", "users")
# Whoever likes or saves a note has opened it: those count as clicks (eq. 1). Every event counts as a view.
CLICKS = {"view": False, "click": True, "like": True, "save": True}

_SUFFIXES = (".parquet", ".jsonl")
_ROWS_PER_BATCH = 8192

Row = tuple[str, Mapping[str, Any]]


class DataError(ValueError):
    """A file is not what it should be; the message is one line that names file, row and field."""


@dataclass(frozen=True, slots=True)
class EventTable:
    """A log of E events in columns. Codes count from 0 in no particular order.

    ``users``: int32 user codes, shape (E,). ``notes``: int32 positions in ``note_ids``, shape (E,).
    ``ts``: int64 in any one unit, shape (E,), 0 where ``untimed`` events have none.
    ``clicked``: bool, shape (E,), False for a mere view.
    """

    users: NDArray[np.int32]
    notes: NDArray[np.int32]
    ts: NDArray[np.int64]
    clicked: NDArray[np.bool_]
    note_ids: tuple[str, ...]
    num_users: int
    untimed: int

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, slots=True)
class Pairs:
    """P related pairs, by note and then best first; ``users`` counts those who stand behind each, shape (P,).

    ``skipped_users`` clicked too many notes to be counted; it is not stored in the file.
    """

    note_ids: tuple[str, ...]
    related_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    users: NDArray[np.int64]
    skipped_users: int = 0

    def __len__(self) -> int:
        return len(self.note_ids)

    def ends(self) -> list[tuple[str, str]]:
        """Note and related note of every pair, in order."""
        return list(zip(self.note_ids, self.related_ids, strict=True))

    def supported_by(self, min_users: int) -> "Pairs":
        """The pairs that at least ``min_users`` users stand behind, in order."""
        kept = np.flatnonzero(self.users >= min_users)
        return Pairs(
            tuple(self.note_ids[row] for row in kept),
            tuple(self.related_ids[row] for row in kept),
            self.scores[kept],
            self.users[kept],
            self.skipped_users,
        )


def read_notes(path: Path) -> list[Note]:
    """Notes of a file, or of ``notes.parquet`` or ``notes.jsonl`` in a folder, in order.

    Only ``note_id`` is required. A note without text and hashtags is kept; see `is_blank`.

    Raises:
        DataError: if the file cannot be read as notes, or an id stands in it twice.
    """
    return list(stream_notes(notes_file(path)))


def notes_file(path: Path) -> Path:
    """The file of notes that a path names: itself, or the one in a folder. Raises DataError if there is none."""
    return _file(path, "notes")


def stream_notes(file: Path) -> Iterator[Note]:
    """The notes of a file, in order, without holding more of them than their ids; errors are those of `read_notes`."""
    ids: set[str] = set()
    for where, row in _rows(file, NOTE_COLUMNS, required=("note_id",)):
        note = _note(row, where)
        if note.id in ids:
            raise DataError(f"{where}: note_id {_shown(note.id)} stands in the file twice")
        ids.add(note.id)
        yield note
    if not ids:
        raise DataError(f"{file.name} holds no notes")


def is_blank(note: Note) -> bool:
    """True for a note without text and hashtags: no ranker can tell it from another."""
    return not (note.title.strip() or note.content.strip() or any(tag.strip() for tag in note.hashtags))


def read_categories(path: Path, notes: Sequence[Note]) -> tuple[str, ...]:
    """The closed set of a file, one category a line, sorted.

    Raises:
        DataError: if the file cannot be read or is empty, or a note has a category that is not in it.
    """
    try:
        categories = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from None
    if not categories:
        raise DataError(f"{path.name} holds no categories")
    for note in notes:
        if note.category is not None and note.category not in categories:
            raise DataError(f"note {note.id!r} has the category {note.category!r}, which is not in {path.name}")
    return tuple(sorted(categories))


def has_events(folder: Path) -> bool:
    """Whether a folder holds events at all; some data sets are notes alone."""
    return any((folder / name).exists() for name in ("events.parquet", "events.jsonl", "events"))


def read_events(path: Path) -> EventTable:
    """Events of a file, of ``events.parquet`` or ``events.jsonl`` in a folder, or of a folder by day, in order.

    Ids are not checked against any notes. ``ts`` may be missing; ordered pairs then cannot be built.

    Raises:
        DataError: if the files cannot be read as events.
    """
    files = _days(path) or [_file(path, "events")]
    events = _jsonl_events(files[0]) if files[0].suffix == ".jsonl" else _parquet_events(files)
    if not len(events):
        raise DataError(f"{files[0].name} holds no events")
    return events


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write pairs as Parquet with the columns note_id, related_id, score and users."""
    columns = (list(pairs.note_ids), list(pairs.related_ids), pairs.scores, pairs.users)
    types = (pa.string(), pa.string(), pa.float64(), pa.int64())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    pq.write_table(pa.table(arrays, names=list(PAIR_COLUMNS)), path, compression="zstd")


def read_pairs(path: Path) -> Pairs:
    """Pairs of a file, or of ``pairs.parquet`` or ``pairs.jsonl`` in a folder, in order. Raises DataError."""
    path = _file(path, "pairs")
    note_ids, related_ids, scores, users = [], [], array("d"), array("q")
    for where, row in _rows(path, PAIR_COLUMNS, required=PAIR_COLUMNS):
        note_ids.append(_identifier(row, "note_id", where))
        related_ids.append(_identifier(row, "related_id", where))
        scores.append(_number(row, "score", where))
        users.append(_count(row, "users", where))
    return Pairs(
        tuple(note_ids),
        tuple(related_ids),
        np.array(scores, dtype=np.float64),
        np.array(users, dtype=np.int64),
    )


def write_vectors(path: Path, ids: Sequence[str], vectors_ND: NDArray[np.float32], fingerprint: str) -> None:
    """Write embeddings as Parquet: note_id, vector (D float32); the model's fingerprint in the file's metadata."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
    table = pa.table({"note_id": pa.array(list(ids), pa.string()), "vector": vectors})
    pq.write_table(table.replace_schema_metadata({"fingerprint": fingerprint}), path, compression="zstd")


def _file(path: Path, stem: str) -> Path:
    """The file itself, or the one called ``stem`` in a folder."""
    if path.is_dir():
        found = [path / f"{stem}{suffix}" for suffix in _SUFFIXES if (path / f"{stem}{suffix}").is_file()]
        if not found:
            raise DataError(f"{path}: no {stem}.parquet and no {stem}.jsonl in this folder")
        if len(found) > 1:
            raise DataError(f"{path}: {stem}.parquet and {stem}.jsonl are both in this folder; name one of them")
        [path] = found
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path.name}: the name must end in .parquet or .jsonl")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not path.stat().st_size:
        raise DataError(f"{path.name} is empty")
    return path


def _days(path: Path) -> list[Path]:
    """The files of a folder by day, which this is or holds as ``events``, oldest first; none where there is none."""
    folder = path / "events" if (path / "events").is_dir() else path
    found = sorted(folder.glob("dt=*/[!._]*.parquet"))
    if folder != path and not found:
        raise DataError(f"{folder}: no dt=YYYY-MM-DD/*.parquet in this folder")
    if folder != path and any((path / f"events{suffix}").exists() for suffix in _SUFFIXES):
        raise DataError(f"{path}: a file and a folder of events are both in this folder; name one of them")
    return found


def _rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    """Every row as (place, fields); a file is read piece by piece."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns, required)
    else:
        yield from _jsonl_rows(path, required)


def _parquet_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    with _parquet(path) as file, _progress(path, file.metadata.num_rows, "rows") as progress:
        present = _present(path, file.schema_arrow.names, columns, required)
        start = 0
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=present):
            for index, row in enumerate(batch.to_pylist(), start=start):
                yield f"{path.name} row {index}", row
            start += len(batch)
            progress.update(len(batch))


def _jsonl_rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    with path.open("rb") as lines, _progress(path, path.stat().st_size, "B") as progress:
        for number, line in enumerate(lines, start=1):
            progress.update(len(line))
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            row = _json_object(line, where)
            for name in required:
                if name not in row:
                    raise DataError(f"{where}: {name} is missing; it holds {_listed(row)}")
            yield where, row


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, got {_kind(row)}")
    return row


@contextmanager
def _parquet(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """The open file; what Arrow finds wrong with it becomes one line."""
    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path.name} cannot be read as Parquet: {reason}") from error


def _present(path: Path, found: Sequence[str], wanted: Sequence[str], required: Iterable[str]) -> list[str]:
    for name in required:
        if name not in found:
            raise DataError(f"{path.name}: no column {name}; it holds {_listed(found)}")
    return [name for name in wanted if name in found]


def _progress(path: Path, total: int, unit: str) -> Any:
    """A bar that shows itself only on a terminal, and only when reading takes long."""
    return tqdm(total=total, desc=f"read {path.name}", unit=unit, unit_scale=True, delay=1, disable=None)


def _note(row: Mapping[str, Any], where: str) -> Note:
    return Note(
        id=_identifier(row, "note_id", where),
        title=_text(row, "title", where) or "",
        content=_text(row, "content", where) or "",
        hashtags=_strings(row, "hashtags", where),
        category=_text(row, "category", where) or None,
        exposure=_count(row, "exposure", where),
    )


def _given(row: Mapping[str, Any], name: str) -> Any:
    """The field's value, None when it is missing, null or NaN."""
    value = row.get(name)
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(row: Mapping[str, Any], name: str, where: str) -> str | None:
    value = _given(row, name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {name} must be a string, got {_kind(value)}")
    return value


def _identifier(row: Mapping[str, Any], name: str, where: str) -> str:
    value = _text(row, name, where)
    if not value:
        raise DataError(f"{where}: {name} must not be empty")
    return value


def _strings(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = _given(row, name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} must be a list of strings, got {_kind(value)}")
    for item in value:
        if not isinstance(item, str):
            raise DataError(f"{where}: {name} must be a list of strings, got {_kind(item)} in it")
    return tuple(value)


def _number(row: Mapping[str, Any], name: str, where: str) -> float:
    value = _given(row, name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"{where}: {name} must be a number, got {_kind(value)}")
    return float(value)


def _whole(row: Mapping[str, Any], name: str, where: str) -> int | None:
    """A whole number; one that is stored as a float, as NaN in a column makes them, will do."""
    value = _given(row, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise DataError(f"{where}: {name} must be a whole number, got {_kind(value)}")
    if value is not None and not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: {name} must fit into 64 bits")
    return value


def _count(row: Mapping[str, Any], name: str, where: str) -> int:
    value = _whole(row, name, where) or 0
    if value < 0:
        raise DataError(f"{where}: {name} must not be negative, got {value}")
    return value


def _jsonl_events(path: Path) -> EventTable:
    user_codes: dict[str, int] = {}
    note_codes: dict[str, int] = {}
    users, notes, ts, clicked = array("i"), array("i"), array("q"), array("b")
    untimed = 0
    for where, row in _jsonl_rows(path, required=("user_id", "note_id", "event")):
        event = _text(row, "event", where)
        if event not in CLICKS:
            raise DataError(f"{where}: event must be one of {_listed(CLICKS)}, got {_shown(event)}")
        time = _whole(row, "ts", where)
        users.append(user_codes.setdefault(_identifier(row, "user_id", where), len(user_codes)))
        notes.append(note_codes.setdefault(_identifier(row, "note_id", where), len(note_codes)))
        clicked.append(CLICKS[event])
        ts.append(time or 0)
        untimed += time is None
    return EventTable(
        np.array(users, dtype=np.int32),
        np.array(notes, dtype=np.int32),
        np.array(ts, dtype=np.int64),
        np.array(clicked, dtype=np.bool_),
        tuple(note_codes),
        len(user_codes),
        untimed,
    )


def _parquet_events(files: Sequence[Path]) -> EventTable:
    user_codes: dict[str, int] = {}
    note_codes: dict[str, int] = {}
    parts = [_parquet_columns(file, user_codes, note_codes) for file in files]
    users, notes, ts, clicked, untimed = zip(*parts, strict=True)
    return EventTable(
        np.concatenate(users),
        np.concatenate(notes),
        np.concatenate(ts),
        np.concatenate(clicked),
        tuple(note_codes),
        len(user_codes),
        sum(untimed),
    )


def _parquet_columns(
    path: Path, user_codes: dict[str, int], note_codes: dict[str, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_], int]:
    """A file's users, notes, times and clicks, shape (E,) each, and its untimed events; new ids get the next codes."""
    # Read as dictionaries, so that each id is held once and not once an event.
    names = ["user_id", "note_id", "event"]
    with _parquet(path, read_dictionary=names) as file:
        present = _present(path, file.schema_arrow.names, EVENT_COLUMNS, names)
        table = file.read(columns=present)
        users, user_ids = _coded(path, table, "user_id")
        notes, note_ids = _coded(path, table, "note_id")
        kinds, kind_names = _coded(path, table, "event")
        ts, untimed = _times(path, table)
    for code, kind in enumerate(kind_names):
        if kind not in CLICKS and code in kinds:
            row = int(np.argmax(kinds == code))
            raise DataError(f"{path.name} row {row}: event must be one of {_listed(CLICKS)}, got {_shown(kind)}")
    clicks = np.array([CLICKS.get(kind, False) for kind in kind_names], dtype=np.bool_)
    return _recoded(users, user_ids, user_codes), _recoded(notes, note_ids, note_codes), ts, clicks[kinds], untimed


def _recoded(codes: NDArray[np.int32], ids: Sequence[str], known: dict[str, int]) -> NDArray[np.int32]:
    """One file's codes as those of all files."""
    return np.array([known.setdefault(id_, len(known)) for id_ in ids], dtype=np.int32)[codes]


def _coded(path: Path, table: pa.Table, name: str) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """A string column as codes, shape (E,), and the distinct strings they stand for."""
    column = table.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and len(column):
        raise DataError(f"{path.name}: {name} must be a column of strings, got {kind}")
    # Cast first: a file may hold dictionaries of several widths, which do not unify.
    coded = column.cast(pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
    if coded.null_count:
        row = pc.index(coded.is_null(), True).as_py()
        raise DataError(f"{path.name} row {row}: {name} must not be empty")
    if not len(coded):
        return np.empty(0, dtype=np.int32), ()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])
    distinct = tuple(coded.chunk(0).dictionary.to_pylist())
    if "" in distinct and distinct.index("") in codes:
        row = int(np.argmax(codes == distinct.index("")))
        raise DataError(f"{path.name} row {row}: {name} must not be empty")
    return codes.astype(np.int32, copy=False), distinct


def _times(path: Path, table: pa.Table) -> tuple[NDArray[np.int64], int]:
    """The ``ts`` column with 0 for null and NaN, shape (E,), and how many there were of those."""
    if "ts" not in table.column_names or pa.types.is_null(table.schema.field("ts").type):
        return np.zeros(len(table), dtype=np.int64), len(table)
    column = table.column("ts")
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    elif not pa.types.is_integer(column.type):
        raise DataError(f"{path.name}: ts must be a column of whole numbers, got {column.type}")
    try:
        whole = column.cast(pa.int64())
    except pa.ArrowInvalid:
        raise DataError(f"{path.name}: ts must be a column of whole numbers of 64 bits") from None
    return pc.fill_null(whole, 0).to_numpy(), whole.null_count


def _kind(value: object) -> str:
    """What JSON calls a value of this type."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def _shown(value: object) -> str:
    """A value as it may stand in a one-line message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
