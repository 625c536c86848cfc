"""Click-through rates of a log by scenario, model, position and more."""

from model.evaluation.online.ratio import Rate, rate
from model.evaluation.online.shown import AGES_DAYS, EXPOSURES, Log

# What a rate is broken down by, as SQL over `shown` and `exposure` (and `notes`), and how the groups are ordered.
DIMENSIONS = {
    "scenario": "scenario",
    "model": "model",
    "arm": "CASE WHEN arm = '' THEN NULL ELSE experiment || ' ' || arm END",
    "position": "CASE WHEN position > 10 THEN '11+' ELSE lpad(position::VARCHAR, 2, ' ') END",
    "exposure": "exposure",
    "age": "age",
    "day": "strftime(make_timestamp(ts), '%Y-%m-%d')",
}

_SUMS = """
WITH items AS (
    SELECT shown.*, {exposure} AS exposure, {age} AS age
    FROM shown LEFT JOIN exposure USING (note_id) {notes}
    WHERE scenario IN ('related', 'search')
), readers AS (
    SELECT {key} AS key, reader, count(*)::DOUBLE AS n, count(*) FILTER (clicked)::DOUBLE AS c FROM items GROUP BY 1, 2
)
SELECT key, sum(n), sum(c), count(*), sum(c * c), sum(c * n), sum(n * n) FROM readers
WHERE key IS NOT NULL GROUP BY key ORDER BY key
"""


def rates(log: Log, dimension: str) -> dict[str, Rate]:
    """Rates of the items of lists by one of `DIMENSIONS`, in its order; none of items without a value."""
    if dimension == "age" and not log.has_notes:
        return {}
    query = _SUMS.format(
        key=DIMENSIONS[dimension],
        exposure=_buckets("coalesce(exposure.shown, 0)", EXPOSURES),
        age=_buckets("(ts - notes.created) / 86400e6", AGES_DAYS) if log.has_notes else "NULL",
        notes="LEFT JOIN notes USING (note_id)" if log.has_notes else "",
    )
    return {str(key).strip(): rate(*sums) for key, *sums in log.connection.execute(query).fetchall()}


def _buckets(value: str, bounds: tuple[int, ...]) -> str:
    """SQL for the bucket of a value; names sort by their bounds."""
    width = len(str(bounds[-1]))
    names = [f"{low:>{width}} to {high:,}" for low, high in zip((0, *bounds), bounds, strict=False)]
    cases = " ".join(f"WHEN {value} < {high} THEN '{name}'" for name, high in zip(names, bounds, strict=True))
    return f"CASE WHEN {value} IS NULL THEN NULL {cases} ELSE '{bounds[-1]:,} and more' END"
