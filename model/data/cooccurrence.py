"""Related pairs by co-occurrence in a click log (section 4.1, eq. 1), and the split by note."""

import tempfile
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from model.data.events import EventTable
from model.data.notes import is_blank
from model.data.pairs import Pairs
from model.data.parquet_events import ParquetEvents
from model.note import Note

# Of the split: the share of notes in no training pair, and the seed.
HOLDOUT = 0.3
SEED = 0

# Decimals add up to the same sum in any order. Floats do not: the last bit would decide which pair is tenth.
_RELATED_PAIRS = """
WITH met AS (
    SELECT user_code, note, min(ts) AS first_view, max(ts) AS last_view, max(ts) FILTER (clicked) AS last_click
    FROM log WHERE ts >= coalesce($since, ts) AND ($until IS NULL OR ts < $until) GROUP BY user_code, note
), active AS (
    SELECT user_code, count(last_click) AS clicks
    FROM met GROUP BY user_code HAVING clicks BETWEEN 1 AND $max_clicks
), seen AS (
    SELECT met.*, (1 / clicks)::DECIMAL(18, 15) AS weight
    FROM met JOIN active USING (user_code) JOIN candidates USING (note)
    QUALIFY last_click IS NOT NULL OR row_number() OVER (
        PARTITION BY user_code, last_click IS NULL ORDER BY last_view DESC, note
    ) <= $max_views
), scored AS (
    SELECT a.note AS note, b.note AS related, round(sum(b.weight), 9)::DOUBLE AS score, count(*) AS users
    FROM seen AS a JOIN seen AS b USING (user_code)
    WHERE a.note <> b.note AND b.last_click IS NOT NULL AND (NOT $ordered OR a.first_view < b.last_click)
    GROUP BY a.note, b.note
)
SELECT note, related, score, users FROM scored
WHERE score BETWEEN $lower AND $upper
QUALIFY row_number() OVER (PARTITION BY note ORDER BY score DESC, related) <= $top
ORDER BY note, score DESC, related
"""
_SKIPPED_USERS = """
SELECT count(*) FROM (
    SELECT user_code FROM log WHERE clicked AND ts >= coalesce($since, ts) AND ($until IS NULL OR ts < $until)
    GROUP BY user_code HAVING count(DISTINCT note) > $max_clicks
)
"""


@dataclass(frozen=True, slots=True)
class PairRules:
    """Which notes of a log are related, with the paper's u, l and t as defaults (section 5.1).

    Args:
        upper, lower: bounds of a score, both inclusive; pairs outside are dropped first.
        top: related notes of one note at most, those of the highest scores; ties by id.
        ordered: A was viewed strictly before B was clicked. False: in any order, which needs no ``ts``.
        since, until: only events of this period count, ``since <= ts < until``, in the unit of ``ts``.
        max_clicks: users with more distinct clicks than this add nothing; the pairs say how many there were. A user
            with N clicks adds 1/N to N^2 pairs: beyond this next to nothing, at most of the cost.
        max_views: of the notes that a user viewed and never clicked, the last so many count. A crawler views all.
    """

    upper: float = 30.0
    lower: float = 0.01
    top: int = 10
    ordered: bool = True
    since: float | None = None
    until: float | None = None
    max_clicks: int = 1000
    max_views: int = 1000

    @property
    def timed(self) -> bool:
        """Whether every event needs a ``ts``."""
        return self.ordered or self.since is not None or self.until is not None


@dataclass(frozen=True, slots=True)
class Resources:
    """What the join may use: ``memory`` as DuckDB writes it, ``4GB``, ``threads`` (all cores if None), and a folder
    for what does not fit (a temporary one if None)."""

    memory: str = "1GB"
    threads: int | None = None
    spill: Path | None = None


def split_notes(ids: Iterable[str], holdout: float = HOLDOUT, seed: int = SEED) -> frozenset[str]:
    """The held-out ids. Each is drawn by its own hash: new notes never move old ones across the split.

    Training takes the pairs with both ends outside, evaluation the pairs with both ends inside; the rest is unused.

    Raises:
        ValueError: if ``holdout`` is not within 0..1.
    """
    if not 0 <= holdout <= 1:
        raise ValueError(f"holdout must be within 0..1, got {holdout}")
    return frozenset(note_id for note_id in ids if _draw(note_id, seed) < holdout)


def training_pairs(
    notes: Sequence[Note],
    events: EventTable | ParquetEvents,
    rules: PairRules = PairRules(),
    *,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    resources: Resources = Resources(),
) -> Pairs:
    """Related pairs of the notes that are neither held out nor blank.

    Raises:
        ValueError: see `related_pairs` and `split_notes`.
    """
    held_out = split_notes((note.id for note in notes), holdout, seed)
    kept = frozenset(note.id for note in notes if note.id not in held_out and not is_blank(note))
    return related_pairs(events, rules, within=kept, resources=resources)


def related_pairs(
    events: EventTable | ParquetEvents,
    rules: PairRules = PairRules(),
    *,
    within: Set[str] | None = None,
    resources: Resources = Resources(),
) -> Pairs:
    """The related notes of every note, eq. 1.

    s(A -> B) is the sum of 1/N_i over users i who viewed A and then clicked B, N_i the number of distinct
    notes user i clicked in the whole log, or in the period of the rules. A user counts once for (A, B).

    Args:
        events: the log; a click is a view too.
        within: both ends of a pair are in this set. It changes no N_i.

    Raises:
        ValueError: if the rules need the time of every event and one has none, or the resources cannot be had.
    """
    if rules.timed and events.untimed:
        raise ValueError(f"{events.untimed} of {len(events)} events have no ts: without an order, use unordered pairs")
    try:
        with tempfile.TemporaryDirectory(prefix="notellm-pairs-") as folder, duckdb.connect() as connection:
            _limit(connection, resources, Path(folder) / "spill")
            ids = _add_log(connection, events)
            _add_candidates(connection, ids, within)
            bounds = asdict(rules)
            pairs = _watched(connection, _RELATED_PAIRS, bounds)
            bounds = {name: bounds[name] for name in ("since", "until", "max_clicks")}
            [(skipped,)] = connection.execute(_SKIPPED_USERS, bounds).fetchall()
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


def _limit(connection: duckdb.DuckDBPyConnection, resources: Resources, spill: Path) -> None:
    # Without the first there is no progress to ask for; the second keeps DuckDB's own bar off stdout.
    connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
    connection.execute("SET temp_directory = ?", [str(resources.spill or spill)])
    try:
        connection.execute("SET memory_limit = ?", [resources.memory])
    except (duckdb.ParserException, duckdb.InvalidInputException, duckdb.SyntaxException) as error:
        raise ValueError(f"memory {resources.memory!r} is no size such as 4GB: {str(error).splitlines()[0]}") from None
    if resources.threads:
        connection.execute("SET threads = ?", [resources.threads])


def _add_log(connection: duckdb.DuckDBPyConnection, events: EventTable | ParquetEvents) -> list[str]:
    """Make the table ``log``, with notes numbered by id, so that ties by number are ties by id; the ids in order."""
    if isinstance(events, ParquetEvents):
        events.add_to(connection)
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


def _draw(note_id: str, seed: int) -> float:
    """A number in 0..1 that depends on nothing but the id and the seed."""
    digest = blake2b(f"{seed}:{note_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


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
