"""Events as files, and in memory: who met which note when, and whether they clicked.

Events lie in one file of rows (see `model.data.rows`), or in a folder ``events`` of parts, such as files by day:
``events/dt=2026-01-31/*.parquet``.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.data.files import SUFFIXES, DataError, data_files, labels
from model.data.rows import identifier, jsonl_rows, listed, open_parquet, present_columns, shown, text
from model.data.times import Times, Unit, column_times, event_time

EVENT_COLUMNS = ("user_id", "note_id", "event", "ts")
# A like or a save implies that the note was opened, so both count as clicks (eq. 1). Every event counts as a view.
CLICKS = {"view": False, "click": True, "like": True, "save": True}
# The reader did not open the note: neither a view nor a click, so that such rows are passed over.
NOT_MET = ("impression", "dismiss")
_REQUIRED = ("user_id", "note_id", "event")


@dataclass(frozen=True, slots=True)
class EventTable:
    """A log of E events in columns. Codes count from 0 in no particular order.

    ``users``: int32 user codes, shape (E,). ``notes``: int32 positions in ``note_ids``, shape (E,).
    ``ts``: in any one unit, shape (E,), 0 where ``untimed`` events have none; float64 if one has a fraction.
    ``clicked``: bool, shape (E,), False for a mere view.
    """

    users: NDArray[np.int32]
    notes: NDArray[np.int32]
    ts: Times
    clicked: NDArray[np.bool_]
    note_ids: tuple[str, ...]
    num_users: int
    untimed: int

    def __len__(self) -> int:
        return len(self.users)

    @property
    def newest(self) -> float:
        """The largest ``ts``."""
        return float(self.ts.max(initial=0))


def has_events(folder: Path) -> bool:
    """Whether a folder holds events at all; some data sets are notes alone."""
    return any((folder / f"events{suffix}").exists() for suffix in ("", *SUFFIXES))


def load_events(path: Path) -> EventTable:
    """Events of a file, of a folder of parts, or of what is called ``events`` in a folder, in order.

    Ids are not checked against any notes. ``ts`` may be missing; ordered pairs then cannot be built.

    Raises:
        DataError: if the files cannot be read as events.
    """
    files = event_files(path)
    user_codes: dict[str, int] = {}
    note_codes: dict[str, int] = {}
    unit = Unit()
    parts = []
    for file, label in zip(files, labels(files), strict=True):
        load = _parquet_columns if file.suffix == ".parquet" else _jsonl_columns
        parts.append(load(file, label, user_codes, note_codes, unit))
    unit.check()
    users, notes, ts, clicked, untimed = zip(*parts, strict=True)
    events = EventTable(
        np.concatenate(users),
        np.concatenate(notes),
        np.concatenate(ts),
        np.concatenate(clicked),
        tuple(note_codes),
        len(user_codes),
        sum(untimed),
    )
    if not len(events):
        raise DataError(f"{files[0].name} holds no events")
    return events


def event_files(path: Path) -> list[Path]:
    """The files of a log, see `model.data.files.data_files`; those by day come oldest first. Raises DataError."""
    return data_files(path, "events", EVENT_COLUMNS)


_Columns = tuple[NDArray[np.int32], NDArray[np.int32], Times, NDArray[np.bool_], int]


def _jsonl_columns(
    path: Path, label: str, user_codes: dict[str, int], note_codes: dict[str, int], unit: Unit
) -> _Columns:
    """A file's users, notes, times and clicks, shape (E,) each, and its untimed events; new ids get the next codes."""
    users, notes, clicked = array("i"), array("i"), array("b")
    ts: Any = array("q")
    untimed = 0
    for where, row in jsonl_rows(path, label, EVENT_COLUMNS, _REQUIRED):
        event = text(row, "event", where)
        if event in NOT_MET:
            continue
        if event not in CLICKS:
            raise DataError(f"{where}: event must be one of {listed((*CLICKS, *NOT_MET))}, got {shown(event)}")
        time = event_time(row, where, unit)
        users.append(user_codes.setdefault(identifier(row, "user_id", where), len(user_codes)))
        notes.append(note_codes.setdefault(identifier(row, "note_id", where), len(note_codes)))
        clicked.append(CLICKS[event])
        if isinstance(time, float) and ts.typecode == "q":
            ts = array("d", ts)
        ts.append(time or 0)
        untimed += time is None
    return (
        np.array(users, dtype=np.int32),
        np.array(notes, dtype=np.int32),
        np.array(ts),
        np.array(clicked, dtype=np.bool_),
        untimed,
    )


