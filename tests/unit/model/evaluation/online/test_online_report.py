"""A log counted by hand, and intervals held to readers who click alike."""

import json
import shutil
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from model.data.files import DataError
from model.evaluation.metrics import Figure
from model.evaluation.online.ratio import Rate, rate
from model.evaluation.online.reach import Reach, reach
from model.evaluation.online.report import format_online, online_report
from model.evaluation.online.unseen import News, Unseen
from model.network.checkpoint import MANIFEST
from service.backup.events import ANSWER_SCHEMA, SCHEMA
from service.cli.main import cli
from service.settings import MINI

DAY_S = 86_400
NOW_S = 20_000 * DAY_S  # 2024-10-04
IDS = {name: f"{number:016x}.{letter}.model-{one}" for number, (name, letter, one) in enumerate(
    [("related", "r", "A"), ("search", "s", "A"), ("other", "r", "B"), ("tags", "t", "A"), ("lost", "r", "A")]
)}  # fmt: skip


def event(kind: str, answer: str, note: str, reader: str = "u1", position: int | None = None, at_s: float = NOW_S):
    id_ = IDS.get(answer)
    names = ("user_id", "note_id", "event", "ts", "event_id", "answer_id", "position")
    return dict(zip(names, (reader, note, kind, int(at_s * 1e6), "e", id_, position), strict=True))


def answer(name: str, model: str, ids: list[str], scenario: str = "related", **more: str):
    row = dict.fromkeys(ANSWER_SCHEMA.names, "") | {
        "seconds": 0.01,
        "answer_id": IDS[name],
        "ts": int(NOW_S * 1e6),
        "model": model,
    }
    return row | {"scenario": scenario, "ids": ids, "reader": "u1"} | more


EVENTS = [
    # Shown to u1: n1 clicked (twice), n2 not; to u2: n1 not. A click that no impression came with counts as shown.
    event("impression", "related", "n1", position=1),
    event("click", "related", "n1"),
    event("like", "related", "n1"),
    event("impression", "related", "n2", position=2),
    event("impression", "related", "n2", position=2),
    event("impression", "search", "n1", "u2"),
    event("save", "search", "n3", "u2"),
    event("impression", "other", "n1", "u3"),
    event("dismiss", "other", "n1", "u3"),
    event("impression", "lost", "n4", "u3", 3),
    event("impression", "tags", "w1", "u1", 1),
    event("click", "none", "n1", "u9"),
    *(event("view", "none", "n4", f"v{number}") for number in range(12)),
]
ANSWERS = [
    answer("related", "model-A-whole", ["n1", "n2"]),
    answer("related", "model-A-whole", ["n1", "n2"]),  # an export may hold it twice
    answer("search", "model-A-whole", ["n3", "n1"], "search"),
    answer("other", "model-B-whole", ["n1"], experiment="hot", arm="B"),
    answer("tags", "model-A-whole", ["Kyoto", "ramen", "tram"], "tags"),
    answer("tags", "model-A-whole", ["Trams", "other"], "written", note_id="w1"),
    answer("tags", "model-A-whole", ["kyoto", "ramen", "sea"], "written", note_id="w1") | {"ts": int(NOW_S * 1e6) + 1},
]


def write(folder: Path, events=EVENTS, answers=ANSWERS, notes: bool = True) -> Path:
    for rows, schema, place in ((events, SCHEMA, "events"), (answers, ANSWER_SCHEMA, "events/_answers")):
        day = folder / place / "dt=2024-10-04"
        day.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema), day / "part-000000000000001-000000.parquet")
    if notes:
        created = {"n1": "2024-10-03T12:00:00Z", "n2": "2024-10-01T00:00:00+02:00", "n3": None, "n4": None, "n5": None}
        lines = [json.dumps({"note_id": one, "title": one, "created_at": at}) for one, at in created.items()]
        (folder / "notes.jsonl").write_text("\n".join(lines))
    return folder


def counted(found: dict[str, Rate]) -> dict[str, tuple[int, int, int]]:
    return {name: (one.shown, one.clicks, one.readers) for name, one in found.items()}


