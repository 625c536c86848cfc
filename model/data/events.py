"""Events as files, and in memory: who met which note when, and whether they clicked.

Events lie in one file of rows (see `model.data.rows`), or in a folder ``events`` with Parquet files by day:
``events/dt=2026-01-31/*.parquet``.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.data.rows import (
    SUFFIXES,
    DataError,
    data_file,
    identifier,
    jsonl_rows,
    listed,
    open_parquet,
    present_columns,
    shown,
    text,
    whole,
)

EVENT_COLUMNS = ("user_id", "note_id", "event", "ts")
# A like or a save implies that the note was opened, so both count as clicks (eq. 1). Every event counts as a view.
CLICKS = {"view": False, "click": True, "like": True, "save": True}


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


def has_events(folder: Path) -> bool:
    """Whether a folder holds events at all; some data sets are notes alone."""
    return any((folder / name).exists() for name in ("events.parquet", "events.jsonl", "events"))


def load_events(path: Path) -> EventTable:
    """Events of a file, of ``events.parquet`` or ``events.jsonl`` in a folder, or of a folder by day, in order.

    Ids are not checked against any notes. ``ts`` may be missing; ordered pairs then cannot be built.

    Raises:
        DataError: if the files cannot be read as events.
    """
    files = event_files(path)
    events = _jsonl_events(files[0]) if files[0].suffix == ".jsonl" else _parquet_events(files)
    if not len(events):
        raise DataError(f"{files[0].name} holds no events")
    return events


def event_files(path: Path) -> list[Path]:
    """The files of a log: one, or those of a folder by day, oldest first. Raises DataError."""
    return _days(path) or [data_file(path, "events")]


def _days(path: Path) -> list[Path]:
    """The files of the folder by day, ``path`` itself or its ``events``, oldest first; none without such a folder."""
    folder = path / "events" if (path / "events").is_dir() else path
    found = sorted(folder.glob("dt=*/[!._]*.parquet"))
    if folder != path and not found:
        raise DataError(f"{folder}: no dt=YYYY-MM-DD/*.parquet in this folder")
    if folder != path and any((path / f"events{suffix}").exists() for suffix in SUFFIXES):
        raise DataError(f"{path}: a file and a folder of events are both in this folder; name one of them")
    return found


def _jsonl_events(path: Path) -> EventTable:
    user_codes: dict[str, int] = {}
    note_codes: dict[str, int] = {}
    users, notes, ts, clicked = array("i"), array("i"), array("q"), array("b")
    untimed = 0
    for where, row in jsonl_rows(path, required=("user_id", "note_id", "event")):
        event = text(row, "event", where)
        if event not in CLICKS:
            raise DataError(f"{where}: event must be one of {listed(CLICKS)}, got {shown(event)}")
        time = whole(row, "ts", where)
        users.append(user_codes.setdefault(identifier(row, "user_id", where), len(user_codes)))
        notes.append(note_codes.setdefault(identifier(row, "note_id", where), len(note_codes)))
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
    # Loaded as dictionaries, so that each id is in memory once and not once an event.
    names = ["user_id", "note_id", "event"]
    with open_parquet(path, read_dictionary=names) as file:
        present = present_columns(path, file.schema_arrow.names, EVENT_COLUMNS, names)
        table = file.read(columns=present)
        users, user_ids = _coded(path, table, "user_id")
        notes, note_ids = _coded(path, table, "note_id")
        kinds, kind_names = _coded(path, table, "event")
        ts, untimed = _times(path, table)
    for code, kind in enumerate(kind_names):
        if kind not in CLICKS and code in kinds:
            row = int(np.argmax(kinds == code))
            raise DataError(f"{path.name} row {row}: event must be one of {listed(CLICKS)}, got {shown(kind)}")
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
    """The ``ts`` column with 0 for null and NaN, shape (E,), and how many of these there were."""
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
