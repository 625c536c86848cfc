"""The query of eq. 1 (section 4.1), in the SQL that DuckDB and Spark share, its rules, and what runs it.

Parameters are marked as in ``:top``. DuckDB marks them with a dollar sign; nothing else differs between the two.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Protocol, Self

from model.data.events import EventTable
from model.data.pairs import Pairs
from model.data.parquet_events import ParquetEvents
from model.data.times import in_unit_of

# Of the tables ``log`` (user_code, note, ts, clicked) and ``candidates`` (note). Notes are in the order of their ids.
# An engine may divide before it drops the users without a click, hence `nullif`.
# Decimals add up to the same sum in any order. Floats do not: the last bit would decide which pair is tenth.
RELATED_PAIRS = """
WITH met AS (
    SELECT user_code, note, min(ts) AS first_view, max(ts) AS last_view,
           max(ts) FILTER (WHERE clicked) AS last_click
    FROM log WHERE ts >= coalesce(:since, ts) AND (:until IS NULL OR ts < :until) GROUP BY user_code, note
), active AS (
    SELECT user_code, CAST(1 / nullif(count(last_click), 0) AS DECIMAL(18, 15)) AS weight
    FROM met GROUP BY user_code HAVING count(last_click) BETWEEN 1 AND :max_clicks
), ranked AS (
    SELECT met.*, weight, row_number() OVER (
        PARTITION BY user_code, last_click IS NULL ORDER BY last_view DESC, note
    ) AS place
    FROM met JOIN active USING (user_code) JOIN candidates USING (note)
), seen AS (
    SELECT * FROM ranked WHERE last_click IS NOT NULL OR place <= :max_views
), summed AS (
    SELECT a.note AS note, b.note AS related, CAST(round(sum(b.weight), 9) AS DOUBLE) AS score, count(*) AS users
    FROM seen AS a JOIN seen AS b USING (user_code)
    WHERE a.note <> b.note AND b.last_click IS NOT NULL AND (NOT :ordered OR a.first_view < b.last_click)
    GROUP BY a.note, b.note
), best AS (
    SELECT *, row_number() OVER (PARTITION BY note ORDER BY score DESC, related) AS place
    FROM summed WHERE score BETWEEN :lower AND :upper
)
SELECT note, related, score, users FROM best WHERE place <= :top ORDER BY note, score DESC, related
"""
SKIPPED_USERS = """
SELECT count(*) AS users FROM (
    SELECT user_code FROM log
    WHERE clicked AND ts >= coalesce(:since, ts) AND (:until IS NULL OR ts < :until)
    GROUP BY user_code HAVING count(DISTINCT note) > :max_clicks
) AS overactive
"""
# The parameters of the second.
PERIOD = ("since", "until", "max_clicks")


@dataclass(frozen=True, slots=True)
class PairRules:
    """Which notes of a log are related, with the paper's u, l and t as defaults (section 5.1).

    Args:
        upper, lower: bounds of a score, both inclusive; pairs outside are dropped first.
        top: related notes of one note at most, those of the highest scores; ties by id.
        ordered: A was viewed strictly before B was clicked. False: in any order, which needs no ``ts``.
        since, until: only events of this period count, ``since <= ts < until``, in the unit of ``ts``, or in seconds.
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

    def in_unit_of(self, newest: float) -> Self:
        """The same rules, with a period in the unit of a log whose largest time is ``newest``."""
        since, until = (None if time is None else in_unit_of(newest, time) for time in (self.since, self.until))
        return replace(self, since=since, until=until)


class Engine(Protocol):
    """Runs the query. Any two give the same pairs, to the last row."""

    def related(self, events: EventTable | ParquetEvents, rules: PairRules, within: Set[str] | None) -> Pairs:
        """See `model.data.cooccurrence.related_pairs`. Raises ValueError when it lacks what it needs, in one line."""
        ...
