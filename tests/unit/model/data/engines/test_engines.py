"""Eq. 1 against the sum written out over users, one suite for both engines, and what each does with mistakes."""

import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.click_logs import Event, by_pair, table, written_out
from support.programs import need

from model.data.cooccurrence import PairRules, related_pairs
from model.data.engines.duckdb_engine import DuckDbEngine
from model.data.engines.query import Engine
from model.data.engines.spark_engine import JAVA, SparkEngine, reason, spark_engine
from model.data.events import EventTable, load_events
from model.data.files import DataError
from model.data.parquet_events import ParquetEvents, open_events
from service.cli.data import pairs

# For logs of a few lines: one partition, and plans that are not compiled.
SMALL: Mapping[str, str] = {
    "spark.driver.memory": "512m",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
}


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkEngine]:
    need("java", "openjdk-17-jre-headless")
    with spark_engine("local[1]", SMALL) as engine:
        yield engine


@pytest.fixture(params=["duckdb", "spark"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return DuckDbEngine() if request.param == "duckdb" else request.getfixturevalue("spark")


LOGS = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcdef"), st.integers(0, 6), st.booleans()),
    max_size=40,
)


def test_ten_readers_counted_by_hand(engine):
    """a -> b: 1/2 of the first reader, 1 of the second, 1/3 of the fourth, 1/2 of the seventh and of the tenth."""
    log = [
        ("ana", "a", 1, True), ("ana", "b", 2, True),
        ("ben", "a", 1, False), ("ben", "b", 2, True),
        ("cat", "b", 1, True), ("cat", "a", 2, True),
        ("dan", "a", 1, True), ("dan", "b", 2, True), ("dan", "c", 3, True),
        ("eve", "c", 1, False), ("eve", "a", 2, True), ("eve", "c", 3, False),
        ("fay", "a", 1, False), ("fay", "b", 2, False),
        ("gus", "a", 1, True), ("gus", "a", 2, True), ("gus", "b", 3, True),
        ("hal", "b", 1, True), ("hal", "c", 1, True),
        ("ida", "a", 1, False), ("ida", "c", 2, True), ("ida", "b", 3, False),
        ("jon", "c", 1, True), ("jon", "b", 2, True), ("jon", "a", 3, False), ("jon", "b", 4, True),
    ]  # fmt: skip

    assert list(by_pair(related_pairs(table(log), engine=engine)).items()) == [
        (("a", "b"), (2.833333333, 5)),
        (("a", "c"), (1.333333333, 2)),
        (("b", "a"), (0.5, 1)),
        (("b", "c"), (0.333333333, 1)),
        (("c", "a"), (1.0, 1)),
        (("c", "b"), (0.5, 1)),
    ]


def drawn(events: int) -> list[Event]:
    """A log in which few readers and few notes do most, as in real ones; ids are of several alphabets."""
    draw = random.Random(0)
    notes = [f"{'aZéß漢🎈'[number % 6]}{number}" for number in range(80)]
    return [
        (
            f"u{min(int(draw.paretovariate(0.6)), 60)}",
            notes[min(int(draw.paretovariate(0.8)), 80) - 1],
            draw.randrange(500),
            draw.random() < 0.4,
        )
        for _ in range(events)
    ]


@pytest.mark.parametrize(
    "rules",
    [
        PairRules(),
        PairRules(ordered=False, lower=0, upper=1e9, top=1000),
        PairRules(since=100, until=400.5, max_clicks=12, max_views=3, lower=0.1, upper=1, top=4),
    ],
)
def test_spark_gives_what_duckdb_gives_to_the_last_row(spark, rules):
    log = table(drawn(2000))
    within = set(log.note_ids[::2])

    ours, theirs = (related_pairs(log, rules, within=within, engine=engine) for engine in (DuckDbEngine(), spark))

    assert len(ours) > 30
    assert (ours.note_ids, ours.related_ids) == (theirs.note_ids, theirs.related_ids)
    assert (ours.scores.tolist(), ours.users.tolist()) == (theirs.scores.tolist(), theirs.users.tolist())
    assert ours.skipped_users == theirs.skipped_users


@settings(max_examples=40)
@given(LOGS, st.booleans())
def test_scores_and_users_equal_the_sum_over_users(log, ordered):
    pairs = related_pairs(table(log), PairRules(upper=1e9, lower=0, top=100, ordered=ordered))

    expected = written_out(log, ordered)
    found = by_pair(pairs)
    assert set(found) == set(expected)
    for pair, (score, users) in expected.items():
        assert found[pair] == (pytest.approx(float(score), abs=1e-8), users)


@settings(max_examples=30)
@given(LOGS, st.randoms())
def test_the_order_of_the_events_in_the_file_changes_nothing(log, random):
    shuffled = random.sample(log, len(log))

    first, second = (related_pairs(table(events), PairRules(top=2)) for events in (log, shuffled))

    assert first.ends() == second.ends()
    assert first.scores.tolist() == second.scores.tolist()


def test_a_view_before_a_click_relates_in_that_direction_only(engine):
    log: list[Event] = [("u", "a", 1, False), ("u", "b", 2, True)]

    assert by_pair(related_pairs(table(log), engine=engine)) == {("a", "b"): (1.0, 1)}


def test_events_at_the_same_time_relate_in_neither_direction(engine):
    log: list[Event] = [("u", "a", 1, True), ("u", "b", 1, True)]

    assert len(related_pairs(table(log), engine=engine)) == 0
    assert set(related_pairs(table(log), PairRules(ordered=False), engine=engine).ends()) == {("a", "b"), ("b", "a")}


def test_a_user_counts_once_however_often_they_come_back(engine):
    log: list[Event] = [("u", "a", 1, True), ("u", "b", 2, True), ("u", "a", 3, False), ("u", "b", 4, True)]

    assert by_pair(related_pairs(table(log), engine=engine)) == {("a", "b"): (0.5, 1)}


def test_scores_out_of_bounds_are_dropped_before_the_best_are_taken(engine):
    """The note of the highest score is everywhere; with it gone, the next two are the top two."""
    log: list[Event] = []
    for note, users in (("everywhere", 5), ("often", 3), ("at times", 2), ("once", 1)):
        for user in range(users):
            log += [(f"{note}{user}", "a", 1, False), (f"{note}{user}", note, 2, True)]

    pairs = related_pairs(table(log), PairRules(upper=4, lower=1.5, top=2), engine=engine)

    assert by_pair(pairs) == {("a", "often"): (3.0, 3), ("a", "at times"): (2.0, 2)}


def test_both_bounds_are_inclusive_even_where_floats_would_pass_them(engine):
    """180 sixths are 30 exactly, and 1/6 is not a finite number of binary or decimal places."""
    extra = [f"x{number}" for number in range(5)]
    log: list[Event] = []
    for user in range(180):
        log += [(f"u{user}", "a", 1, False), *((f"u{user}", note, 2, True) for note in ["b", *extra])]

    assert by_pair(related_pairs(table(log), PairRules(upper=30, lower=30), engine=engine))[("a", "b")] == (30.0, 180)


def test_ties_go_to_the_smaller_id(engine):
    log: list[Event] = [("u", "z", 1, False), *(("u", note, 2, True) for note in ("c", "a", "b"))]

    assert related_pairs(table(log), PairRules(top=2), engine=engine).ends() == [("z", "a"), ("z", "b")]


def test_pairs_stand_by_note_and_best_first(engine):
    log: list[Event] = [
        ("u", "z", 1, False), ("u", "a", 2, True), ("u", "b", 2, True),
        ("v", "z", 1, False), ("v", "b", 2, True), ("v", "y", 3, True),
    ]  # fmt: skip

    assert related_pairs(table(log), engine=engine).ends() == [("b", "y"), ("z", "b"), ("z", "a"), ("z", "y")]


def test_a_set_of_notes_limits_the_pairs_but_not_how_active_a_user_was(engine):
    log: list[Event] = [("u", note, time, True) for time, note in enumerate("abcd")]

    assert by_pair(related_pairs(table(log), within={"a", "c"}, engine=engine)) == {("a", "c"): (0.25, 1)}


def test_notes_outside_the_set_do_not_take_the_best_places(engine):
    log: list[Event] = [("u", "a", 1, False), ("u", "b", 2, True), ("v", "a", 1, False), ("v", "b", 2, True)]
    log += [("w", "a", 1, False), ("w", "c", 2, True)]

    assert related_pairs(table(log), PairRules(top=1), within={"a", "c"}, engine=engine).ends() == [("a", "c")]


def test_overactive_users_are_skipped_and_counted(engine):
    log: list[Event] = [("u", note, time, True) for time, note in enumerate("abcd")]
    log += [("v", "a", 1, True), ("v", "b", 2, True)]

    pairs = related_pairs(table(log), PairRules(max_clicks=3), engine=engine)

    assert by_pair(pairs) == {("a", "b"): (0.5, 1)}
    assert pairs.skipped_users == 1


def test_an_event_without_time_needs_unordered_pairs():
    log: list[Event] = [("u", "a", 0, True), ("u", "b", 0, True)]

    with pytest.raises(ValueError, match="2 of 2 events have no ts"):
        related_pairs(table(log, untimed=2))
    assert len(related_pairs(table(log, untimed=2), PairRules(ordered=False))) == 2


def test_of_the_views_without_a_click_the_last_ones_count(engine):
    views = [("u", name, time, False) for time, name in enumerate("abcd")]
    log = [*views, ("u", "x", 9, True), ("u", "a", 10, False)]

    assert set(related_pairs(table(log), PairRules(max_views=2), engine=engine).ends()) == {("a", "x"), ("d", "x")}
    assert set(related_pairs(table(log), PairRules(max_views=0, ordered=False), engine=engine).ends()) == set()


def test_a_crawler_costs_what_a_reader_does():
    log = [("crawler", f"n{number:05}", number, number % 500 == 0) for number in range(20_000)]

    pairs = related_pairs(table(log), PairRules(max_views=10, lower=0))

    assert {note for note, _ in pairs.ends()} < {f"n{number:05}" for number in range(0, 20_000, 500)} | {
        f"n{number:05}" for number in range(19_989, 20_000)
    }


def test_only_the_events_of_the_period_count_also_for_the_weight_of_a_click():
    log = [("u", "a", 1, True), ("u", "b", 2, True), ("u", "c", 3, True), ("u", "d", 4, True)]

    assert by_pair(related_pairs(table(log), PairRules(since=2, until=4))) == {("b", "c"): (0.5, 1)}
    assert by_pair(related_pairs(table(log), PairRules(until=3))) == {("a", "b"): (0.5, 1)}
    assert related_pairs(table(log), PairRules(until=4, max_clicks=2)).skipped_users == 1
    with pytest.raises(ValueError, match="have no ts"):
        related_pairs(table(log, untimed=1), PairRules(ordered=False, since=2))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LOGS, st.booleans())
