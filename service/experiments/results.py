"""What came of an experiment: the log of answers and the events that name them, as counts of each reader.

A reader belongs to the arm that answered them. An item counts once, however often it was reported: it was shown if
there is an impression or a click of it in its answer, clicked if there is a click, like or save. Where no impressions
are reported at all, every item of a list counts as shown.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from model.evaluation.online.ratio import Rate, rate
from model.text.hashtags import fold
from service.experiments.statistics import Counts
from service.store.experiments.records import Experiment

# Lost acknowledgments leave an answer in the log twice.
_ANSWERED = """
CREATE TEMP TABLE answered AS
SELECT DISTINCT ON (answer_id, scenario) answer_id, scenario, scenario IN ('related', 'search') AS is_list, arm, reader,
       ids, seconds, ts
FROM read_parquet($files, union_by_name = true) WHERE experiment = $name AND reader <> ''
"""
# The last write that named the answer counts: an editor may save several times.
_WRITTEN = """
CREATE TEMP TABLE written AS
SELECT answer_id, last(ids ORDER BY ts) AS ids FROM read_parquet($files, union_by_name = true)
WHERE scenario = 'written' GROUP BY answer_id
"""
_ITEMS = """
CREATE TEMP TABLE items AS
SELECT arm, reader, answer_id, events.note_id, bool_or(event <> 'impression') AS clicked,
       bool_or(event = 'impression') AS seen
FROM read_parquet($files, union_by_name = true) AS events JOIN answered USING (answer_id)
WHERE is_list AND event IN ('impression', 'click', 'like', 'save') GROUP BY ALL
"""
_NO_ITEMS = "CREATE TEMP TABLE items (arm VARCHAR, reader VARCHAR, answer_id VARCHAR, clicked BOOLEAN, seen BOOLEAN)"
_READERS = """
SELECT * FROM (
    SELECT arm, reader, count(*) AS answers, count(*) FILTER (scenario = 'failed') AS failed,
           count(*) FILTER (is_list) AS lists, count(*) FILTER (is_list AND len(ids) = 0) AS empty,
           coalesce(sum(seconds) FILTER (is_list), 0) AS seconds,
           coalesce(sum(len(ids)) FILTER (is_list), 0)::BIGINT AS listed
    FROM answered GROUP BY arm, reader
) LEFT JOIN (
    SELECT arm, reader, count(*) AS shown, count(*) FILTER (clicked) AS clicked FROM items GROUP BY arm, reader
) USING (arm, reader)
"""
_SLOW = "SELECT arm, quantile_cont(seconds, 0.99) FROM answered WHERE is_list GROUP BY arm"
_REACHED = (
    "SELECT arm, count(DISTINCT id) FROM (SELECT arm, unnest(ids) AS id FROM answered WHERE is_list) GROUP BY arm"
)
_TAGS = """
SELECT arm, reader, answered.ids, written.ids FROM answered JOIN written USING (answer_id) WHERE scenario = 'tags'
"""
# By the day (UTC) of the answer, with what an interval that knows readers needs: see `model.evaluation.online.ratio`.
_DAYS = """
SELECT day, arm, sum(shown)::DOUBLE, sum(clicked)::DOUBLE, count(*), sum(clicked * clicked)::DOUBLE,
       sum(clicked * shown)::DOUBLE, sum(shown * shown)::DOUBLE
