"""Events in Parquet files which DuckDB reads itself: a log may be larger than memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from model.data.events import CLICKS, EVENT_COLUMNS, NOT_MET, EventTable, event_files, load_events
from model.data.files import labels
from model.data.rows import open_parquet, present_columns

_CLICKS = ", ".join(f"'{kind}'" for kind, clicked in CLICKS.items() if clicked)
_MET = "event NOT IN ({})".format(", ".join(f"'{kind}'" for kind in NOT_MET))
_CHECK = """
SELECT count(*) FILTER (NOT list_contains($not_met, event)),
       count(*) FILTER (ts IS NULL AND NOT list_contains($not_met, event)), count(*) FILTER (
    user_id IS NULL OR user_id = '' OR note_id IS NULL OR note_id = '' OR event IS NULL
    OR NOT list_contains($kinds, event)
) FROM read_parquet($files)
"""


@dataclass(frozen=True, slots=True)
class ParquetEvents:
    """A log of ``count`` events in files; see `EventTable`. ``untimed`` events have no ``ts``."""

    files: Sequence[Path]
    count: int
    untimed: int

    def __len__(self) -> int:
        return self.count

    def add_to(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Add them as the view ``stored``: user_id, note_id, ts and clicked; ``ts`` is 0 where there is none."""
        connection.read_parquet([str(file) for file in self.files]).filter(_MET).project(
            f"user_id, note_id, coalesce(ts, 0)::BIGINT AS ts, event IN ({_CLICKS}) AS clicked"
        ).create_view("stored")


def open_events(path: Path) -> EventTable | ParquetEvents:
    """Events of a file or folder, see `load_events`: in memory, or left on disk where DuckDB can read them as they are.

    Raises:
        DataError: if the files cannot be read as events.
    """
    files = event_files(path)
    if all(file.suffix == ".parquet" for file in files) and (found := _checked(files)):
        return found
    # Other types of columns; or something is wrong, and this says what and where.
    return load_events(path)


def _checked(files: Sequence[Path]) -> ParquetEvents | None:
    """The events of files, if they are of the types that need no conversion, and without a mistake."""
    if not all(_is_plain(file, label) for file, label in zip(files, labels(files), strict=True)):
        return None
    names = [str(file) for file in files]
    try:
        with duckdb.connect() as connection:
            parameters = {"files": names, "kinds": [*CLICKS, *NOT_MET], "not_met": [*NOT_MET]}
            [(count, untimed, wrong)] = connection.execute(_CHECK, parameters).fetchall()
    except duckdb.Error:
        return None
    return ParquetEvents(files, count, untimed) if count and not wrong else None


def _is_plain(file: Path, label: str) -> bool:
    """Whether a file has the columns under their names, with strings and whole numbers. Raises DataError.

    DuckDB would cast the files to the types of the first, and rename one of two columns with the same name.
    """
    with open_parquet(file, label) as opened:
        schema = opened.schema_arrow
    names = present_columns(label, schema.names, EVENT_COLUMNS, ())
    kinds = [schema.field(name).type for column, name in names.items() if column == name]
    return len(kinds) == len(EVENT_COLUMNS) and all(
        (pa.types.is_integer(kind) and kind != pa.uint64()) if column == "ts" else pa.types.is_string(kind)
        for column, kind in zip(EVENT_COLUMNS, kinds, strict=True)
    )
