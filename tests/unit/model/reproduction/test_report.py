"""The report of saved results whose figures can be counted by hand."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.cooccurrence import PairRules
from model.evaluation.metrics import bootstrap, paired_bootstrap
from model.evaluation.plots import COLORS, INK, OURS_COLOR
from model.evaluation.report import ALL_PAIRS
from model.files import write_json
from model.reproduction.analysis import SUPPORTED, build_report
from model.reproduction.grid import COLD_START, CROSS_PLATFORM
from model.reproduction.report import JSON, MARKDOWN, format_report, write_report
from model.reproduction.results import ANSWERS, DEBIAS_WEIGHT, FORMAT, PLAN, RESULT, gold_file, ranks_file, write_arrays

PAIRS, TARGETS = 60, 20
STATEMENT = {
    "data": "sample",
    "digest": "abc",
    "notes": 300,
    "events": 5000,
    "users": 700,
    "categories": 3,
    "ordered": True,
    "holdout": 0.3,
    "split_seed": 0,
    "start": None,
    "whole_pool": False,
    "rules": asdict(PairRules(top=7, since=5)),
    "training_pairs": 123,
    "pairs_min_users": 2,
    "tag_notes": 10,
    "recipe": "small",
    "base_model": "minilm",
    "steps": 30,
    "epochs": 1,
    "pairs_per_batch": 8,
    "seeds": [0],
}
KS = (5, 30)


def ranks_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 89, PAIRS)


class Saved:
    """Results as a reproduction leaves them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: list[dict[str, Any]] = []
        self.targets = np.arange(PAIRS) % TARGETS
        self.users = 1 + np.arange(PAIRS) % 3
        self.low = np.arange(PAIRS) % 4 == 0
        self.write(STATEMENT)

    def write(self, statement: dict[str, Any]) -> None:
        buckets = {"low exposure": self.low, "high exposure": ~self.low}
        write_arrays(self.out / gold_file("main"), targets=self.targets, users=self.users, **buckets)
        few = slice(0, 12)
        write_arrays(self.out / gold_file("other"), targets=self.targets[few], users=self.users[few])
        pools = {"main": {"data": "sample", "notes": 91}, "other": {"data": "elsewhere", "notes": 40}}
        written = {"statement": statement, "pools": pools, "ours": ["ours-0"], "rows": self.rows}
        write_json(self.out / PLAN, {"format": FORMAT, **written})

    def plan(self, table: str, label: str, *runs: str, value: float | None = None, ranks: str = "ranks") -> None:
        pool = "other" if table == CROSS_PLATFORM else "main"
        row = {"table": table, "label": label, "value": value, "pool": pool, "ranks": ranks, "runs": list(runs)}
        self.rows.append(row)
        self.write(STATEMENT)

    def run(self, name: str, ranks: np.ndarray, right: np.ndarray | None = None, **other: np.ndarray) -> None:
        folder = self.out / "runs" / name
        generation = None
        if right is not None:
            write_arrays(folder / ANSWERS, accuracy=right, rouge1=right / 2)
            generation = {"wanted": 10, "means": {}, "at_once": {"bleu4": 0.25}}
        weight = {DEBIAS_WEIGHT: np.array([0.125])} if other else {}
        write_arrays(folder / ranks_file("main"), ranks=ranks, **other, **weight)
        write_arrays(folder / ranks_file("other"), ranks=ranks[:12] // 4)
        write_json(folder / RESULT, {"method": {}, "generation": generation})


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Popularity and NoteLLM in Table 2, NoteLLM alone with answers in Table 4."""
    saved = Saved(tmp_path)
    saved.plan("2", "popularity", "pop-0")
    saved.plan("2", "NoteLLM", "ours-0")
    saved.run("pop-0", ranks_of(0))
    saved.run("ours-0", ranks_of(1) // 2, right=np.array([1.0, 0, 1, 1]))
    return saved


def test_recall_is_counted_over_each_set_of_pairs_with_the_bootstraps_interval(saved):
    report = build_report(saved.out, KS)

    supported = saved.users >= 2
    assert report.pools["main"].gold == SUPPORTED
    assert report.pools["main"].sets[ALL_PAIRS] == {"pairs": PAIRS, "targets": TARGETS}
    assert report.pools["main"].sets[SUPPORTED]["pairs"] == supported.sum() == 40
    for row, ranks in zip(report.rows, (ranks_of(0), ranks_of(1) // 2), strict=True):
        for name, inside in ((ALL_PAIRS, np.full(PAIRS, True)), (SUPPORTED, supported)):
            for k in KS:
                hits = np.array([float(rank < k) for rank in ranks[inside]])
                expected = bootstrap(hits, saved.targets[inside])
                figure = row.recall[name][k]
                assert (figure.mean, figure.low, figure.high) == (expected.mean, expected.low, expected.high)
                assert figure.mean == pytest.approx(sum(hits) / len(hits))
                assert figure.spread is None


def test_a_lead_is_paired_and_noone_leads_himself(saved):
    popularity, ours = build_report(saved.out, KS).rows

    inside = saved.users >= 2
    expected = paired_bootstrap(
        ((ranks_of(1) // 2)[inside] < 5).astype(float), (ranks_of(0)[inside] < 5).astype(float), saved.targets[inside]
    )
    assert popularity.lead is not None
    assert (popularity.lead[5].mean, popularity.lead[5].low) == (expected.mean, expected.low)
    assert ours.lead is None


def test_buckets_count_the_pairs_whose_truth_is_inside(saved):
    popularity, _ = build_report(saved.out, KS).rows

    low = [
        rank < 30
        for rank, bucket, users in zip(ranks_of(0), saved.low, saved.users, strict=True)
        if bucket and users > 1
    ]
    assert popularity.buckets["low exposure"][30].mean == pytest.approx(sum(low) / len(low))


def test_the_average_is_over_the_ks(saved):
    popularity, _ = build_report(saved.out, KS).rows

    recalls = [popularity.recall[SUPPORTED][k].mean for k in KS]
    assert popularity.average.mean == pytest.approx(sum(recalls) / 2)
    assert popularity.average.low is not None
    assert "| R@5 | R@30 | Avg. |" in format_report(build_report(saved.out, KS))


def test_a_table_of_other_notes_has_their_pairs_and_its_own_leads(saved):
    saved.plan(CROSS_PLATFORM, "popularity", "pop-0")
    saved.plan(CROSS_PLATFORM, "NoteLLM", "ours-0")

    report = build_report(saved.out, KS)

    popularity, ours = report.rows[-2:]
    for row, ranks in ((popularity, ranks_of(0)), (ours, ranks_of(1) // 2)):
        assert row.recall[ALL_PAIRS][5].mean == pytest.approx(np.mean(ranks[:12] // 4 < 5))
    assert report.pools["other"].sets[ALL_PAIRS] == {"pairs": 12, "targets": 12}
    supported = saved.users[:12] >= 2
    lead = (ranks_of(1)[:12] // 2 // 4 < 5).astype(float) - (ranks_of(0)[:12] // 4 < 5)
    assert popularity.lead is not None
    assert popularity.lead[5].mean == pytest.approx(lead[supported].mean())
    text = format_report(report)
    assert "## Cross platform: related notes of another community" in text
    assert "elsewhere: each truth's place among 40 notes." in text


def test_the_cold_start_shows_buckets_of_clicks_and_table_3_those_of_exposure(saved):
    saved.plan("3", "NoteLLM", "ours-0")
    saved.plan(COLD_START, "NoteLLM", "ours-0")
    cold = saved.users == 2
    buckets = {"low exposure": saved.low, "1 or 2 clicks": cold, "10 clicks or more": ~cold}
    write_arrays(saved.out / gold_file("main"), targets=saved.targets, users=saved.users, **buckets)

    exposure, clicks = (row.sliced for row in build_report(saved.out, KS).rows[-2:])

    assert list(exposure) == ["low exposure"]
    assert list(clicks) == ["1 or 2 clicks", "10 clicks or more"]
    assert clicks["1 or 2 clicks"][5].mean == pytest.approx(np.mean((ranks_of(1) // 2)[cold] < 5))
    write_report(saved.out, KS)
    assert (saved.out / "clicks.svg").exists()
    assert f"whose truth has 1 or 2 clicks ({cold.sum()} pairs):" in (saved.out / MARKDOWN).read_text()


def test_a_report_of_an_earlier_version_says_what_to_do(saved):
    plan = json.loads((saved.out / PLAN).read_text())
    write_json(saved.out / PLAN, plan | {"format": 1})

    with pytest.raises(ValueError, match=r"of another version; run `notellm reproduce .* again"):
        build_report(saved.out, KS)


def test_debias_is_a_row_whose_loss_is_the_lead_over_it(saved):
    saved.plan("3", "NoteLLM", "ours-0")
    saved.plan("3", "NoteLLM, debias 1", "ours-0", ranks="debias-1")
    saved.run("ours-0", np.zeros(PAIRS, dtype=int), **{"debias-1": np.where(saved.users > 2, 0, 80)})

    report = build_report(saved.out, KS)
    plain, debiased = report.rows[-2:]

    assert (plain.recall[SUPPORTED][5].mean, debiased.recall[SUPPORTED][5].mean) == (1, 0.5)
    assert plain.lead is None
    assert debiased.lead is not None
    assert debiased.lead[5].mean == 0.5
    assert list(report.debias_weights) == [0.125]
    assert "is 0.1250." in format_report(report)


def test_several_seeds_give_a_mean_and_a_standard_deviation(saved):
    saved.plan("2", "w/o CSFT", "a-0", "a-1")
    saved.run("a-0", np.zeros(PAIRS, dtype=int))
    saved.run("a-1", np.where(np.arange(PAIRS) < 30, 0, 80))

    figure = build_report(saved.out, KS).rows[-1].recall[ALL_PAIRS][5]

    assert figure.mean == pytest.approx((1 + 0.5) / 2)
    assert figure.spread == pytest.approx(np.std([1, 0.5], ddof=1))
    assert "75.0 (" in (text := format_report(build_report(saved.out, KS)))
    assert "± 35.4" in text


def test_answers_become_figures_with_intervals_and_bleu_without(saved):
    saved.plan("4", "NoteLLM", "ours-0")

    generation = build_report(saved.out, KS).rows[-1].generation

    assert generation["accuracy"].mean == 0.75
    assert generation["accuracy"].low is not None
    assert (generation["bleu4"].mean, generation["bleu4"].low) == (0.25, None)


def test_answers_to_another_number_of_notes_are_not_shown(saved):
    saved.write(STATEMENT | {"tag_notes": 500})

    assert all(row.generation == {} for row in build_report(saved.out, KS).rows)


def test_a_k_as_large_as_the_pool_is_left_out(saved):
    assert build_report(saved.out, (5, 30, 90, 1000)).pools["main"].ks == (5, 30)


def test_pairs_of_single_users_are_all_there_is_where_nobody_agrees(saved):
    saved.users = np.ones(PAIRS, dtype=int)
    saved.write(STATEMENT)

    report = build_report(saved.out, KS)

    assert report.pools["main"].gold == ALL_PAIRS
    assert list(report.pools["main"].sets) == [ALL_PAIRS]


def test_rows_that_are_not_done_are_named_and_the_others_shown(saved):
    saved.plan("2", "PromptEOL+CSE", "eol-0")
    saved.plan("6", "α = 1", "pop-0", "alpha-1")

    report = build_report(saved.out, KS)

    assert report.missing == ["Table 2, PromptEOL+CSE: 0 of 1 runs done", "Table 6, α = 1: 1 of 2 runs done"]
    assert [row.label for row in report.rows] == ["popularity", "NoteLLM", "α = 1"]
    assert "PromptEOL+CSE: 0 of 1 runs done" in format_report(report)


def test_nothing_done_and_nothing_planned_are_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"no plan\.json there; run `notellm reproduce --data DIR"):
        build_report(tmp_path)
    Saved(tmp_path).plan("2", "popularity", "pop-0")
    with pytest.raises(ValueError, match="no run is done yet"):
        build_report(tmp_path)


def everything(saved: Saved) -> None:
    """A row or two in every table."""
    for table in ("3", "4", "5", "6"):
        saved.plan(table, "popularity", "pop-0")
    saved.plan("3", "NoteLLM", "ours-0")
    saved.plan("4", "NoteLLM", "ours-0")
    for table, sign in (("5", "r"), ("6", "α")):
        for value in (0.0, 0.4):
            saved.plan(table, f"{sign} = {value:g}", "ours-0", value=value)


def shares(value: object) -> list[float]:
    """Every number below the JSON's figures."""
    if isinstance(value, dict):
        return [share for inner in value.values() for share in shares(inner)]
    return [value] if isinstance(value, float) else []


def test_the_json_holds_every_figure_of_the_markdown(saved):
    everything(saved)
    write_report(saved.out, KS)

    saved_json = json.loads((saved.out / JSON).read_text())
    known = {
        f"{round(100 * share, 1) + 0.0:.1f}"
        for row in saved_json["rows"]
        for part in ("recall", "average", "buckets", "lead", "generation")
        for share in shares(row[part])
    }
    tables = [line for line in (saved.out / MARKDOWN).read_text().splitlines() if line.startswith("|")]
    shown = set(re.findall(r"-?\d+\.\d", " ".join(cell for line in tables for cell in line.split("|")[2:])))
    assert shown
    assert shown <= known


def test_every_table_of_the_markdown_is_even_and_has_its_rows(saved):
    everything(saved)

    text = format_report(build_report(saved.out, KS))

    for table in (2, 3, 4, 5, 6):
        section = text.split(f"## Table {table}:")[1].split("\n## ")[0]
        assert "| popularity |" in section
        for block in re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE):
            assert len({line.count("|") for line in block.strip().splitlines()}) == 1
    assert "| r = 0.4 |" in text
    assert "| α = 0.4 |" in text
    assert "Acc." in text.split("## Table 4:")[1]
    assert "low exposure" in text.split("## Table 3:")[1]


