"""The report of a reproduction: the paper's Tables 2 to 6 as Markdown, JSON and plots, from saved results alone.

Neither data nor models are needed, and no note's text is in it: ranks and answers hold every figure, and the intervals
are drawn from them anew. Figures are shares in 0..1 here and in the JSON, percent in the Markdown and in the plots.

Shapes: S seeds, P gold pairs, A asked notes.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.evaluate import ALL_PAIRS, MIN_USERS, supported_pairs
from model.metrics import bootstrap
from model.ranking import KS
from model.results import ANSWERS, PLAN, RANKS, read_result, write_bytes, write_json
from model.tables import markdown, percent
from model.variants import GENERATING, OURS

MARKDOWN, JSON = "report.md", "report.json"
SUPPORTED = supported_pairs(MIN_USERS)
TITLES = {
    2: "related notes, by method",
    3: "related notes, by exposure of the truth",
    4: "ablations",
    5: "data diversity: r, the share of a batch that writes hashtags",
    6: "α, the weight of the generation loss",
}
# Columns of generation: name of the figure, and how the tables call it.
FIGURES = {
    "accuracy": "Acc.",
    "illegal": "Ill.",
    "unconstrained_accuracy": "Acc., unconstrained",
    "unconstrained_illegal": "Ill., unconstrained",
    "bleu4": "BLEU4",
    "bleu4_public_code": "BLEU4 of the public code",
    "rouge1": "ROUGE1",
    "rouge2": "ROUGE2",
    "rouge_l": "ROUGEL",
    "f1": "F1@5",
}
# What the plots draw between the k of the tables.
_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
# Every colour keeps a contrast of at least 3 to white and to the black of dark pages, as the text's grey does.
INK = "#808080"
OURS_COLOUR = "#D55E00"
COLOURS = ("#2F7FC1", "#159A72", "#B5679B", "#A37B00", "#8A6BD1", "#1E8C9E", "#C25B5B", "#5E8C31", "#7F7F7F", "#9C6B4A")
_MARKERS = "osD^vPX<>*h"

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over seeds, its 95% interval by a bootstrap (None for a figure of all texts at once, as BLEU is), and the
    standard deviation over the seeds (None for one seed)."""

    mean: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None


