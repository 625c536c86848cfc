"""The report by exported files: what is counted, and what somebody who decides by it reads."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.backup.events import ANSWER_SCHEMA, SCHEMA
from service.experiments.decision import decide
from service.experiments.figures import report_out
from service.experiments.report import fallen_guards, format_report, verdict
from service.experiments.results import Results, results_of
from service.store.experiments.records import Arm, Experiment

EXPERIMENT = Experiment("spread", (Arm("A", "old", {}), Arm("B", "new", {"diversity": 0.2})), ((0, 500),), 1767225600.0)
NOTES = tuple(f"n{number}" for number in range(20))
TAGS = ("harbor", "tram", "ferry", "tea", "bus")


class Log:
    """Answers and events, as the export writes them."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def answer(self, arm: str, reader: str, ids: Iterable[str] = NOTES[:2], **fields: Any) -> str:
        answer_id = f"a{len(self.answers)}"
        row = {"answer_id": answer_id, "ts": 1767225600_000000 + len(self.answers), "scenario": "related"}
        row |= {"model": "m", "ids": list(ids), "parameters": "", "reader": reader, "experiment": "spread", "arm": arm}
        self.answers.append(row | {"note_id": "", "category": "", "seconds": 0.01} | fields)
        return answer_id

    def event(self, answer_id: str, note_id: str, event: str) -> None:
        row = {"user_id": "name", "note_id": note_id, "event": event, "ts": 1767225600_000000, "answer_id": answer_id}
        self.events.append(row | {"event_id": f"e{len(self.events)}"})

    def results(self, folder: Path) -> Results:
        for below, rows, schema in (("_answers", self.answers, ANSWER_SCHEMA), (".", self.events, SCHEMA)):
            day = folder / below / "dt=2026-01-01"
            day.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows, schema), day / "part-000000000000001-000000.parquet")
        return results_of(EXPERIMENT, folder)


def community(*, clicks_b: float = 0.1, readers_b: int = 150, slower_b: float = 1.0, notes_b: int = 20) -> Log:
    """150 readers in each arm, with four lists of four notes each; those in A click a tenth of what they see."""
    log, chance = Log(), np.random.default_rng(3)
    for arm, count, rate, slower, notes in (("A", 150, 0.1, 1, 20), ("B", readers_b, clicks_b, slower_b, notes_b)):
        for reader in range(count):
            for _ in range(4):
                ids = chance.choice(NOTES[:notes], 4, replace=False)
                answer = log.answer(arm, f"{arm}{reader}", ids, seconds=slower * chance.uniform(0.01, 0.02))
                for id_ in ids:
                    log.event(answer, id_, "click" if chance.random() < rate else "impression")
    return log


def with_writers(made: Callable[[], Log], accepted_b: float) -> Log:
    """100 writers in each arm are suggested five hashtags twice; those in A accept half of them."""
    log, chance = made(), np.random.default_rng(5)
    for arm, rate in (("A", 0.5), ("B", accepted_b)):
        for writer in range(100):
            for _ in range(2):
                answer = log.answer(arm, f"{arm}{writer}", TAGS, scenario="tags")
                accepted = [tag for tag in TAGS if chance.random() < rate]
                log.answer("", f"{arm}{writer}", accepted, scenario="written", answer_id=answer, experiment="")
    return log


def test_an_item_counts_once_for_the_reader_who_was_answered(tmp_path):
    log = Log()
    first, second = log.answer("A", "a"), log.answer("A", "a", ids=())
    other = log.answer("A", "zoe", NOTES[:1], experiment="another")
    log.answer("A", "", NOTES[:1])
    log.answers.append(log.answers[0])  # an acknowledgment was lost
    for event in ("impression", "impression", "click", "like"):
        log.event(first, "n0", event)
    log.event(first, "n1", "impression")
    log.event(first, "n1", "view")
    log.event(other, "n0", "click")
    log.answer("B", "b", ["code"], scenario="failed", seconds=0.5)

    results = log.results(tmp_path)

    arm, failed = results.arms
    assert (arm.readers, arm.answers, arm.notes, results.has_impressions) == (1, 2, 2, True)
    assert (arm.clicks.successes.tolist(), arm.clicks.trials.tolist()) == ([1], [2])
    assert (arm.empty.successes.tolist(), arm.empty.trials.tolist()) == ([1], [2])
    assert arm.seconds.successes.tolist() == pytest.approx([0.02])
    assert (failed.failed.successes.tolist(), failed.failed.trials.tolist(), failed.seconds.readers) == ([1], [1], 0)
    assert second != first


def test_without_impressions_every_item_of_a_list_was_shown(tmp_path):
    log = Log()
    log.event(log.answer("A", "a", NOTES[:5]), "n0", "click")
    log.answer("A", "b", NOTES[:3])

    results = log.results(tmp_path)

    assert not results.has_impressions
    assert sorted(results.arms[0].clicks.trials.tolist()) == [3, 5]
    assert results.arms[0].clicks.rate == 1 / 8


def test_hashtags_are_accepted_when_the_last_write_that_named_the_answer_has_them_however_spelled(tmp_path):
    log = Log()
    answer = log.answer("B", "b", ["Kyoto", "bus", "tea"], scenario="tags")
    for ts, written in ((1, ["bus"]), (2, ["kyoto", "TEA", "own"])):
        log.answer("", "b", written, scenario="written", answer_id=answer, ts=ts, experiment="")
    log.answer("B", "b", ["never"], scenario="tags")

    accepted = log.results(tmp_path).arms[1].accepted

    assert (accepted.successes.tolist(), accepted.trials.tolist()) == ([2], [3])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Log, "Nothing to say yet"),
        (partial(community, readers_b=5), "Do not trust these figures"),
        (community, "No difference so far: B gets between"),
        (partial(community, clicks_b=0.16), "B is better: it gets"),
        (partial(community, clicks_b=0.04), "B is worse: it gets"),
        (partial(community, clicks_b=0.16, slower_b=2.0), "But its lists take at least"),
    ],
    ids=["nothing", "broken", "none", "better", "worse", "slow"],
)
def test_the_verdict_comes_first_and_says_what_to_think(made, said, tmp_path):
    results = made().results(tmp_path)

    assert said in verdict(EXPERIMENT, results)
    assert format_report(EXPERIMENT, results).startswith(f"**{verdict(EXPERIMENT, results)}**")


