"""Click-through rates with intervals that know that a reader's items are not independent of each other.

The rate is a ratio of two sums over readers, clicks and items shown. Its variance is that of the linearized ratio: with
c_i clicks of n_i items of the i-th of K readers, and R = sum(c) / sum(n),

    var(R) = K / (K - 1) * sum((c_i - R n_i)^2) / sum(n)^2

which is the delta method (Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics", KDD 2018). Only sums
of squares and products over readers are needed.
"""

import math
from dataclasses import dataclass

from model.evaluation.metrics import Figure
from model.evaluation.online.shown import AGES_DAYS, EXPOSURES, Log

_Z = 1.959964  # of 95%

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


@dataclass(frozen=True, slots=True)
class Rate:
    """Items that were shown to ``readers``, how many were clicked, and their share with its 95% interval."""

    shown: int
    clicks: int
    readers: int
    share: Figure


def rate(shown: float, clicks: float, readers: int, cc: float, cn: float, nn: float) -> Rate:
    """The rate of these sums over readers: items, clicks, readers, and of clicks², clicks * items, items².

    With fewer than two readers there is no interval.
    """
    share = clicks / shown
    if readers < 2:
        return Rate(int(shown), int(clicks), readers, Figure(share))
    residual = max(0.0, cc - 2 * share * cn + share**2 * nn)
    reach = _Z * math.sqrt(readers / (readers - 1) * residual) / shown
    return Rate(int(shown), int(clicks), readers, Figure(share, max(0.0, share - reach), min(1.0, share + reach)))


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