Recall = Mapping[int, Figure]


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one table.

    ``recall``: Recall@k by set of gold pairs. ``buckets``: by exposure of the truth. ``lead``: how far NoteLLM is ahead
    of it, pair by pair, None for NoteLLM itself. All but the first are over the report's ``gold``. ``generation``:
    figures by name, see `FIGURES`; empty for a method without.
    """

    table: int
    label: str
    value: float | None
    seeds: int
    recall: Mapping[str, Recall]
    buckets: Mapping[str, Recall]
    lead: Recall | None
    curve: Recall
    generation: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown. ``gold`` names the set of pairs that tables are about unless they say otherwise;
    ``missing`` the rows, by table, whose runs are not all done; ``debias_weights`` b of each seed, if fitted."""

    statement: Mapping[str, Any]
    gold: str
    sets: Mapping[str, Mapping[str, int]]
    ks: tuple[int, ...]
    debias_weights: Sequence[float]
    rows: Sequence[Row]
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Gold:
    """The gold pairs: place of the target, number of users, and bucket of the truth, each of shape (P,)."""

    targets: NDArray[np.int64]
    users: NDArray[np.int64]
    buckets: dict[str, NDArray[np.bool_]]

    def sets(self) -> dict[str, NDArray[np.bool_]]:
        """The sets of pairs, the one to believe first; a set that would be empty is left out."""
        sets = {SUPPORTED: self.users >= MIN_USERS, ALL_PAIRS: np.ones(len(self.users), dtype=np.bool_)}
        return {name: inside for name, inside in sets.items() if inside.any()}


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the finished runs of a row found: ranks, shape (S, P), answers by figure, each (S, A), and figures of all
    texts at once by name, each (S,)."""

    ranks: NDArray[np.int64]
    answers: Mapping[str, Values]
    at_once: Mapping[str, Values]
    debias_weights: Sequence[float | None]

    def hits(self, k: int) -> Values:
        """Which truths are among the first k, shape (S, P)."""
        found_SP: NDArray[np.bool_] = self.ranks < k
        return found_SP.astype(np.float64)


def write_report(out: Path, ks: Sequence[int] = KS) -> Report:
    """Build the report of what is done in ``out`` and write report.md, report.json and the plots there.

    Raises:
        ValueError: if there is no plan in ``out``, or nothing of it is done.
    """
    report = build_report(out, ks)
    plots = draw(report)
    for name, svg in plots.items():
        write_bytes(out / name, svg)
    write_json(out / JSON, asdict(report))
    write_bytes(out / MARKDOWN, format_report(report, list(plots)).encode())
    return report


def build_report(out: Path, ks: Sequence[int] = KS) -> Report:
    """Every figure of the plan's finished runs. Raises ValueError as `write_report` does."""
    if not (out / PLAN).is_file():
        raise ValueError(f"{out}: no {PLAN} there; run `notellm reproduce --data DIR --out {out}` first")
    plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
    gold, tag_notes = _read_gold(out / plan["gold"]), plan["statement"]["tag_notes"]
    measure = _Figures(gold, tuple(k for k in ks if k < plan["statement"]["pool"]) or tuple(ks[:1]))
    ours = _measured(out, plan["ours"], "ranks", tag_notes)
    rows, missing = [], []
    for row in tqdm(plan["rows"], desc="report", unit="row", delay=1, disable=None):
        found = _measured(out, row["runs"], row["ranks"], tag_notes)
        done = 0 if found is None else len(found.ranks)
        if done < len(row["runs"]):
            missing.append(f"Table {row['table']}, {row['label']}: {done} of {len(row['runs'])} runs done")
        if found is not None:
            is_ours = (row["runs"], row["ranks"]) == (plan["ours"], "ranks")
            rows.append(measure.row(row, found, None if is_ours else ours))
    if not rows:
        raise ValueError(f"{out}: no run is done yet; run `notellm reproduce --data DIR --out {out}` again")
    sets = gold.sets()
    sizes = {
        name: {"pairs": int(inside.sum()), "targets": len(np.unique(gold.targets[inside]))}
        for name, inside in sets.items()
    }
    weights = [] if ours is None else [weight for weight in ours.debias_weights if weight is not None]
    return Report(plan["statement"], next(iter(sets)), sizes, measure.ks, weights, rows, missing)


class _Figures:
    """Makes the figures of a row. Rows that share their runs share the work."""

    def __init__(self, gold: _Gold, ks: tuple[int, ...]) -> None:
        self.ks = ks
        self._gold = gold
        self._sets = gold.sets()
        self._believed = next(iter(self._sets.values()))
        self._known: dict[str, Any] = {}

    def row(self, planned: Mapping[str, Any], found: _Measured, ours: _Measured | None) -> Row:
        """The row, with its distance to ``ours`` if that is another method's and done."""
        key = "+".join([planned["ranks"], *planned["runs"]])
        if key not in self._known:
            self._known[key] = self._measure(found, ours)
        return Row(planned["table"], planned["label"], planned["value"], len(found.ranks), **self._known[key])

    def _measure(self, found: _Measured, ours: _Measured | None) -> dict[str, Any]:
        believed = self._believed
        curve = sorted({k for k in _CURVE if k < self.ks[-1]} | set(self.ks))
        return {
            "recall": {name: self._recall(found.hits, inside, self.ks) for name, inside in self._sets.items()},
            "buckets": {
                name: self._recall(found.hits, believed & inside, self.ks)
                for name, inside in self._gold.buckets.items()
                if (believed & inside).any()
            },
            "lead": None if ours is None else self._recall(partial(_ahead, ours, found), believed, self.ks),
            "curve": self._recall(found.hits, believed, curve),
            "generation": {name: _figure(values) for name, values in found.answers.items()}
            | {name: Figure(float(values.mean()), spread=_spread(values)) for name, values in found.at_once.items()},
        }

    def _recall(self, hits: Callable[[int], Values], inside: NDArray[np.bool_], ks: Sequence[int]) -> dict[int, Figure]:
        return {k: _figure(hits(k)[:, inside], self._gold.targets[inside]) for k in ks}