FROM (
    SELECT ts // 86400000000 AS day, arm, reader, coalesce(sum(clicked), 0) AS clicked,
           sum(CASE WHEN $seen THEN coalesce(shown, 0) ELSE len(ids) END) AS shown
    FROM answered LEFT JOIN (
        SELECT answer_id, count(*) AS shown, count(*) FILTER (clicked) AS clicked FROM items GROUP BY answer_id
    ) USING (answer_id)
    WHERE is_list GROUP BY ALL
) WHERE shown > 0 GROUP BY day, arm ORDER BY day, arm
"""
_SEEN = "SELECT coalesce(bool_or(seen), false) FROM items"
_LAST = "SELECT max(ts) FROM answered"


@dataclass(frozen=True, slots=True)
class ArmResults:
    """Of one arm, by reader: clicks in items shown, hashtags accepted of those suggested, and what guards look at.

    ``failed`` are errors in answers; ``empty`` lists and the ``seconds`` that they took are of lists. ``slow_s`` is the
    99th percentile of these seconds, ``notes`` the number of different notes in lists; 0 without any.
    """

    readers: int
    answers: int
    clicks: Counts
    accepted: Counts
    failed: Counts
    empty: Counts
    seconds: Counts
    slow_s: float
    notes: int


@dataclass(frozen=True, slots=True)
class Results:
    """Of both arms, in their order; ``until_s`` is the time of the last answer, None without any.

    ``has_impressions`` says that what counts as shown was reported. ``days`` have the clicks of the lists of each day,
    by days since 1970 (UTC) and arm.
    """

    arms: tuple[ArmResults, ArmResults]
    until_s: float | None
    has_impressions: bool
    days: Mapping[tuple[int, str], Rate]


def results_of(experiment: Experiment, folder: Path, memory: str = "1GB") -> Results:
    """The results by the files of `notellm events export`.

    Raises:
        ValueError: if the folder holds no answers, or other files.
    """
    answers = sorted(map(str, folder.glob("_answers/dt=*/part-*.parquet")))
    events = sorted(map(str, folder.glob("dt=*/part-*.parquet")))
    if not answers:
        raise ValueError(f"{folder} holds no answers: `notellm events export` writes them")
    try:
        with duckdb.connect(config={"memory_limit": memory}) as log:
            log.execute(_ANSWERED, {"files": answers, "name": experiment.name})
            log.execute(_WRITTEN, {"files": answers})
            if events:
                log.execute(_ITEMS, {"files": events})
            else:
                log.execute(_NO_ITEMS)
            return _results(log, [arm.name for arm in experiment.arms])
    except duckdb.Error as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: its files are none of `notellm events export`: {line}") from error


def _results(log: duckdb.DuckDBPyConnection, names: Sequence[str]) -> Results:
    readers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    found = log.execute(_READERS)
    columns = [column[0] for column in found.description]
    for row in found.fetchall():
        reader = dict(zip(columns, row, strict=True))
        readers[reader["arm"]].append(reader)
    [(seen,)] = log.execute(_SEEN).fetchall()
    [(last,)] = log.execute(_LAST).fetchall()
    slow, notes = dict(log.execute(_SLOW).fetchall()), dict(log.execute(_REACHED).fetchall())
    accepted = _accepted(log)
    first, second = (
        _arm(
            readers[name],
            accepted[name],
            slow.get(name) or 0.0,
            notes.get(name, 0),
            shown="shown" if seen else "listed",
        )
        for name in names
    )
    days = {
        (day, arm): rate(shown, clicked, *of_readers)
        for day, arm, shown, clicked, *of_readers in log.execute(_DAYS, {"seen": seen}).fetchall()
    }
    return Results((first, second), None if last is None else last / 1e6, bool(seen), days)


def _arm(readers: Sequence[dict[str, Any]], accepted: Counts, slow_s: float, notes: int, *, shown: str) -> ArmResults:
    def counts(successes: str, trials: str) -> Counts:
        return Counts.of(*([one[name] or 0 for one in readers] for name in (successes, trials)))

    return ArmResults(
        len(readers),
        sum(one["answers"] for one in readers),
        counts("clicked", shown),
        accepted,
        counts("failed", "answers"),
        counts("empty", "lists"),
        counts("seconds", "lists"),
        slow_s,
        notes,
    )


def _accepted(log: duckdb.DuckDBPyConnection) -> dict[str, Counts]:
    """By arm. Hashtags are equal when `fold` makes them so."""
    readers: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for arm, reader, suggested, written in log.execute(_TAGS).fetchall():
        counts = readers[arm][reader]
        counts[0] += len({*map(fold, suggested)} & {*map(fold, written)})
        counts[1] += len(suggested)
    by_arm: dict[str, Counts] = defaultdict(lambda: Counts.of([], []))
    for arm, of_arm in readers.items():
        by_arm[arm] = Counts.of(*zip(*of_arm.values(), strict=True))
    return by_arm
