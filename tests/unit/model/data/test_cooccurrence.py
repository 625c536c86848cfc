"""Eq. 1 against the sum written out over users, and the split that keeps training and evaluation apart."""

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.cooccurrence import PairRules, Resources, related_pairs, split_notes, training_pairs
from model.data.events import EventTable, load_events
from model.data.files import DataError
from model.data.pairs import Pairs
from model.data.parquet_events import ParquetEvents, open_events
from model.note import Note

Event = tuple[str, str, int, bool]  # user, note, time, clicked


def table(events: list[Event], untimed: int = 0) -> EventTable:
    users, notes, times, clicked = zip(*events, strict=True) if events else ((), (), (), ())
    user_ids, note_ids = sorted(set(users)), list(dict.fromkeys(notes))
    return EventTable(
        np.array([user_ids.index(user) for user in users], dtype=np.int32),
        np.array([note_ids.index(note) for note in notes], dtype=np.int32),
        np.array(times, dtype=np.int64),
        np.array(clicked, dtype=np.bool_),
        tuple(note_ids),
        len(user_ids),
        untimed,
    )


def written_out(events: list[Event], ordered: bool) -> dict[tuple[str, str], tuple[Fraction, int]]:
    """Score and users of every pair as eq. 1 reads, user by user, in exact fractions."""
    scores: dict[tuple[str, str], tuple[Fraction, int]] = {}
    for user in {event[0] for event in events}:
        own = [event for event in events if event[0] == user]
        clicks = len({note for _, note, _, clicked in own if clicked})
        found = {
            (a, b)
            for _, a, viewed_at, _ in own
            for _, b, clicked_at, clicked in own
            if clicked and a != b and (viewed_at < clicked_at or not ordered)
        }
        for pair in found:
            score, users = scores.get(pair, (Fraction(0), 0))
            scores[pair] = score + Fraction(1, clicks), users + 1
    return scores


def by_pair(pairs: Pairs) -> dict[tuple[str, str], tuple[float, int]]:
    figures = zip(pairs.scores.tolist(), pairs.users.tolist(), strict=True)
    return dict(zip(pairs.ends(), figures, strict=True))


LOGS = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcdef"), st.integers(0, 6), st.booleans()),
    max_size=40,
)


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


def test_a_view_before_a_click_relates_in_that_direction_only():
    log: list[Event] = [("u", "a", 1, False), ("u", "b", 2, True)]

    assert by_pair(related_pairs(table(log))) == {("a", "b"): (1.0, 1)}


def test_events_at_the_same_time_relate_in_neither_direction():
    log: list[Event] = [("u", "a", 1, True), ("u", "b", 1, True)]

    assert len(related_pairs(table(log))) == 0
    assert set(related_pairs(table(log), PairRules(ordered=False)).ends()) == {("a", "b"), ("b", "a")}


def test_a_user_counts_once_however_often_they_come_back():
    log: list[Event] = [("u", "a", 1, True), ("u", "b", 2, True), ("u", "a", 3, False), ("u", "b", 4, True)]

    assert by_pair(related_pairs(table(log))) == {("a", "b"): (0.5, 1)}


def test_scores_out_of_bounds_are_dropped_before_the_best_are_taken():
    """The note of the highest score is everywhere; with it gone, the next two are the top two."""
    log: list[Event] = []
    for note, users in (("everywhere", 5), ("often", 3), ("at times", 2), ("once", 1)):
        for user in range(users):
            log += [(f"{note}{user}", "a", 1, False), (f"{note}{user}", note, 2, True)]

    pairs = related_pairs(table(log), PairRules(upper=4, lower=1.5, top=2))

    assert by_pair(pairs) == {("a", "often"): (3.0, 3), ("a", "at times"): (2.0, 2)}


def test_both_bounds_are_inclusive_even_where_floats_would_pass_them():
    """180 sixths are 30 exactly, and 1/6 is not a finite number of binary or decimal places."""
    extra = [f"x{number}" for number in range(5)]
    log: list[Event] = []
    for user in range(180):
        log += [(f"u{user}", "a", 1, False), *((f"u{user}", note, 2, True) for note in ["b", *extra])]

    assert by_pair(related_pairs(table(log), PairRules(upper=30, lower=30)))[("a", "b")] == (30.0, 180)


def test_ties_go_to_the_smaller_id():
    log: list[Event] = [("u", "z", 1, False), *(("u", note, 2, True) for note in ("c", "a", "b"))]

    assert related_pairs(table(log), PairRules(top=2)).ends() == [("z", "a"), ("z", "b")]


def test_pairs_stand_by_note_and_best_first():
    log: list[Event] = [
        ("u", "z", 1, False), ("u", "a", 2, True), ("u", "b", 2, True),
        ("v", "z", 1, False), ("v", "b", 2, True), ("v", "y", 3, True),
    ]  # fmt: skip

    assert related_pairs(table(log)).ends() == [("b", "y"), ("z", "b"), ("z", "a"), ("z", "y")]