def test_duckdb_reads_parquet_itself_with_the_same_pairs(tmp_path, log, ordered):
    users, notes, times, clicked = zip(*log, strict=True) if log else (("u",), ("a",), (0,), (True,))
    kinds = ["click" if click else "view" for click in clicked]
    columns = {"user_id": users, "note_id": notes, "ts": pa.array(times, pa.int64()), "event": kinds}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    stored = open_events(tmp_path)
    assert isinstance(stored, ParquetEvents)
    assert len(stored) == len(users)

    rules = PairRules(ordered=ordered)
    first, second = related_pairs(stored, rules), related_pairs(load_events(tmp_path), rules)

    assert by_pair(first) == by_pair(second)
    assert first.ends() == second.ends()


def test_engines_leave_files_with_mistakes_to_those_who_can_name_them(tmp_path):
    columns = {"user_id": ["u", "v"], "note_id": ["a", "b"], "ts": [1, None], "event": ["click", "glance"]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    with pytest.raises(DataError, match="row 1: event must be one of"):
        open_events(tmp_path)

    pq.write_table(pa.table(columns | {"event": ["click", "save"]}), tmp_path / "events.parquet")
    assert open_events(tmp_path).untimed == 1
    pq.write_table(pa.table(columns | {"event": ["click", "save"], "ts": [1.0, 2.0]}), tmp_path / "events.parquet")
    assert isinstance(open_events(tmp_path), EventTable)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [(DuckDbEngine("much"), "memory 'much' is no size such as 4GB"), (DuckDbEngine("1MB"), "more room to spill")],
)
def test_resources_that_cannot_be_had_are_one_line(engine, reason):
    log = [(f"u{user}", f"n{number}", number, True) for user in range(20) for number in range(200)]
    with pytest.raises(ValueError, match=reason) as refused:
        related_pairs(table(log), engine=engine)
    assert "\n" not in str(refused.value)