@pytest.mark.parametrize(
    ("made", "after_days", "done"),
    [
        (partial(community, clicks_b=0.16), 1, "ship"),
        (partial(community, clicks_b=0.16), 99, "ship"),
        (partial(community, clicks_b=0.16, slower_b=2.0), 1, "take back"),
        (partial(community, clicks_b=0.16, notes_b=10), 1, "take back"),
        (partial(community, clicks_b=0.04), 1, "take back"),
        (partial(community, slower_b=2.0), 1, "take back"),
        (partial(community, readers_b=50), 1, "take back"),
        (partial(with_writers, partial(community, clicks_b=0.16), 0.25), 1, "take back"),
        (partial(with_writers, partial(community, clicks_b=0.16), 0.5), 1, "ship"),
        (partial(with_writers, community, 0.25), 1, "take back"),
        (community, 1, "wait"),
        (partial(community, notes_b=10), 1, "wait"),
        (community, 15, "take back"),
        (Log, 1, "wait"),
    ],
    ids=[
        *("better", "late", "slow", "narrow", "worse", "harm", "broken"),
        *("fewer hashtags", "as many hashtags", "fewer hashtags alone"),
        *("none", "narrow-yet", "over", "nothing"),
    ],
)
def test_what_surely_is_better_and_does_no_harm_is_shipped_and_nothing_else(made, after_days, done, tmp_path):
    decided = decide(EXPERIMENT, made().results(tmp_path), EXPERIMENT.started_at + after_days * 86_400, 14)

    assert decided.do == done
    assert verdict(EXPERIMENT, results_of(EXPERIMENT, tmp_path)) in decided.why


def test_the_figures_that_are_drawn_are_those_of_the_log_and_the_words_those_of_the_report(tmp_path):
    log = community(clicks_b=0.16, slower_b=2.0)
    clicks = Counter(event["answer_id"] for event in log.events if event["event"] == "click")
    arms = {name: [one for one in log.answers if one["arm"] == name] for name in "AB"}

    told = report_out(EXPERIMENT, results := log.results(tmp_path), 1767312000.5)

    assert (told.made, told.until) == ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z")
    assert (told.finding, told.verdict) == ("better", verdict(EXPERIMENT, results))
    for arm in told.arms:
        clicked = sum(clicks[one["answer_id"]] for one in arms[arm.name])
        assert (arm.readers, arm.answers, arm.shown, arm.clicked) == (150, 600, 2400, clicked)
        assert arm.ctr.low < arm.ctr.value == clicked / 2400 < arm.ctr.high
        assert arm.acceptance is None
    low, high = told.clicks.low, told.clicks.high
    assert f"it gets {low:.1%} to {high:.1%} more clicks" in told.verdict
    assert told.split.holds
    assert {guard.name: guard.says for guard in told.guards if guard.says} == {
        "seconds": f"its lists take at least {told.guards[2].low:.0%} longer"
    }
    assert [guard.first for guard in told.guards] == [0.0, 0.0, pytest.approx(0.015, rel=0.1), 20]


def test_each_day_has_the_clicks_of_its_own_lists_also_where_nobody_reports_impressions(tmp_path):
    log = Log()
    for day, arm, clicked in ((0, "A", 1), (0, "B", 0), (1, "A", 3), (1, "A", 0)):
        answer = log.answer(arm, f"{arm}{day}{clicked}", NOTES[:4], ts=(20454 + day) * 86_400_000_000)
        for note in NOTES[:clicked]:
            log.event(answer, note, "click")

    days = report_out(EXPERIMENT, log.results(tmp_path), 0.0).days

    shares = [(day.day, day.first.value, day.second and day.second.value) for day in days]
    assert shares == [("2026-01-01", 1 / 4, 0), ("2026-01-02", 3 / 8, None)]
    assert (days[0].first.low, days[1].first.low) == (None, 0)  # of one reader, and of two who differ


def test_guards_fall_for_an_arm_that_fails_is_empty_or_shows_always_the_same(tmp_path):
    log = community()
    for reader in range(50):
        log.answer("B", f"B{reader}", ["store_unavailable"], scenario="failed")
        log.answer("B", f"B{reader}", [])
    assert fallen_guards(log.results(tmp_path / "one")) == ["it fails more often", "more of its lists are empty"]

    writers = with_writers(community, 0.25)
    assert fallen_guards(writers.results(tmp_path / "three")) == ["fewer of its hashtags are accepted"]
    narrow = community(notes_b=10)
    assert fallen_guards(narrow.results(tmp_path / "two")) == ["its lists reach 50% fewer notes"]


def test_a_folder_without_answers_and_one_of_other_files_are_mistakes(tmp_path):
    with pytest.raises(ValueError, match="holds no answers"):
        results_of(EXPERIMENT, tmp_path)
    part = tmp_path / "_answers" / "dt=2026-01-01" / "part-1-0.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"no file of theirs")
    with pytest.raises(ValueError, match="are none of `notellm events export`"):
        results_of(EXPERIMENT, tmp_path)