def test_the_statement_says_what_was_measured(saved):
    text = format_report(build_report(saved.out, KS))

    later = format_report(replace(build_report(saved.out, KS), statement=STATEMENT | {"start": 7, "whole_pool": True}))
    assert "first seen from 7 on" in later
    assert "among 91 notes, those of training too" in later
    centered = format_report(replace(build_report(saved.out, KS), statement=STATEMENT | {"centered": True}))
    assert "seeds 0. Every trained row is centered." in centered
    assert "centered" not in text
    for part in (
        "sample",
        "300 notes",
        "5,000 events",
        "30% held out",
        "recipe small on minilm",
        "30 steps",
        "123",
        "among 91 test notes",
        "t = 7, since 5.",
    ):
        assert part in text
    assert f"{SUPPORTED}: 40 of " in text


def test_plots_are_svg_with_titles_units_and_legible_colors(saved):
    everything(saved)
    write_report(saved.out, KS)

    plots = {path.name: path.read_text() for path in saved.out.glob("*.svg")}
    assert set(plots) == {"recall.svg", "exposure.svg", "shares.svg", "alphas.svg"}
    for text in plots.values():
        words = "".join(ElementTree.fromstring(text).itertext())  # noqa: S314 - our own file
        assert "(%)" in words
        assert "Recall@" in words
        assert "#000000" not in text
    assert "![Recall against k](recall.svg)" in (saved.out / MARKDOWN).read_text()


