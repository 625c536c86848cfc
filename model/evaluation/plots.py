"""Plots of figures with their intervals as SVG, readable on light and on dark pages; one of scores against truth."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from model.evaluation.metrics import Bin, Figure

# Every color keeps a contrast of at least 3 to white and to the black of dark pages, as the text's gray does.
INK = "#808080"
OURS_COLOR = "#D55E00"
COLORS = ("#2F7FC1", "#159A72", "#B5679B", "#A37B00", "#8A6BD1", "#1E8C9E", "#C25B5B", "#5E8C31", "#7F7F7F", "#9C6B4A")
MARKERS = "osD^vPX<>*h"


def draw_reliability(panels: Mapping[str, Mapping[str, Sequence[Bin]]]) -> bytes:
    """How often scores were right against the scores, a panel and its lines by name; the diagonal is exact.

    Bars are 95% intervals (Wilson's).
    """
    with panels_of(len(panels), 5.2 * len(panels), 4.6) as (canvas, subplots):
        for axes, (title, lines) in zip(subplots, panels.items(), strict=True):
            axes.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1, label="exact")
            for place, (name, bins) in enumerate(lines.items()):
                color = OURS_COLOR if place == len(lines) - 1 else COLORS[place]
                style = {"color": color, "marker": MARKERS[place], "label": name}
                draw_curve(axes, [100 * one.score for one in bins], [_share(one) for one in bins], style)
            axes.set(xlabel="score (%)", ylabel="right (%)", title=title, xlim=(0, 100), ylim=(0, 100))
            axes.legend(frameon=False, labelcolor=INK)
        return svg(canvas)


def _share(one: Bin) -> Figure:
    z, n = 1.96, one.count
    middle = (one.right + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt(one.right * (1 - one.right) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Figure(one.right, middle - reach, middle + reach)


def draw_curve(axes: Any, places: Sequence[float], figures: Sequence[Figure], style: Mapping[str, Any]) -> None:
    """Draw figures in percent as a line, their intervals as bars."""
    heights = [100 * one.mean for one in figures]
    axes.errorbar(places, heights, yerr=bars(figures), markersize=5, elinewidth=0.8, **style)


def bars(figures: Sequence[Figure]) -> list[list[float]]:
    """How far each interval reaches down and up, in percent; a figure without one has no bar."""
    low = [100 * (one.mean - (one.mean if one.low is None else one.low)) for one in figures]
    high = [100 * ((one.mean if one.high is None else one.high) - one.mean) for one in figures]
    return [[max(0.0, length) for length in low], [max(0.0, length) for length in high]]


@contextmanager
def panels_of(panels: int, width: float, height: float) -> Iterator[tuple[Any, list[Any]]]:
    """A canvas with so many panels side by side, drawn without a screen."""
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
        canvas = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas, [canvas.add_subplot(1, panels, place + 1, facecolor="none") for place in range(panels)]


def svg(canvas: Any) -> bytes:
    """The canvas as a file's content."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
