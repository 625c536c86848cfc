"""Plots of reports as SVG, in percent."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from model.evaluation.reliability_plot import COLORS, INK, MARKERS, OURS_COLOR, bars, curve, panels_of, svg
from model.reproduction.analysis import FIGURES, Report, Row
from model.reproduction.grid import OURS


def draw(report: Report) -> dict[str, bytes]:
    """The report's plots as SVG files by name; without the rows for it, a plot is left out."""
    return {
        name: plot(report, rows)
        for name, (table, _, plot) in PLOTS.items()
        if (rows := [row for row in report.rows if row.table == table and (table != 3 or row.buckets)])
    }


def _recall_plot(report: Report, rows: Sequence[Row]) -> bytes:
    """Recall@k against k, a line a method, its intervals as bars."""
    with panels_of(1, 9.5, 5.5) as (figure, [axes]):
        for place, row in enumerate(rows):
            curve(axes, list(row.curve), list(row.curve.values()), _style(row, place))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="k (notes, log scale)", ylabel="Recall@k (%)", title=f"Recall@k, {report.gold}")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=INK)
        return svg(figure)


def _exposure_plot(report: Report, rows: Sequence[Row]) -> bytes:
    """Recall by exposure of the truth, a group of bars a bucket."""
    k = _middle(report.ks)
    buckets = list(rows[0].buckets)
    width = 0.8 / len(rows)
    with panels_of(1, 9.5, 4.5) as (figure, [axes]):
        for place, row in enumerate(rows):
            figures = [row.buckets[name][k] for name in buckets]
            heights = [100 * one.mean for one in figures]
            style = _style(row, place)
            axes.bar(
                [group + (place - (len(rows) - 1) / 2) * width for group in range(len(buckets))],
                heights,
                0.9 * width,
                yerr=bars(figures),
                ecolor=INK,
                label=style["label"],
                color=(style["color"], 0.4),  # light, so that the interval shows on it
                edgecolor=style["color"],
            )
        axes.set_xticks(range(len(buckets)), buckets)
        axes.set(xlabel="exposure of the related note", ylabel=f"Recall@{k} (%)", title=f"Recall@{k} by exposure")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=INK)
        return svg(figure)


def _sweep_plot(report: Report, rows: Sequence[Row], what: str) -> bytes:
    """Recall (left) and generation (right) against the value that a sweep varies, evenly spaced."""
    swept = [row for row in rows if row.value is not None]
    places, k = list(range(len(swept))), _middle(report.ks)
    with panels_of(2, 10.5, 4.2) as (figure, [left, right]):
        style = {"color": OURS_COLOR, "marker": "o", "label": f"Recall@{k}"}
        curve(left, places, [row.recall[report.gold][k] for row in swept], style)
        left.set(ylabel=f"Recall@{k} (%)", title=f"Recall@{k}, {report.gold}")
        for place, name in enumerate(("accuracy", "unconstrained_illegal", "rouge1", "f1")):
            if all(name in row.generation for row in swept):
                style = {"color": COLORS[place], "marker": MARKERS[place], "label": FIGURES[name]}
                curve(right, places, [row.generation[name] for row in swept], style)
        right.set(ylabel="share of notes, overlap (%)", title="Categories and hashtags")
        if right.lines:
            right.legend(frameon=False, labelcolor=INK)
        for axes in (left, right):
            axes.set_xticks(places, [row.label.partition("= ")[2] for row in swept])
            axes.set_xlabel(what)
        return svg(figure)


# By file: the table that it belongs to, what it shows, and what draws it.
PLOTS: dict[str, tuple[int, str, Callable[[Report, Sequence[Row]], bytes]]] = {
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
        return {"color": OURS_COLOR, "label": row.label, "marker": "o", "linewidth": 2.6, "zorder": 3}
    color, marker = COLORS[place % len(COLORS)], MARKERS[1 + place % (len(MARKERS) - 1)]
    return {"color": color, "label": row.label, "marker": marker, "linewidth": 1.2, "alpha": 0.9}


def _middle(ks: Sequence[int]) -> int:
    return ks[len(ks) // 2]
