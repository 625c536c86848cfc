"""Times of events: numbers in any unit, and dates, alike in both formats."""

import math
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import jsonl, parquet

from model.data.cooccurrence import PairRules, related_pairs
from model.data.events import load_events
from model.data.files import DataError
from model.data.parquet_events import open_events
from model.data.periods import split_periods
from model.data.times import seconds

CLICK = {"user_id": "u", "note_id": "n", "event": "click"}
NOON = 1769860800


def test_noon_is_what_the_tests_take_it_for():
    assert datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp() == NOON


@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=st.timezones()))
def test_every_time_of_python_is_read_back(time):
    assert seconds(time.isoformat()) == pytest.approx(time.timestamp(), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31 12:00:00", NOON),
        ("2026-01-31 12:00:00+00", NOON),
        ("2026-01-31T12:00", NOON),
        ("2026-01-31T14:00:00.250+02:00", NOON + 0.25),
        ("2026-01-31T12:00:00.123456789Z", NOON + 0.123456),
        ("2026-01-31", NOON - 12 * 3600),
        ("2016-12-31T23:59:60Z", 1483228800),
        ("2016-12-31T23:59:60.5Z", 1483228800.5),
        ("2016-12-31T15:59:60-08:00", 1483228800),
        ("2015-06-30 23:59:60", 1435708800),
    ],
)
def test_iso_8601(text, expected):
    assert seconds(text) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "20260131",
        "2026-W05-6",
        "2026-02-30",
        "2026-01-31T12:00:60Z",
        "2016-12-30T23:59:60Z",
        "2026-01-31T25:00",
        "2026-01-31T12:60:00",
        "9999-12-31T23:59:60Z",
        "1700000000",
        "2026-01-31T12:00:00 monday",
    ],
)
def test_other_texts_are_no_times(text):
    with pytest.raises(ValueError):  # noqa: PT011 - datetime's own message, or ours
        seconds(text)


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize(
    ("times", "expected", "kind"),
    [
        ([1700000000.25, 1700000000.75], [1700000000.25, 1700000000.75], np.float64),
        ([3.0, 4.0], [3, 4], np.int64),
        ([1700000000123, 1700000000124], [1700000000123, 1700000000124], np.int64),
        ([2**62 + 1, 2**62 + 2], [2**62 + 1, 2**62 + 2], np.int64),
        (["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5Z"], [NOON, NOON + 0.5], np.float64),
        (["2016-12-31T23:59:60Z", None], [1483228800, 0], np.int64),
        ([math.nan, 2.5], [0.0, 2.5], np.float64),
    ],
)
def test_times_are_alike_in_both_formats(tmp_path, write, times, expected, kind):
    name = "events.jsonl" if write is jsonl else "events.parquet"
    write(tmp_path / name, [CLICK | {"ts": time} for time in times])

    events = load_events(tmp_path)

    assert (events.ts.tolist(), events.ts.dtype) == (expected, kind)
    assert events.untimed == sum(time is None or time != time for time in times)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([datetime(2026, 1, 31, 12)], pa.timestamp("ns")), NOON),
        (pa.array([datetime(2026, 1, 31, 12)], pa.timestamp("ms", "Europe/Berlin")), NOON),
        (pa.array([datetime(2026, 1, 31, 12, 0, 0, 250000)], pa.timestamp("us")), NOON + 0.25),
        (pa.array([date(2026, 1, 31)], pa.date32()), NOON - 12 * 3600),
        (pa.array([Decimal("1700000000.25")]), 1700000000.25),
        (pa.array(["2026-01-31T12:00:00Z"]).dictionary_encode(), NOON),
        (pa.array([5], pa.uint64()), 5),
        (pa.array([5.5], pa.float32()), 5.5),
    ],
)
def test_columns_of_times(tmp_path, array, expected):
    table = pa.table({name: [value] for name, value in CLICK.items()} | {"ts": array})
    pq.write_table(table, tmp_path / "events.parquet")

    assert load_events(tmp_path).ts.tolist() == [expected]


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_numbers_beside_dates_are_seconds_or_refused(tmp_path, write):
    parts = tmp_path / "events"
    parts.mkdir()
    jsonl(parts / "part-0.jsonl", [CLICK | {"ts": "2026-01-31T12:00:00Z"}])
    other = parts / ("part-1.jsonl" if write is jsonl else "part-1.parquet")

    write(other, [CLICK | {"ts": NOON}])
    assert load_events(tmp_path).ts.tolist() == [NOON, NOON]

    write(other, [CLICK | {"ts": NOON}, CLICK | {"ts": 1000 * NOON}])
    with pytest.raises(
        DataError, match=r"part-1\.\w+ (line 2|row 1): ts is no time in seconds.*/part-0\.jsonl line 1: "
    ):
        load_events(tmp_path)


@pytest.mark.parametrize("time", [True, [5], {"at": 5}, "soon", 2**63, math.inf])
def test_other_times_are_named(tmp_path, time):
    jsonl(tmp_path / "events.jsonl", [CLICK | {"ts": 1}, CLICK | {"ts": time}])

    with pytest.raises(DataError, match=r"^events\.jsonl line 2: (ts must|not valid JSON)"):
        load_events(tmp_path)


def test_fractions_decide_what_came_first_and_what_is_in_a_period(tmp_path):
    def event(note, kind, ts):
        return {"user_id": "u", "note_id": note, "event": kind, "ts": ts}

    jsonl(tmp_path / "events.jsonl", [event("a", "view", 9.25), event("b", "click", 9.75), event("c", "click", 10.0)])
    events = load_events(tmp_path)

    assert related_pairs(events, PairRules(until=10)).ends() == [("a", "b")]
    assert related_pairs(events, PairRules(since=9.5)).ends() == [("b", "c")]
    assert split_periods(events, start=9.5).after == {"b", "c"}
    assert split_periods(events, share=0.5).start == 9.75


@pytest.mark.parametrize("scale", [1, 1000, 1_000_000])
@pytest.mark.parametrize("name", ["events.jsonl", "events.parquet"])
def test_a_date_is_one_in_every_unit_that_a_log_may_have(tmp_path, scale, name):
    """Exported events count microseconds."""
    days = [seconds("2026-01-30T12:00"), seconds("2026-01-31"), seconds("2026-01-31T12:00"), seconds("2026-02-01")]
    rows = [
        {"user_id": "u", "note_id": note, "event": "click", "ts": int(day * scale)}
        for note, day in zip("abcd", days, strict=True)
    ]
    if name == "events.jsonl":
        jsonl(tmp_path / name, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    start, end = seconds("2026-01-31"), seconds("2026-02-01")

    for log in (load_events(tmp_path), open_events(tmp_path)):
        assert related_pairs(log, PairRules(since=start, until=end)).ends() == [("b", "c")]
        assert related_pairs(log, PairRules(since=start * scale, until=end * scale)).ends() == [("b", "c")]
    assert split_periods(load_events(tmp_path), start=start).after == {"b", "c", "d"}