def test_spark_reads_parquet_itself_with_the_same_pairs(spark, tmp_path):
    """Parts have times of different widths, and Spark would take the name of the folder for a pattern."""
    folder = tmp_path / "a [b] {c}*"
    for part, kind in (("dt=1", pa.int64()), ("dt=2", pa.uint16()), ("dt=3", pa.int32())):
        times = pa.array([1, 2, None], kind)
        columns = {"user_id": [part, part, "x"], "note_id": ["a", "b", "c"], "ts": times}
        (folder / "events" / part).mkdir(parents=True)
        pq.write_table(
            pa.table(columns | {"event": ["view", "like", "impression"]}), folder / "events" / part / "p.parquet"
        )
    stored = open_events(folder)
    assert isinstance(stored, ParquetEvents)

    assert by_pair(related_pairs(stored, engine=spark)) == {("a", "b"): (3.0, 3)}
    assert len(spark.open(f"file://{tmp_path}/*/events")) == 6


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"event": ["click", "glance"]}, "1 events have no user_id, no note_id, or an event that is none of view"),
        ({"user_id": ["u", ""]}, "1 events have no user_id"),
        ({"event": ["dismiss", "dismiss"]}, "there are no events"),
        ({"ts": [0.5, 1.5]}, "whole numbers ts: ts is missing or of another type"),
    ],
)
def test_spark_says_what_is_wrong_with_files_that_it_alone_reads(spark, tmp_path, changed, reason):
    columns = {"user_id": ["u", "u"], "note_id": ["a", "b"], "ts": [1, 2], "event": ["click", "click"]} | changed
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    with pytest.raises(DataError, match=reason) as refused:
        spark.open(f"file://{tmp_path}/events.parquet")
    assert "\n" not in str(refused.value)


