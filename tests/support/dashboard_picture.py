"""Draws the dashboard for the documentation: its own queries, answered by a Prometheus that watched the demo at work.

    make dashboard-picture

The panels stand where Grafana would put them; what is drawn are the answers. Takes about four minutes.
"""

import io
import itertools
import json
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from support.prometheus import DEPLOY, Prometheus
from support.service import Service, running
from support.watched import targets

from model.data.samples.generate import sample_notes
from service.settings import MINI

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "notellm.json"
OUT = DEPLOY.parent / "docs" / "dashboard.png"
SECONDS = 180
IMPORT_S, STOP_S, GO_ON_S = (60, 110, 125)  # when many notes come at once, and when a shard is held up
STEP_S = 2
RATE_INTERVAL = "20s"
WIDTH_IN, CELL_IN, DPI = 16.0, 0.32, 90
COLORS = 96
MAX_BYTES = 400_000
PAGE, PANEL, INK, FAINT = "#111217", "#181b1f", "#d0d0d8", "#2c3038"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#37872d", "#8ab8ff", "#fade2a")
RAMPS = {"bytes": (1024, ("B", "KiB", "MiB", "GiB")), "short": (1000, ("", "k", "M"))}


def busy(service: Service, ends: threading.Event) -> None:
    """What readers and authors do: related notes all the time, drafts, a note a second, mistakes, one import."""
    notes = sample_notes()
    texts = (f"{one.title}, and {other.title}" for one, other in itertools.product(notes, reversed(notes)))
    began, imported = time.monotonic(), False
    with httpx.Client(base_url=service.api, timeout=30, trust_env=False) as http:
        for number in itertools.count():
            if ends.is_set():
                return
            http.put(f"/notes/live-{number}", json={"title": next(texts)})
            if not imported and time.monotonic() - began > IMPORT_S:
                imported = True
                http.post("/notes", json=[{"note_id": f"bulk-{copy}", "title": next(texts)} for copy in range(100)])
            for place in range(8):
                http.get(f"/notes/live-{max(0, number - 5 - place)}/related")
            if number % 3 == 0:
                http.post("/notes/tags", json={"title": next(texts)})
            if number % 7 == 0:
                http.get("/notes/nobody-wrote-this")
            ends.wait(0.5)


def watch(prometheus: Prometheus, service: Service) -> None:
    """Three minutes of it, in which one shard is held up for a while."""
    ends = threading.Event()
    users = threading.Thread(target=busy, args=(service, ends))
    users.start()
    shard = service.children()["indexer"]
    try:
        time.sleep(STOP_S)
        os.kill(shard, signal.SIGSTOP)
        time.sleep(GO_ON_S - STOP_S)
        os.kill(shard, signal.SIGCONT)
        time.sleep(SECONDS - GO_ON_S)
    finally:
        os.kill(shard, signal.SIGCONT)
        ends.set()
        users.join()


def draw(prometheus: Prometheus) -> bytes:
    """The whole dashboard as a PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    style: Any = {"font.size": 8, "text.color": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK}
    with rc_context(style):
        figure = Figure(figsize=(WIDTH_IN, rows * CELL_IN), facecolor=PAGE)
        FigureCanvasAgg(figure)
        for panel in panels:
            at = panel["gridPos"]
            corner = at["x"] / 24, 1 - (at["y"] + at["h"]) / rows
            size = at["w"] / 24, at["h"] / rows
            if panel["type"] == "row":
                figure.text(corner[0] + 0.006, corner[1] + 0.3 * size[1], panel["title"], fontsize=10, weight="bold")
                continue
            _card(figure, corner, size)
            series = list(answers(prometheus, panel))
            unit = panel["fieldConfig"]["defaults"]["unit"]
            if panel["type"] == "stat":
                value = _last(series)
                colour = _colour(value, panel["fieldConfig"]["defaults"]["thresholds"]["steps"])
                _tile(figure, corner, size, panel["title"], figure_of(value, unit), colour)
            else:
                inner = corner[0] + 0.038, corner[1] + 0.26 * size[1], size[0] - 0.052, 0.60 * size[1]
                _graph(figure.add_axes(inner, facecolor=PANEL), panel, series, unit)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAGE)
    return buffer.getvalue()


def answers(prometheus: Prometheus, panel: dict[str, Any]) -> Iterator[tuple[str, list[float], list[float]]]:
    """Legend, times and values of every series of a panel."""
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        for found in prometheus.query_range(expression, SECONDS, STEP_S):
            legend = target["legendFormat"]
            for label, value in found["metric"].items():
                legend = legend.replace(f"{{{{{label}}}}}", value)
            times, values = zip(*((float(at), float(value)) for at, value in found["values"]), strict=True)
            yield legend, list(times), list(values)


def figure_of(value: float, unit: str) -> str:
    """As a person reads it: 1.2 s, 3.4 MiB, 0.05%."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    if unit in ("reqps", "ops"):
        return f"{value:.3g}/s"
    step, names = RAMPS[unit]
    power = min(len(names) - 1, int(math.log(value, step))) if value >= 1 else 0
    return f"{value / step**power:.3g} {names[power]}".strip()


