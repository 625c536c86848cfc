"""The pairs of a log on one machine: what does not fit into memory goes to disk."""

import tempfile
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from model.data.engines.query import PERIOD, RELATED_PAIRS, SKIPPED_USERS, PairRules
from model.data.events import EventTable
from model.data.pairs import Pairs
from model.data.parquet_events import MET, ParquetEvents


@dataclass(frozen=True, slots=True)
class DuckDbEngine:
    """`Engine` in this process.

    Args:
        memory: what the join may use, as DuckDB writes it: ``4GB``.
        threads: all cores if None.
        spill: a folder for what does not fit; a temporary one if None.
    """

    memory: str = "1GB"
    threads: int | None = None
    spill: Path | None = None

    def related(self, events: EventTable | ParquetEvents, rules: PairRules, within: Set[str] | None) -> Pairs:
        """See `Engine`."""
        try:
            with tempfile.TemporaryDirectory(prefix="notellm-pairs-") as folder, duckdb.connect() as connection:
                self._limit(connection, Path(folder) / "spill")
                ids = _add_log(connection, events)
                _add_candidates(connection, ids, within)
                bounds = asdict(rules)
                pairs = _watched(connection, _marked(RELATED_PAIRS), bounds)
                bounds = {name: bounds[name] for name in PERIOD}
                [(skipped,)] = connection.execute(_marked(SKIPPED_USERS), bounds).fetchall()
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the pairs need more memory, or more room to spill: {reason}") from None
        return Pairs(
            tuple(ids[row] for row in pairs["note"].to_pylist()),
            tuple(ids[row] for row in pairs["related"].to_pylist()),
            pairs["score"].to_numpy(),
            pairs["users"].to_numpy(),
            skipped,
        )

    def _limit(self, connection: duckdb.DuckDBPyConnection, spill: Path) -> None:
        # Without the first there is no progress to ask for; the second keeps DuckDB's own bar off stdout.
        connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
        connection.execute("SET temp_directory = ?", [str(self.spill or spill)])
        try:
            connection.execute("SET memory_limit = ?", [self.memory])
        except (duckdb.ParserException, duckdb.InvalidInputException, duckdb.SyntaxException) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"memory {self.memory!r} is no size such as 4GB: {reason}") from None
        if self.threads:
            connection.execute("SET threads = ?", [self.threads])


def _marked(query: str) -> str:
    return query.replace(":", "$")


def _add_log(connection: duckdb.DuckDBPyConnection, events: EventTable | ParquetEvents) -> list[str]:
    """Make the table ``log``, with notes numbered by id, so that ties by number are ties by id; the ids in order."""
    if isinstance(events, ParquetEvents):
        connection.read_parquet(list(events.files)).create_view("files")
        connection.execute(f"CREATE VIEW stored AS {MET}")
        connection.execute(
            "CREATE TABLE numbered AS SELECT note_id, (row_number() OVER (ORDER BY note_id) - 1)::INTEGER AS note "
            "FROM (SELECT DISTINCT note_id FROM stored)"
        )
        connection.execute(
            "CREATE VIEW log AS "
            "SELECT user_id AS user_code, note, ts, clicked FROM stored JOIN numbered USING (note_id)"
        )
        rows = connection.execute("SELECT note_id FROM numbered ORDER BY note").fetchall()
        return [note_id for (note_id,) in rows]
    by_id = sorted(range(len(events.note_ids)), key=events.note_ids.__getitem__)
    rank = np.empty(len(by_id), dtype=np.int32)
    rank[by_id] = np.arange(len(by_id), dtype=np.int32)
    columns = {"user_code": events.users, "note": rank[events.notes], "ts": events.ts, "clicked": events.clicked}
    connection.from_arrow(pa.table(columns)).create("log")  # of a scan of Arrow itself DuckDB reports no progress
    return [events.note_ids[code] for code in by_id]


def _add_candidates(connection: duckdb.DuckDBPyConnection, ids: Sequence[str], within: Set[str] | None) -> None:
    rows = [row for row, note_id in enumerate(ids) if within is None or note_id in within]
    connection.from_arrow(pa.table({"note": pa.array(rows, pa.int32())})).create("candidates")


def _watched(connection: duckdb.DuckDBPyConnection, query: str, bounds: dict[str, Any]) -> pa.Table:
    """Run a query with a bar that shows itself only on a terminal, and only when it takes long."""
    with (
        ThreadPoolExecutor(max_workers=1) as thread,
        tqdm(total=100, desc="related pairs", unit="%", delay=1, disable=None) as progress,
    ):
        running = thread.submit(lambda: connection.sql(query, params=bounds).to_arrow_table())
        while wait_for([running], timeout=0.2).not_done:
            done = connection.query_progress()
            if done > progress.n:
                progress.update(done - progress.n)
        return running.result()
