"""Events in Parquet files which an engine reads itself: a log may be larger than memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from model.data.events import CLICKS, EVENT_COLUMNS, NOT_MET, EventTable, event_files, load_events
from model.data.files import labels
from model.data.rows import open_parquet, present_columns


def _literals(kinds: Iterable[str]) -> str:
    return ", ".join(f"'{kind}'" for kind in kinds)


# Of the files as they are, in SQL that DuckDB and Spark share: the events that count, those of them without a time,
# the rows with a mistake, and the largest time.
CHECK = f"""
SELECT count(*) FILTER (WHERE event NOT IN ({_literals(NOT_MET)})) AS events,
       count(*) FILTER (WHERE ts IS NULL AND event NOT IN ({_literals(NOT_MET)})) AS untimed,
       count(*) FILTER (WHERE user_id IS NULL OR user_id = '' OR note_id IS NULL OR note_id = '' OR event IS NULL
                              OR event NOT IN ({_literals([*CLICKS, *NOT_MET])})) AS wrong,
       max(ts) AS newest
FROM files
"""  # noqa: S608  (words of ours)
# The events that count; ``ts`` is 0 where there is none.
MET = f"""
SELECT user_id, note_id, coalesce(CAST(ts AS BIGINT), 0) AS ts,
       event IN ({_literals(kind for kind, clicked in CLICKS.items() if clicked)}) AS clicked
FROM files WHERE event NOT IN ({_literals(NOT_MET)})
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class ParquetEvents:
    """A log of ``count`` events in files; see `EventTable`. ``untimed`` events have no ``ts``.

    A file is a path of this machine, or a URL that Spark reads.
    """

    files: Sequence[str]
    count: int
    untimed: int
    newest: float = 0.0  # the largest ``ts``

    def __len__(self) -> int:
        return self.count


def open_events(path: Path) -> EventTable | ParquetEvents:
    """Events of a file or folder, see `load_events`: in memory, or on disk where engines read them as they are.

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
    names = [str(file.resolve()) for file in files]
    try:
        with duckdb.connect() as connection:
            connection.read_parquet(names).create_view("files")
            [(count, untimed, wrong, newest)] = connection.execute(CHECK).fetchall()
    except duckdb.Error:
        return None
    return ParquetEvents(names, count, untimed, newest or 0) if count and not wrong else None


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