def _ahead(ours: _Measured, other: _Measured, k: int) -> Values:
    """By how much we hit more, pair by pair, each side a mean over its seeds, shape (1, P)."""
    ahead_P: Values = ours.hits(k).mean(axis=0) - other.hits(k).mean(axis=0)
    return ahead_P[None]


def _figure(values: Values, groups: NDArray[np.int64] | None = None) -> Figure:
    """The mean of values, shape (S, n), with the interval of their means over the seeds."""
    interval = bootstrap(values.mean(axis=0), groups)
    return Figure(interval.mean, interval.low, interval.high, _spread(values.mean(axis=1)))


def _spread(means: Values) -> float | None:
    return float(means.std(ddof=1)) if len(means) > 1 else None


def _read_gold(path: Path) -> _Gold:
    arrays = _arrays(path)
    targets, users = arrays.pop("targets"), arrays.pop("users")
    return _Gold(targets, users, arrays)


def _measured(out: Path, runs: Sequence[str], ranks_name: str, tag_notes: int) -> _Measured | None:
    """What those runs that are done have found, None if none is.

    ``ranks_name`` is the array of their ranks. Answers to another number of notes than ``tag_notes`` are left out.
    """
    results = {out / "runs" / run: read_result(out / "runs" / run) for run in runs}
    done = {folder: result for folder, result in results.items() if result is not None}
    if not done:
        return None
    said = {
        folder: result.generation
        for folder, result in done.items()
        if result.generation is not None and result.generation["wanted"] == tag_notes
    }
    return _Measured(
        np.stack([_arrays(folder / RANKS)[ranks_name] for folder in done]),
        _stacked([_arrays(folder / ANSWERS) for folder in said]),
        _stacked([generation["at_once"] for generation in said.values()]),
        [result.debias_weight for result in done.values()],
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as saved:
        return dict(saved)


def _stacked(runs: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    return {
        name: np.stack([np.asarray(run[name], dtype=np.float64) for run in runs]) for name in (runs[0] if runs else ())
    }


def format_report(report: Report, plots: Sequence[str] = ()) -> str:
    """The report as Markdown; ``plots`` are names of files beside it."""
    parts = ["# Reproduction", _statement(report)]
    for table in sorted({row.table for row in report.rows}):
        rows = [row for row in report.rows if row.table == table]
        parts += [f"## Table {table}: {TITLES[table]}", *_tables(report, table, rows)]
        parts += [f"![{_PLOTS[name][1]}]({name})" for name in plots if _PLOTS[name][0] == table]
    if report.missing:
        parts += ["## Not there yet", "\n".join(f"- {line}" for line in report.missing)]
    return "\n\n".join(parts) + "\n"


def _tables(report: Report, table: int, rows: Sequence[Row]) -> Iterator[str]:
    if table == 3:
        yield from _bucket_tables(report, rows)
    # Table 2 alone shows every set of gold pairs; what changes from one to the other there does so everywhere.
    for name in report.sets if table == 2 else [report.gold]:
        yield f"Recall@k in percent, {name}:"
        yield markdown(["method", *(f"R@{k}" for k in report.ks)], [_line(row, row.recall[name]) for row in rows])
    if table in GENERATING and any(row.generation for row in rows):
        names = [name for name in FIGURES if any(name in row.generation for row in rows)]
        yield (
            f"Categories and hashtags in percent, of at most {report.statement['tag_notes']:,} held-out notes. Here "
            "popularity is the most frequent category and hashtags, TF-IDF the hashtags of the nearest notes:"
        )
        body = [[row.label, *(_cell(row.generation.get(name)) for name in names)] for row in rows if row.generation]
        yield markdown(["method", *(FIGURES[name] for name in names)], body)
    behind = [row for row in rows if row.lead is not None]
    if behind:
        yield f"{OURS}'s lead over each in points, paired, {report.gold}:"
        yield markdown(["over", *(f"R@{k}" for k in report.ks)], [_line(row, row.lead or {}) for row in behind])


def _bucket_tables(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    if report.debias_weights:
        weights = ", ".join(f"{weight:.4f}" for weight in report.debias_weights)
        yield (
            "Debias d: score = cosine - d * b * log(1 + exposure); b, fitted on training notes, is "
            f"{weights}{' by seed' if len(report.debias_weights) > 1 else ''}."
        )
    if not rows[0].buckets:
        yield "Every note has the same exposure here, so there are no buckets."
    for name in rows[0].buckets:
        yield f"Recall@k in percent, {report.gold} whose truth has {name}:"
        yield markdown(["method", *(f"R@{k}" for k in report.ks)], [_line(row, row.buckets[name]) for row in rows])


def _line(row: Row, recall: Recall) -> list[str]:
    return [row.label, *map(_cell, recall.values())]


def _cell(figure: Figure | None) -> str:
    """``84.0 (82.1 to 85.2) ± 0.3``: mean, 95% interval, standard deviation over seeds."""
    if figure is None:
        return "—"
    parts = [percent(figure.mean)]
    if figure.low is not None and figure.high is not None:
        parts.append(f"({percent(figure.low)} to {percent(figure.high)})")
    if figure.spread is not None:
        parts.append(f"± {percent(figure.spread)}")
    return " ".join(parts)


def _statement(report: Report) -> str:
    """What was measured, on what, and how to read it."""
    said = report.statement
    sets = "; ".join(f"{name}: {size['pairs']:,} of {size['targets']:,} targets" for name, size in report.sets.items())
    steps = f"{said['steps']:,} steps" if said["steps"] else "one pass over the pairs"
    seeds = ", ".join(map(str, said["seeds"]))
    lines = [
        f"Data: {said['data']}, {said['notes']:,} notes and {said['events']:,} events of {said['users']:,} users "
        f"(digest {said['digest']}). Split by note: {said['holdout']:.0%} held out, split seed {said['split_seed']}.",
        f"Training: recipe {said['recipe']} on {said['base_model']}, {steps} of {said['pairs_per_batch']} "
        f"{'ordered' if said['ordered'] else 'unordered'} pairs, drawn from {said['training_pairs']:,} with "
        f"{said['pairs_min_users']} users or more; seeds {seeds}.",
        f"Question: each truth's place among the {said['pool']:,} held-out notes. Gold, {sets}.",
        "In brackets: 95% intervals by a bootstrap over targets (over notes for categories and hashtags)."
        + (
            " Behind ±: the standard deviation over seeds; means and intervals are of all seeds."
            if len(said["seeds"]) > 1
            else ""
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)


def draw(report: Report) -> dict[str, bytes]:
    """The report's plots as SVG files by name; without the rows for it, a plot is left out."""
    return {
        name: plot(report, rows)
        for name, (table, _, plot) in _PLOTS.items()
        if (rows := [row for row in report.rows if row.table == table and (table != 3 or row.buckets)])
    }


def _recall_plot(report: Report, rows: Sequence[Row]) -> bytes:
    """Recall@k against k, a line a method, its intervals as bars."""
    with _figure_of(1, 9.5, 5.5) as (figure, [axes]):
        for place, row in enumerate(rows):
            _curve(axes, list(row.curve), list(row.curve.values()), _style(row, place))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="k (notes, log scale)", ylabel="Recall@k (%)", title=f"Recall@k, {report.gold}")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=INK)
        return _svg(figure)


def _exposure_plot(report: Report, rows: Sequence[Row]) -> bytes:
    """Recall by exposure of the truth, a group of bars a bucket."""
    k = _middle(report.ks)
    buckets = list(rows[0].buckets)
    width = 0.8 / len(rows)
    with _figure_of(1, 9.5, 4.5) as (figure, [axes]):
        for place, row in enumerate(rows):
            figures = [row.buckets[name][k] for name in buckets]
            heights = [100 * one.mean for one in figures]
            style = _style(row, place)
            axes.bar(
                [group + (place - (len(rows) - 1) / 2) * width for group in range(len(buckets))],
                heights,
                0.9 * width,
                yerr=_bars(figures),
                ecolor=INK,
                label=style["label"],
                color=(style["color"], 0.4),  # light, so that the interval shows on it
                edgecolor=style["color"],
            )
        axes.set_xticks(range(len(buckets)), buckets)
        axes.set(xlabel="exposure of the related note", ylabel=f"Recall@{k} (%)", title=f"Recall@{k} by exposure")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=INK)
        return _svg(figure)


def _sweep_plot(report: Report, rows: Sequence[Row], what: str) -> bytes:
    """Recall (left) and generation (right) against the value that a sweep varies, evenly spaced."""
    swept = [row for row in rows if row.value is not None]
    places, k = list(range(len(swept))), _middle(report.ks)
    with _figure_of(2, 10.5, 4.2) as (figure, [left, right]):
        style = {"color": OURS_COLOUR, "marker": "o", "label": f"Recall@{k}"}
        _curve(left, places, [row.recall[report.gold][k] for row in swept], style)
        left.set(ylabel=f"Recall@{k} (%)", title=f"Recall@{k}, {report.gold}")
        for place, name in enumerate(("accuracy", "unconstrained_illegal", "rouge1", "f1")):
            if all(name in row.generation for row in swept):
                style = {"color": COLOURS[place], "marker": _MARKERS[place], "label": FIGURES[name]}
                _curve(right, places, [row.generation[name] for row in swept], style)
        right.set(ylabel="share of notes, overlap (%)", title="Categories and hashtags")
        if right.lines:
            right.legend(frameon=False, labelcolor=INK)
        for axes in (left, right):
            axes.set_xticks(places, [row.label.partition("= ")[2] for row in swept])
            axes.set_xlabel(what)
        return _svg(figure)


# By file: the table that it belongs to, what it shows, and what draws it.
_PLOTS: dict[str, tuple[int, str, Callable[[Report, Sequence[Row]], bytes]]] = {
    "recall.svg": (2, "Recall against k", _recall_plot),
    "exposure.svg": (3, "Recall by exposure", _exposure_plot),
    "shares.svg": (
        5,
        "Recall and generation by r",
        partial(_sweep_plot, what="r (share of a batch that writes hashtags)"),
    ),
    "alphas.svg": (6, "Recall and generation by α", partial(_sweep_plot, what="α (weight of the generation loss)")),
}


def _style(row: Row, place: int) -> dict[str, Any]:
    if row.label == OURS:
        return {"color": OURS_COLOUR, "label": row.label, "marker": "o", "linewidth": 2.6, "zorder": 3}
    colour, marker = COLOURS[place % len(COLOURS)], _MARKERS[1 + place % (len(_MARKERS) - 1)]
    return {"color": colour, "label": row.label, "marker": marker, "linewidth": 1.2, "alpha": 0.9}


def _curve(axes: Any, places: Sequence[float], figures: Sequence[Figure], style: Mapping[str, Any]) -> None:
    heights = [100 * one.mean for one in figures]
    axes.errorbar(places, heights, yerr=_bars(figures), markersize=5, elinewidth=0.8, **style)


def _bars(figures: Sequence[Figure]) -> list[list[float]]:
    """How far each interval reaches down and up, in percent; a figure without one has no bar."""
    low = [100 * (one.mean - (one.mean if one.low is None else one.low)) for one in figures]
    high = [100 * ((one.mean if one.high is None else one.high) - one.mean) for one in figures]
    return [[max(0.0, length) for length in low], [max(0.0, length) for length in high]]


def _middle(ks: Sequence[int]) -> int:
    return ks[len(ks) // 2]


@contextmanager
def _figure_of(panels: int, width: float, height: float) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with so many panels side by side, drawn without a screen and for light and dark pages alike."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "notellm",  # the same figures give the same file
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(settings):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, [figure.add_subplot(1, panels, place + 1, facecolor="none") for place in range(panels)]


def _svg(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
