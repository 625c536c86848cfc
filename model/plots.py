"""Plots of reports as SVG, in percent, readable on light and on dark pages."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from model.findings import FIGURES, Figure, Report, Row
from model.metrics import Bin
from model.variants import OURS

# Every colour keeps a contrast of at least 3 to white and to the black of dark pages, as the text's grey does.
INK = "#808080"
OURS_COLOUR = "#D55E00"
COLOURS = ("#2F7FC1", "#159A72", "#B5679B", "#A37B00", "#8A6BD1", "#1E8C9E", "#C25B5B", "#5E8C31", "#7F7F7F", "#9C6B4A")
_MARKERS = "osD^vPX<>*h"


def draw(report: Report) -> dict[str, bytes]:
    """The report's plots as SVG files by name; without the rows for it, a plot is left out."""
    return {
        name: plot(report, rows)
        for name, (table, _, plot) in PLOTS.items()
        if (rows := [row for row in report.rows if row.table == table and (table != 3 or row.buckets)])
    }


def draw_reliability(panels: Mapping[str, Mapping[str, Sequence[Bin]]]) -> bytes:
    """How often scores were right against what they said, a panel and its lines by name; the diagonal is exact.

    Bars are 95% intervals (Wilson's).
    """
    with _figure_of(len(panels), 5.2 * len(panels), 4.6) as (figure, subplots):
        for axes, (title, lines) in zip(subplots, panels.items(), strict=True):
            axes.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1, label="exact")
            for place, (name, bins) in enumerate(lines.items()):
                colour = OURS_COLOUR if place == len(lines) - 1 else COLOURS[place]
                style = {"color": colour, "marker": _MARKERS[place], "label": name}
                _curve(axes, [100 * one.score for one in bins], [_share(one) for one in bins], style)
            axes.set(xlabel="score (%)", ylabel="right (%)", title=title, xlim=(0, 100), ylim=(0, 100))
            axes.legend(frameon=False, labelcolor=INK)
        return _svg(figure)


def _share(one: Bin) -> Figure:
    z, n = 1.96, one.count
    middle = (one.right + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt(one.right * (1 - one.right) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Figure(one.right, middle - reach, middle + reach)


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