def written(folder: Path) -> Path:
    """Notes, and events of which Spark reads a copy at another place."""
    ids = [f"n{number}" for number in range(6)]
    clicks = {"user_id": ["u"] * 6, "note_id": ids, "ts": range(6), "event": ["click"] * 6}
    pq.write_table(pa.table({"note_id": ids, "title": ["tea"] * 6}), folder / "notes.parquet")
    for place in (folder, folder / "elsewhere"):
        place.mkdir(exist_ok=True)
        pq.write_table(pa.table({name: list(column) for name, column in clicks.items()}), place / "events.parquet")
    return folder


def run(folder: Path, *options: str) -> tuple[int, str]:
    answer = CliRunner().invoke(pairs, [str(folder), "--out", str(folder / "pairs.parquet"), *options])
    assert "Traceback" not in answer.output
    return answer.exit_code, answer.output


def test_the_command_gives_the_same_file_with_both_engines(spark, tmp_path):
    folder, whole = written(tmp_path), ("--holdout", "0")
    assert run(folder, *whole)[0] == 0
    ours = pq.read_table(folder / "pairs.parquet")

    for options in (
        ["--engine", "spark"],
        ["--engine", "spark", "--events", f"file://{folder}/elsewhere/events.parquet"],
    ):
        assert run(folder, *whole, *options) == (0, f"15 pairs of 5 notes in {folder}/pairs.parquet\n")
        assert pq.read_table(folder / "pairs.parquet").equals(ours)
    status, said = run(folder, "--engine", "spark", "--events", "file:///nowhere")
    assert (status, said.count("\n")) == (1, 1)
    assert "Path does not exist" in said
    status, said = run(folder, "--engine", "spark", "--master", "nonsense")
    assert (status, said) == (1, "Error: a master is local[4], spark://host:7077, k8s://https://host:443 or yarn\n")


def test_an_error_of_java_is_the_line_that_caused_it():
    stack = "An error occurred while calling o7.x.\n: Outer: \n\tat a.b(c)\n"
    for text, line in (
        (stack + "Caused by: Middle\nCaused by: Inner: why\n\tat d", "Inner: why"),
        (stack, "Outer"),
        ("[PATH] gone.\nmore", "[PATH] gone."),
    ):
        assert reason(text) == line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--master", "local[2]"], "--master is of --engine spark"),
        (["--conf", "a=b"], "--conf is of --engine spark"),
        (["--events", "s3a://b/e"], "--events is of --engine spark"),
        (["--engine", "spark", "--memory", "2GB"], "--memory is of DuckDB; Spark's is --conf"),
        (["--engine", "spark", "--conf", "a"], "no property and value as in spark.executor.memory=8g"),
        (
            ["--engine", "spark", "--events", "s3a://b/e", "--test", "t", "--test-share", "0.1"],
            "reads the events of DATA",
        ),
    ],
)
def test_options_of_the_other_engine_are_one_line(tmp_path, options, reason):
    status, said = run(tmp_path, *options)
    assert status == 2
    assert reason in " ".join(said.split())


@pytest.mark.parametrize("home", ["", "/nowhere"])
def test_without_java_one_line_says_what_to_install(tmp_path, monkeypatch, home):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("JAVA_HOME", home)
    monkeypatch.setattr("pyspark.sql.SparkSession.getActiveSession", lambda: None)
    assert run(written(tmp_path), "--engine", "spark") == (
        1,
        f"Error: {JAVA}\n",
    )


def test_without_pyspark_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.delitem(sys.modules, "model.data.engines.spark_engine", raising=False)
    status, said = run(written(tmp_path), "--engine", "spark")
    assert (status, said) == (
        1,
        "Error: pyspark is not installed; this command needs: pip install 'notellm[spark]'\n",
    )
