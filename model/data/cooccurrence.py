"""Related pairs by co-occurrence in a click log (section 4.1, eq. 1), and the split by note."""

import tempfile
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from hashlib import blake2b
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from model.data.events import EventTable
from model.data.notes import is_blank
from model.data.pairs import Pairs
from model.note import Note

# Eq. 1 as the paper sets it: u, l and t.
UPPER = 30.0
LOWER = 0.01
TOP = 10
# Of the split: the share of notes in no training pair, and the seed.
HOLDOUT = 0.3
SEED = 0
# A user with N clicks adds 1/N to N^2 pairs: above this next to nothing, at most of the cost of the join.
MAX_CLICKS = 1000

_MEMORY = "1GB"

# Decimals add up to the same sum in any order. Floats do not: the last bit would decide which pair is tenth.
_RELATED_PAIRS = """
WITH met AS (
    SELECT user_code, note, min(ts) AS first_view, max(ts) FILTER (clicked) AS last_click
    FROM events GROUP BY user_code, note
), active AS (
    SELECT user_code, count(last_click) AS clicks
    FROM met GROUP BY user_code HAVING clicks BETWEEN 1 AND $max_clicks
), seen AS (
    SELECT met.*, (1 / clicks)::DECIMAL(18, 15) AS weight
    FROM met JOIN active USING (user_code) JOIN candidates USING (note)
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
    SELECT user_code FROM events WHERE clicked GROUP BY user_code HAVING count(DISTINCT note) > $max_clicks
)
"""


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
    events: EventTable,
    *,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    ordered: bool = True,
) -> Pairs:
    """Related pairs of the notes that are neither held out nor blank.

    Raises:
        ValueError: see `related_pairs` and `split_notes`.
    """
    held_out = split_notes((note.id for note in notes), holdout, seed)
    kept = frozenset(note.id for note in notes if note.id not in held_out and not is_blank(note))
    return related_pairs(events, ordered=ordered, within=kept)


def related_pairs(
    events: EventTable,
    *,
    upper: float = UPPER,
    lower: float = LOWER,
    top: int = TOP,
    ordered: bool = True,
    within: Set[str] | None = None,
    max_clicks: int = MAX_CLICKS,
) -> Pairs:
    """The related notes of every note, eq. 1.

    s(A -> B) is the sum of 1/N_i over users i who viewed A and then clicked B, N_i the number of distinct
    notes user i clicked in the whole log. A user counts once for (A, B). Of the scores of A those above
    ``upper`` or below ``lower`` are dropped first, then the ``top`` highest are kept, ties by id.

    Args:
        events: the log; a click is a view too.
        upper, lower: bounds of a score, both inclusive.
        top: related notes of one note at most.
        ordered: A was viewed strictly before B was clicked. False: in any order, which needs no ``ts``.
        within: both ends of a pair are in this set. It changes no N_i.
        max_clicks: users with more distinct clicks than this add nothing; the pairs say how many there were.

    Raises:
        ValueError: if ``ordered`` and an event has no ``ts``.
    """
    if ordered and events.untimed:
        raise ValueError(f"{events.untimed} of {len(events)} events have no ts: without an order, use unordered pairs")
    by_id = sorted(range(len(events.note_ids)), key=events.note_ids.__getitem__)
    rank = np.empty(len(by_id), dtype=np.int32)
    rank[by_id] = np.arange(len(by_id), dtype=np.int32)
    ids = [events.note_ids[code] for code in by_id]
    candidates = [row for row, note_id in enumerate(ids) if within is None or note_id in within]
    tables = {
        "events": pa.table(
            {
                "user_code": events.users,
                "note": rank[events.notes],  # numbered by id, so that ties by number are ties by id
                "ts": events.ts,
                "clicked": events.clicked,
            }
        ),
        "candidates": pa.table({"note": pa.array(candidates, pa.int32())}),
    }
    bounds = {"upper": upper, "lower": lower, "top": top, "ordered": ordered, "max_clicks": max_clicks}
    pairs, skipped = _query(tables, bounds)
    return Pairs(
        tuple(ids[row] for row in pairs["note"].to_pylist()),
        tuple(ids[row] for row in pairs["related"].to_pylist()),
        pairs["score"].to_numpy(),
        pairs["users"].to_numpy(),
        skipped,
    )


def _draw(note_id: str, seed: int) -> float:
    """A number in 0..1 that depends on nothing but the id and the seed."""
    digest = blake2b(f"{seed}:{note_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _query(tables: dict[str, pa.Table], bounds: dict[str, float | int | bool]) -> tuple[pa.Table, int]:
    with tempfile.TemporaryDirectory(prefix="notellm-pairs-") as folder, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        # Without the first there is no progress to ask for; the second keeps DuckDB's own bar off stdout.
        connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
        connection.execute("SET temp_directory = ?", [str(Path(folder) / "spill")])
        for name, table in tables.items():
            connection.from_arrow(table).create(name)  # of a scan of Arrow itself DuckDB reports no progress
        pairs = _watched(connection, _RELATED_PAIRS, bounds)
        [(skipped,)] = connection.execute(_SKIPPED_USERS, {"max_clicks": bounds["max_clicks"]}).fetchall()
    return pairs, skipped


def _watched(connection: duckdb.DuckDBPyConnection, query: str, bounds: dict[str, float | int | bool]) -> pa.Table:
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