def _colour(value: float, steps: list[dict[str, Any]]) -> str:
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}[reached[-1]]


def _last(series: list[tuple[str, list[float], list[float]]]) -> float:
    return series[0][2][-1] if series else math.nan


def _card(figure: Any, corner: tuple[float, float], size: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    gap_x, gap_y = 0.002, 0.0012
    place, extent = (corner[0] + gap_x, corner[1] + gap_y), (size[0] - 2 * gap_x, size[1] - 2 * gap_y)
    figure.add_artist(Rectangle(place, *extent, facecolor=PANEL, edgecolor=FAINT, linewidth=0.8, zorder=-1))


def _tile(
    figure: Any, corner: tuple[float, float], size: tuple[float, float], title: str, value: str, colour: str
) -> None:
    figure.text(corner[0] + 0.008, corner[1] + 0.72 * size[1], title, fontsize=9)
    middle = corner[0] + size[0] / 2, corner[1] + 0.22 * size[1]
    figure.text(*middle, value, fontsize=22, ha="center", color=colour)


def _graph(axes: Any, panel: dict[str, Any], series: list[tuple[str, list[float], list[float]]], unit: str) -> None:
    axes.set_title(panel["title"], loc="left", fontsize=9, color=INK)
    defaults = panel["fieldConfig"]["defaults"]
    series = sorted(series, key=lambda one: -sum(value for value in one[2] if not math.isnan(value)))
    base: dict[float, float] = {}
    end = max((times[-1] for _, times, _ in series), default=0.0)
    for colour, (legend, times, values) in zip(itertools.cycle(COLOURS), series, strict=False):
        if defaults["custom"]["stacking"]["mode"] == "normal":
            low = [base.get(at, 0.0) for at in times]
            values = [below + (0.0 if math.isnan(value) else value) for below, value in zip(low, values, strict=True)]
            base |= zip(times, values, strict=True)
            axes.fill_between([at - end for at in times], low, values, color=colour, alpha=0.25, linewidth=0)
        axes.plot([at - end for at in times], values, color=colour, linewidth=1.2, label=legend)
    axes.set_xlim(-SECONDS, 0)
    axes.set_ylim(0, defaults.get("max", 0) * 1.08 or max(1e-9, axes.get_ylim()[1]))
    axes.set_xticks(range(-SECONDS, 1, 60), [f"{second // 60} min" for second in range(-SECONDS, 0, 60)] + ["now"])
    axes.yaxis.set_major_locator(_few())
    axes.yaxis.set_major_formatter(lambda value, _: figure_of(value, unit))
    axes.grid(color=FAINT, linewidth=0.6)
    axes.tick_params(labelsize=7, length=0)
    under = {"loc": "upper center", "bbox_to_anchor": (0.48, -0.1)}
    axes.legend(**under, ncols=3, fontsize=6, frameon=False, labelcolor=INK, columnspacing=1, handlelength=1)
    axes.spines[:].set_visible(False)


def _few() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def main() -> None:
    """Watch, then draw."""
    with tempfile.TemporaryDirectory() as folder, running(Service(Path(folder), MINI)) as service:
        prometheus = Prometheus(Path(folder) / "prometheus", targets(service))
        try:
            prometheus.start()
            watch(prometheus, service)
            picture = Image.open(io.BytesIO(draw(prometheus))).convert("RGB")
        finally:
            prometheus.stop()
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(OUT, optimize=True)
    assert OUT.stat().st_size < MAX_BYTES
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