def test_a_set_of_notes_limits_the_pairs_but_not_how_active_a_user_was():
    log: list[Event] = [("u", note, time, True) for time, note in enumerate("abcd")]

    assert by_pair(related_pairs(table(log), within={"a", "c"})) == {("a", "c"): (0.25, 1)}


def test_notes_outside_the_set_do_not_take_the_best_places():
    log: list[Event] = [("u", "a", 1, False), ("u", "b", 2, True), ("v", "a", 1, False), ("v", "b", 2, True)]
    log += [("w", "a", 1, False), ("w", "c", 2, True)]

    assert related_pairs(table(log), PairRules(top=1), within={"a", "c"}).ends() == [("a", "c")]


def test_overactive_users_are_skipped_and_counted():
    log: list[Event] = [("u", note, time, True) for time, note in enumerate("abcd")]
    log += [("v", "a", 1, True), ("v", "b", 2, True)]

    pairs = related_pairs(table(log), PairRules(max_clicks=3))

    assert by_pair(pairs) == {("a", "b"): (0.5, 1)}
    assert pairs.skipped_users == 1


def test_an_event_without_time_needs_unordered_pairs():
    log: list[Event] = [("u", "a", 0, True), ("u", "b", 0, True)]

    with pytest.raises(ValueError, match="2 of 2 events have no ts"):
        related_pairs(table(log, untimed=2))
    assert len(related_pairs(table(log, untimed=2), PairRules(ordered=False))) == 2


def test_the_split_holds_out_its_share():
    ids = [f"n{number}" for number in range(10_000)]

    # Four standard deviations of a binomial: 0.3 of 10,000 draws.
    assert abs(len(split_notes(ids, 0.3)) - 3000) < 4 * (10_000 * 0.3 * 0.7) ** 0.5
    assert split_notes(ids, 0.0) == frozenset()
    assert split_notes(ids, 1.0) == frozenset(ids)


def test_the_split_of_a_note_depends_on_no_other_note():
    ids = [f"n{number}" for number in range(500)]

    assert split_notes(ids[:100]) == split_notes(ids) & set(ids[:100])
    assert split_notes(reversed(ids)) == split_notes(ids)


def test_a_larger_holdout_holds_the_smaller_one():
    ids = [f"n{number}" for number in range(500)]

    assert split_notes(ids, 0.1) < split_notes(ids, 0.3)


def test_another_seed_is_another_split():
    ids = [f"n{number}" for number in range(500)]

    assert split_notes(ids, seed=0) != split_notes(ids, seed=1)


@pytest.mark.parametrize("holdout", [-0.1, 1.1, float("nan")])
def test_a_holdout_that_is_no_share_is_refused(holdout):
    with pytest.raises(ValueError, match="holdout must be within"):
        split_notes(["a"], holdout)


def test_of_the_views_without_a_click_the_last_ones_count():
    views = [("u", name, time, False) for time, name in enumerate("abcd")]
    log = [*views, ("u", "x", 9, True), ("u", "a", 10, False)]

    assert set(related_pairs(table(log), PairRules(max_views=2)).ends()) == {("a", "x"), ("d", "x")}
    assert set(related_pairs(table(log), PairRules(max_views=0, ordered=False)).ends()) == set()


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


def test_duckdb_leaves_files_with_mistakes_to_those_who_can_name_them(tmp_path):
    columns = {"user_id": ["u", "v"], "note_id": ["a", "b"], "ts": [1, None], "event": ["click", "glance"]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    with pytest.raises(DataError, match="row 1: event must be one of"):
        open_events(tmp_path)

    pq.write_table(pa.table(columns | {"event": ["click", "save"]}), tmp_path / "events.parquet")
    assert open_events(tmp_path).untimed == 1
    pq.write_table(pa.table(columns | {"event": ["click", "save"], "ts": [1.0, 2.0]}), tmp_path / "events.parquet")
    assert isinstance(open_events(tmp_path), EventTable)


@pytest.mark.parametrize(
    ("resources", "reason"),
    [(Resources("much"), "memory 'much' is no size such as 4GB"), (Resources("1MB"), "more room to spill")],
)
def test_resources_that_cannot_be_had_are_one_line(resources, reason):
    log = [(f"u{user}", f"n{number}", number, True) for user in range(20) for number in range(200)]
    with pytest.raises(ValueError, match=reason) as refused:
        related_pairs(table(log), resources=resources)
    assert "\n" not in str(refused.value)


def test_training_pairs_touch_no_held_out_and_no_blank_note():
    ids = [f"n{number:02}" for number in range(30)]
    notes = [Note(note_id, title="" if number == 7 else "x") for number, note_id in enumerate(ids)]
    log: list[Event] = [("u", note_id, time, True) for time, note_id in enumerate(ids)]

    ends = training_pairs(notes, table(log), holdout=0.5, seed=3).ends()

    used = {note_id for pair in ends for note_id in pair}
    assert used == set(ids) - split_notes(ids, 0.5, 3) - {"n07"}
