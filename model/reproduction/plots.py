"""The plots of a report as SVG, in percent."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from model.evaluation.plots import COLORS, INK, MARKERS, OURS_COLOR, bars, draw_curve, panels_of, svg
from model.reproduction.analysis import FIGURES, Ranked, Report, Row
from model.reproduction.grid import ALPHA, COLD_START, CROSS_PLATFORM, EXPOSURE, METHODS, OURS, SHARE


def draw(report: Report) -> dict[str, bytes]:
    """The report's plots as SVG files by name; without the rows for it, a plot is left out."""
    return {
        name: plot(report.pools[rows[0].pool], rows)
        for name, (table, _, plot) in PLOTS.items()
        if (rows := [row for row in report.rows if row.table == table and (row.sliced or table not in _SLICED)])
    }


def _draw_recall(pool: Ranked, rows: Sequence[Row]) -> bytes:
    """Recall@k against k, a line a method."""
    with panels_of(1, 9.5, 5.5) as (canvas, [axes]):
        for place, row in enumerate(rows):
            draw_curve(axes, list(row.curve), list(row.curve.values()), _style(row, place))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="k (notes, log scale)", ylabel="Recall@k (%)", title=f"Recall@k, {pool.gold}")
        _legend_right(axes)
        return svg(canvas)


def _draw_buckets(pool: Ranked, rows: Sequence[Row], by: str) -> bytes:
    """Recall by exposure or clicks of the truth, a group of bars a bucket."""
    k, buckets, width = _middle(pool.ks), list(rows[0].sliced), 0.8 / len(rows)
    with panels_of(1, 9.5, 4.5) as (canvas, [axes]):
        for place, row in enumerate(rows):
            figures, style = [row.sliced[name][k] for name in buckets], _style(row, place)
            axes.bar(
                [group + (place - (len(rows) - 1) / 2) * width for group in range(len(buckets))],
                [100 * one.mean for one in figures],
                0.9 * width,
                yerr=bars(figures),
                ecolor=INK,
                label=style["label"],
                color=(style["color"], 0.4),  # light, so that the interval shows on it
                edgecolor=style["color"],
            )
        axes.set_xticks(range(len(buckets)), buckets)
        axes.set(xlabel=f"{by} of the related note", ylabel=f"Recall@{k} (%)", title=f"Recall@{k} by {by}")
        _legend_right(axes)
        return svg(canvas)


def _draw_sweep(pool: Ranked, rows: Sequence[Row], swept: str) -> bytes:
    """Recall (left) and generation (right) against the swept value, evenly spaced."""
    rows, k = [row for row in rows if row.value is not None], _middle(pool.ks)
    places = list(range(len(rows)))
    with panels_of(2, 10.5, 4.2) as (canvas, [left, right]):
        style = {"color": OURS_COLOR, "marker": "o", "label": f"Recall@{k}"}
        draw_curve(left, places, [row.recall[pool.gold][k] for row in rows], style)
        left.set(ylabel=f"Recall@{k} (%)", title=f"Recall@{k}, {pool.gold}")
        for place, name in enumerate(("accuracy", "unconstrained_illegal", "rouge1", "f1")):
            if all(name in row.generation for row in rows):
                style = {"color": COLORS[place], "marker": MARKERS[place], "label": FIGURES[name]}
                draw_curve(right, places, [row.generation[name] for row in rows], style)
        right.set(ylabel="share of notes, overlap (%)", title="Categories and hashtags")
        if right.lines:
            right.legend(frameon=False, labelcolor=INK)
        for axes in (left, right):
            axes.set_xticks(places, [row.label.partition("= ")[2] for row in rows])
            axes.set_xlabel(swept)
        return svg(canvas)


_R, _ALPHA = "r (share of a batch that writes hashtags)", "α (weight of the generation loss)"
# By file: its table, its description, and the function that draws it.
PLOTS: dict[str, tuple[str, str, Callable[[Ranked, Sequence[Row]], bytes]]] = {
    "recall.svg": (METHODS, "Recall against k", _draw_recall),
    "exposure.svg": (EXPOSURE, "Recall by exposure", partial(_draw_buckets, by="exposure")),
    "shares.svg": (SHARE, "Recall and generation by r", partial(_draw_sweep, swept=_R)),
    "alphas.svg": (ALPHA, "Recall and generation by α", partial(_draw_sweep, swept=_ALPHA)),
    "clicks.svg": (COLD_START, "Recall by clicks", partial(_draw_buckets, by="clicks")),
    "cross-platform.svg": (CROSS_PLATFORM, "Recall against k on the other notes", _draw_recall),
}
_SLICED = (EXPOSURE, COLD_START)  # nothing to draw where no bucket holds a truth


def _style(row: Row, place: int) -> dict[str, Any]:
    if row.label == OURS:
        return {"color": OURS_COLOR, "label": row.label, "marker": "o", "linewidth": 2.6, "zorder": 3}
    color, marker = COLORS[place % len(COLORS)], MARKERS[1 + place % (len(MARKERS) - 1)]
    return {"color": color, "label": row.label, "marker": marker, "linewidth": 1.2, "alpha": 0.9}


def _legend_right(axes: Any) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=INK)


def _middle(ks: Sequence[int]) -> int:
    return ks[len(ks) // 2]