def test_the_same_results_give_the_same_files(saved):
    everything(saved)
    write_report(saved.out, KS)
    first = {path.name: path.read_bytes() for path in saved.out.iterdir() if path.is_file()}
    write_report(saved.out, KS)

    assert {path.name: path.read_bytes() for path in saved.out.iterdir() if path.is_file()} == first


def test_the_reliability_of_calibrated_runs_is_linked(saved):
    write_report(saved.out, KS)
    assert "Reliability" not in (saved.out / MARKDOWN).read_text()
    folder = saved.out / "runs" / "ours-1" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "reliability.md").write_text("# Reliability")

    write_report(saved.out, KS)

    [link] = re.findall(r"^- \[.*\]\((.*reliability\.md)\)$", (saved.out / MARKDOWN).read_text(), re.MULTILINE)
    assert (saved.out / link).read_text() == "# Reliability"


def test_without_exposure_there_are_no_buckets_and_no_plot_of_them(saved):
    everything(saved)
    write_arrays(saved.out / gold_file("main"), targets=saved.targets, users=saved.users)

    report = write_report(saved.out, KS)

    assert report.rows[0].buckets == {}
    assert "no buckets" in (saved.out / MARKDOWN).read_text()
    assert not (saved.out / "exposure.svg").exists()
    assert json.loads((saved.out / JSON).read_text()) == json.loads(json.dumps(asdict(report)))


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", [INK, OURS_COLOR, *COLORS])
@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_every_color_is_legible_on_light_and_dark_pages(color, page):
    light, dark = sorted((luminance(color), luminance(page)), reverse=True)

    assert (light + 0.05) / (dark + 0.05) >= 3