def test_every_table_is_what_is_counted_by_hand(tmp_path):
    report = online_report(write(tmp_path))

    assert {name: counted(found) for name, found in report.rates.items()} == {
        "scenario": {"related": (4, 1, 2), "search": (2, 1, 1)},
        # The answer that is not in the log has no more of its model than its own id.
        "model": {"model-A": (1, 0, 1), "model-A-whole": (4, 2, 2), "model-B-whole": (1, 0, 1)},
        "arm": {"hot B": (1, 0, 1)},
        "position": {"1": (3, 2, 3), "2": (2, 0, 2), "3": (1, 0, 1)},
        "exposure": {"0 to 10": (5, 2, 3), "10 to 100": (1, 0, 1)},
        "age": {"0 to 1": (3, 1, 3), "1 to 7": (1, 0, 1)},
        "day": {"2024-10-04": (6, 2, 3)},
    }
    [(model, suggested)] = report.suggested.items()
    assert (model, suggested.answers, suggested.hashtags, suggested.shown) == ("model-A-whole", 1, 3, 1)
    assert (suggested.accepted.shown, suggested.accepted.clicks) == (3, 2)
    assert report.answers == 4
    assert report.reach == Reach(5, 0.6, pytest.approx(_gini([3, 1, 1, 0, 0])), 0, 0.0)


def test_positions_come_from_the_answer_where_events_name_none(tmp_path):
    events = [event("impression", "search", "n1", "u2"), event("impression", "related", "n9")]

    assert counted(online_report(write(tmp_path, events)).rates["position"]) == {"2": (1, 0, 1)}


def with_news(folder: Path) -> Path:
    """Ten notes, each first seen a day after the one before; the last two carry what is new."""
    write(folder, [event("view", "none", f"n{number}", "u1", at_s=NOW_S + number * DAY_S) for number in range(10)])
    rows = [{"note_id": f"n{number}", "hashtags": ["Kyoto", "tram"], "category": "Travel"} for number in range(8)]
    rows += [
        {"note_id": "n8", "hashtags": ["kyoto", "Harbor", "ferry"], "category": "Boats"},
        {"note_id": "n9", "hashtags": ["#harbor", "tram"], "category": "Travel"},
        {"note_id": "unseen", "hashtags": ["nobody"], "category": "None"},
    ]
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_what_is_new_in_the_newest_notes_is_named_with_its_share(tmp_path):
    report = online_report(with_news(tmp_path))

    assert report.news == News(Unseen(2, 0.6, ["harbor", "ferry"]), Unseen(1, 0.5, ["Boats"]))
    assert "| hashtags | 2 | 60.00 | harbor, ferry |" in " ".join(format_online(report).split(" ")).replace("  ", " ")


def test_to_a_model_is_new_what_it_was_not_trained_on(tmp_path):
    data, turn = with_news(tmp_path / "data"), tmp_path / "turns" / "turn-0001"
    (turn / "checkpoint").mkdir(parents=True)
    shutil.copy(MINI / MANIFEST, turn / "checkpoint")  # of a closed set with Travel, and without Boats
    assert online_report(data, checkpoint=turn / "checkpoint").news.hashtags.most == ["harbor", "ferry"]

    (turn / "data").mkdir()
    note = {"note_id": "n8", "title": "", "hashtags": ["kyoto", "ferry"], "category": "Boats"}
    (turn / "data" / "notes.jsonl").write_text(json.dumps(note))
    news = online_report(data, checkpoint=turn / "checkpoint").news

    assert news.encode() == {
        "hashtags": {"new": 2, "share": 0.6, "most": ["harbor", "tram"]},
        "categories": {"new": 1, "share": 0.5, "most": ["Boats"]},
    }


def test_without_times_or_notes_nothing_is_said_of_what_is_new(tmp_path):
    assert online_report(write(tmp_path / "one")).news is None  # all at one moment
    assert online_report(write(tmp_path / "two", notes=False)).news is None


def test_a_later_start_leaves_out_what_was_before(tmp_path):
    early = [event("impression", "other", "n2", "u5", 2, NOW_S - DAY_S)]

    assert online_report(write(tmp_path, EVENTS + early), NOW_S - 1).rates["day"].keys() == {"2024-10-04"}
    with_early = online_report(tmp_path).rates["day"]
    assert counted(with_early) == {"2024-10-03": (1, 0, 1), "2024-10-04": (6, 2, 3)}