def _parquet_columns(
    path: Path, label: str, user_codes: dict[str, int], note_codes: dict[str, int], unit: Unit
) -> _Columns:
    """The same of a Parquet file."""
    with open_parquet(path, label) as file:
        names = present_columns(label, file.schema_arrow.names, EVENT_COLUMNS, _REQUIRED)
        for name in _REQUIRED:
            _check_strings(label, name, file.schema_arrow.field(names[name]).type, file.metadata.num_rows)
    # Loaded as dictionaries, so that each id is in memory once and not once an event.
    with open_parquet(path, label, read_dictionary=[names[name] for name in _REQUIRED]) as file:
        table = file.read(columns=list(names.values())).select(list(names.values())).rename_columns(list(names))
        users, user_ids = _coded(label, table, "user_id")
        notes, note_ids = _coded(label, table, "note_id")
        kinds, kind_names = _coded(label, table, "event")
        ts, timed = (
            column_times(table.column("ts"), label, unit)
            if "ts" in names
            else (np.zeros(len(table), dtype=np.int64), np.zeros(len(table), dtype=np.bool_))
        )
    for code, kind in enumerate(kind_names):
        if kind not in CLICKS and kind not in NOT_MET and code in kinds:
            row = int(np.argmax(kinds == code))
            allowed = listed((*CLICKS, *NOT_MET))
            raise DataError(f"{label} row {row}: event must be one of {allowed}, got {shown(kind)}")
    met = np.array([kind not in NOT_MET for kind in kind_names], dtype=np.bool_)[kinds]
    clicks = np.array([CLICKS.get(kind, False) for kind in kind_names], dtype=np.bool_)
    return (
        _recoded(users[met], user_ids, user_codes),
        _recoded(notes[met], note_ids, note_codes),
        ts[met],
        clicks[kinds][met],
        int(np.count_nonzero(met & ~timed)),
    )


def _recoded(codes: NDArray[np.int32], ids: Sequence[str], known: dict[str, int]) -> NDArray[np.int32]:
    """One file's codes as those of all files; ids that have no row get none."""
    used, places = np.unique(codes, return_inverse=True)
    return np.array([known.setdefault(ids[code], len(known)) for code in used], dtype=np.int32)[places]


def _check_strings(label: str, name: str, kind: pa.DataType, rows: int) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)) and rows:
        raise DataError(f"{label}: {name} must be a column of strings, got {kind}")


def _coded(label: str, table: pa.Table, name: str) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """A string column as codes, shape (E,), and the distinct strings they stand for."""
    column = table.column(name)
    if not len(column):
        return np.empty(0, dtype=np.int32), ()
    # Cast first: a file may hold dictionaries of several widths, which do not unify.
    coded = column.cast(pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
    if coded.null_count:
        row = pc.index(coded.is_null(), True).as_py()
        raise DataError(f"{label} row {row}: {name} must not be empty")
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])
    distinct = tuple(coded.chunk(0).dictionary.to_pylist())
    if "" in distinct and distinct.index("") in codes:
        row = int(np.argmax(codes == distinct.index("")))
        raise DataError(f"{label} row {row}: {name} must not be empty")
    return codes.astype(np.int32, copy=False), distinct
