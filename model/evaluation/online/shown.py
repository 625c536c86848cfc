"""The log of answers and the events that name them, joined: what was shown, and what of it was clicked.

A folder holds both as `notellm events export` writes them. An item counts once however often it was reported: it was
shown if there is an impression or a click of it in its answer, and clicked if there is a click, like or save. What an
answer that is not in the log was of, its id tells, but for the whole fingerprint of the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from model.data.files import DataError, data_files

ANSWERS = "_answers"
EXPOSURES = (10, 100, 1000, 10_000)
AGES_DAYS = (1, 7, 30, 365)

_EVENTS = """
CREATE TEMP VIEW events AS
SELECT user_id, note_id, event, ts, answer_id, position FROM read_parquet($files, union_by_name = true)
"""
_ANSWERS = """
CREATE TEMP TABLE answers AS
SELECT DISTINCT ON (answer_id, scenario, ts) * FROM read_parquet($files, union_by_name = true)
WHERE ts >= $since
"""
_NO_ANSWERS = """
CREATE TEMP TABLE answers (
    answer_id VARCHAR, ts BIGINT, scenario VARCHAR, model VARCHAR, ids VARCHAR[], parameters VARCHAR, reader VARCHAR,
    experiment VARCHAR, arm VARCHAR, note_id VARCHAR, category VARCHAR
)
"""
# How often each note was shown, in answers and elsewhere, by all events of the folder.
_EXPOSURE = """
CREATE TEMP TABLE exposure AS
SELECT note_id, count(*) AS shown FROM events
WHERE event IN ('impression', 'view') AND coalesce(answer_id[17:19], '') <> '.t.' GROUP BY note_id
"""
_SHOWN = """
CREATE TEMP TABLE shown AS
WITH items AS (
    SELECT answer_id, note_id, min(user_id) AS reader, min(ts) AS ts, min(position) AS position,
           bool_or(event IN ('click', 'like', 'save')) AS clicked, bool_or(event = 'impression') AS seen
    FROM events
    WHERE answer_id IS NOT NULL AND ts >= $since AND (event = 'impression' OR event IN ('click', 'like', 'save'))
    GROUP BY answer_id, note_id
)
SELECT items.reader, items.note_id, items.ts, items.clicked, items.seen,
       coalesce(
           answers.scenario, map {'r': 'related', 's': 'search', 't': 'tags'}[split_part(items.answer_id, '.', 2)]
       ) AS scenario,
       coalesce(answers.model, split_part(items.answer_id, '.', 3)) AS model,
       coalesce(answers.experiment, '') AS experiment,
       coalesce(answers.arm, '') AS arm,
       coalesce(items.position, list_position(answers.ids, items.note_id)) AS position
FROM items LEFT JOIN (SELECT * FROM answers WHERE scenario <> 'written') AS answers USING (answer_id)
"""


@dataclass(frozen=True, slots=True)
class Log:
    """A log opened for queries: the tables ``answers``, ``shown`` and ``exposure``, and ``notes`` where there are any.

    ``shown`` has a row for each item that was shown: reader, note_id, ts, clicked, seen (there is an impression of it),
    scenario, model, experiment, arm, position.
    """

    connection: duckdb.DuckDBPyConnection
    has_notes: bool


@contextmanager
def open_log(folder: Path, since_s: float = 0.0, memory: str = "1GB") -> Iterator[Log]:
    """Open the log of a folder, or of its part from a time on, in seconds since 1970.

    ``folder`` is that of `notellm events export`, or one that holds it as ``events``, and perhaps notes.

    Raises:
        DataError: if there are no events, or the files are none of an export.
    """
    files = data_files(folder, "events")
    exported = folder / "events" if (folder / "events").is_dir() else folder
    answered = sorted(exported.glob(f"{ANSWERS}/dt=*/part-*.parquet"))
    since = {"since": round(since_s * 1_000_000)}
    try:
        with duckdb.connect(config={"memory_limit": memory}) as connection:
            _view(connection, _EVENTS, files)
            if answered:
                connection.execute(_ANSWERS, {"files": [str(file) for file in answered], **since})
            else:
                connection.execute(_NO_ANSWERS)
            connection.execute(_EXPOSURE)
            connection.execute(_SHOWN, since)
            yield Log(connection, _add_notes(connection, folder))
    except duckdb.Error as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: the files are none of `notellm events export`: {line}") from error


def _view(connection: duckdb.DuckDBPyConnection, query: str, files: list[Path]) -> None:
    names = ", ".join("'{}'".format(str(file).replace("'", "''")) for file in files)
    connection.execute(query.replace("$files", f"[{names}]"))


def _add_notes(connection: duckdb.DuckDBPyConnection, folder: Path) -> bool:
    """The notes beside the events, if there are: note_id, and when it was created, in microseconds since 1970."""
    for name, read in (("notes.parquet", connection.read_parquet), ("notes.jsonl", connection.read_json)):
        if (folder / name).is_file():
            notes = read(str(folder / name))
            created = (
                "epoch_us(try_cast(created_at AS TIMESTAMPTZ))" if "created_at" in notes.columns else "NULL::BIGINT"
            )
            notes.project(f"note_id, {created} AS created").create("notes")
            return True
    return False