def test_without_notes_and_without_answers_there_is_less(tmp_path):
    report = online_report(write(tmp_path, answers=[], notes=False) / "events")

    assert report.rates["age"] == report.rates["arm"] == {}
    assert counted(report.rates["model"]) == {"model-A": (5, 2, 3), "model-B": (1, 0, 1)}
    assert (report.reach, report.suggested) == (None, {})


def test_the_command_prints_tables_draws_and_says_what_is_wrong(tmp_path):
    plot = tmp_path / "ctr.svg"
    run = CliRunner().invoke(cli, ["report", "--data", str(write(tmp_path / "d")), "--plot", str(plot)])

    assert run.exit_code == 0, run.output
    assert "| related | 4 | 1 | 2 | 25.00 (0.00 to" in run.output
    assert b"By position" in plot.read_bytes()
    wrong = CliRunner().invoke(cli, ["report", "--data", str(tmp_path)])
    assert (wrong.exit_code, len(wrong.output.strip().splitlines())) == (1, 1)
    (tmp_path / "x").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x" / "events.parquet")
    with pytest.raises(DataError, match="none of `notellm events export`"):
        online_report(tmp_path / "x")


def test_intervals_hold_the_truth_where_a_readers_items_go_together():
    """Readers who click all or nothing: items alone would give intervals of a third of the width."""
    rng = np.random.default_rng(0)
    held, widths = Counter(), []
    for _ in range(400):
        items = rng.integers(1, 20, 300).astype(float)
        clicks = items * (rng.random(300) < 0.3)
        sums = (clicks @ clicks, clicks @ items, items @ items)
        found = rate(items.sum(), clicks.sum(), 300, *sums)
        held[found.share.low <= 0.3 <= found.share.high] += 1
        widths.append(found.share.high - found.share.low)
        by_items = 2 * 1.96 * np.sqrt(0.3 * 0.7 / items.sum())

    assert held[True] >= 0.93 * 400
    assert np.mean(widths) > 2.5 * by_items


def test_one_reader_alone_has_no_interval():
    assert rate(4, 1, 1, 1, 4, 16).share == Figure(0.25)


def _gini(times: list[int]) -> float:
    """By its definition: half of the relative mean difference."""
    differences = sum(abs(a - b) for a in times for b in times)
    return differences / (2 * len(times) * sum(times))


@pytest.mark.parametrize(("times", "notes"), [([3, 1, 1], 5), ([2, 2, 2], 3), ([9], 4), ([1, 2, 3, 50], 40)])
def test_reach_is_coverage_and_gini_by_their_definitions(times, notes):
    found = reach(np.array([*times, 0]), notes)

    assert found.coverage == len(times) / notes
    assert found.gini == pytest.approx(_gini([*times, *[0] * (notes - len(times))]))


def test_hubs_stand_more_than_two_deviations_above_the_mean():
    found = reach(np.array([1] * 99 + [101]), 100)

    assert (found.hubs, found.hub_share) == (1, 101 / 200)
    assert reach(np.zeros(0, dtype=np.int64), 7) is None


def test_the_report_says_shares_in_percent(tmp_path):
    text = format_online(online_report(write(tmp_path)))

    assert "| model-A-whole | 1 | 3 | 1 | 3 | 66.67 |" in text
    assert "| 5 | 60.0 | 0.560 | 0 | 0.0 |" in text


def test_the_report_says_of_which_time_it_is(tmp_path):
    later = answer("other", "model-B-whole", ["n1"]) | {"ts": int((NOW_S + DAY_S + 3600) * 1e6)}

    text = format_online(online_report(write(tmp_path / "some", answers=[*ANSWERS, later])))

    assert text.startswith("5 answers in the log, from 2024-10-04 00:00 to 2024-10-05 01:00 UTC.")
    assert format_online(online_report(write(tmp_path / "none", answers=[]))).startswith("0 answers in the log.")


def test_figures_of_reach_are_plain_numbers_for_json():
    found = reach(np.array([3, 1, 1], dtype=np.int64), 5)
    assert found
    assert {type(value) for value in astuple(found)} == {int, float}
