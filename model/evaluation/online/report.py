"""The report of a log: tables and a picture of what readers did with what was shown to them."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from model.evaluation.metrics import Figure
from model.evaluation.online.hashtags import Suggested, suggested
from model.evaluation.online.rates import DIMENSIONS, rates
from model.evaluation.online.ratio import Rate
from model.evaluation.online.reach import Reach, reach
from model.evaluation.online.shown import open_log
from model.evaluation.online.unseen import News, news_of
from model.evaluation.plots import COLORS, INK, OURS_COLOR, draw_curve, panels_of, svg
from model.evaluation.tables import markdown, percent

_TITLES = {
    "scenario": "By scenario",
    "model": "By model",
    "arm": "By arm of an experiment",
    "position": "By position",
    "exposure": "By how often the note was shown (Table 3's buckets are of the same)",
    "age": "By age of the note in days",
    "day": "By day",
}
_DRAWN = ("position", "exposure", "age", "day")
_TICKS = 8  # of a panel, at most

_TIMES = """
SELECT count(*) AS times FROM (SELECT unnest(ids) AS note_id FROM answers WHERE scenario IN ('related', 'search'))
GROUP BY note_id
"""
_CATALOG = "SELECT count(*) FROM {}"


@dataclass(frozen=True, slots=True)
class OnlineReport:
    """Rates by dimension and value, the suggestions of each model, the reach of lists, what is new in the notes.

    ``first`` and ``last``: when the first and the last of the answers were given (UTC); None without any.
    """

    answers: int
    first: datetime | None
    last: datetime | None
    rates: dict[str, dict[str, Rate]]
    suggested: dict[str, Suggested]
    reach: Reach | None
    catalog: str
    news: News | None


def online_report(
    folder: Path, since_s: float = 0.0, memory: str = "1GB", checkpoint: Path | None = None
) -> OnlineReport:
    """Of a folder's log; see `open_log` and, for what is new to the model of ``checkpoint``, `news_of`."""
    with open_log(folder, since_s, memory) as log:
        [(answers, first, last)] = log.connection.execute(
            "SELECT count(*), make_timestamp(min(ts)), make_timestamp(max(ts)) FROM answers "
            "WHERE scenario NOT IN ('written', 'failed')"
        ).fetchall()
        times = log.connection.execute(_TIMES).fetchnumpy()["times"]
        table = "notes" if log.has_notes else "exposure"
        [(notes,)] = log.connection.execute(_CATALOG.format(table)).fetchall()
        by = {dimension: rates(log, dimension) for dimension in DIMENSIONS}
        catalog = "the notes of the folder" if log.has_notes else "the notes that stand in a list or in an event"
        news = news_of(folder, checkpoint)
        return OnlineReport(answers, first, last, by, suggested(log), reach(times, notes), catalog, news)


def format_online(report: OnlineReport) -> str:
    """The report as Markdown, shares in percent with their 95% intervals."""
    between = f", from {report.first:%Y-%m-%d %H:%M} to {report.last:%Y-%m-%d %H:%M} UTC" if report.answers else ""
    parts = [f"{report.answers:,} answers in the log{between}."]
    for dimension, found in report.rates.items():
        if found:
            header = [dimension, "shown", "clicked", "readers", "CTR"]
            body = [
                [name, f"{one.shown:,}", f"{one.clicks:,}", f"{one.readers:,}", _share(one.share)]
                for name, one in found.items()
            ]
            parts.append(f"{_TITLES[dimension]}\n\n{markdown(header, body)}")
    if report.suggested:
        parts.append(f"Hashtags suggested to writers\n\n{_hashtags(report.suggested)}")
    if report.reach:
        parts.append(f"Reach of the lists, among {report.catalog}\n\n{_reach(report.reach)}")
    if report.news:
        parts.append(f"New in the fifth of the notes that was seen last\n\n{_news(report.news)}")
    return "\n\n".join(parts)


def _news(found: News) -> str:
    header = ["", "new", "share of all that they carry, %", "most frequent"]
    kinds = {"hashtags": found.hashtags, "categories": found.categories}
    return markdown(
        header,
        [[name, f"{one.new:,}", f"{100 * one.share:.2f}", ", ".join(one.most) or "-"] for name, one in kinds.items()],
    )


def _hashtags(found: dict[str, Suggested]) -> str:
    header = ["model", "answers", "suggested", "seen", "in notes written", "accepted"]
    body = [
        [
            model,
            f"{one.answers:,}",
            f"{one.hashtags:,}",
            f"{one.shown:,}",
            f"{one.accepted.shown:,}" if one.accepted else "0",
            _share(one.accepted.share) if one.accepted else "-",
        ]
        for model, one in found.items()
    ]
    return markdown(header, body)


def _reach(found: Reach) -> str:
    header = ["notes", "coverage", "Gini", "hubs", "places that hubs take"]
    figures = [percent(found.coverage), f"{found.gini:.3f}", f"{found.hubs:,}", percent(found.hub_share)]
    return markdown(header, [[f"{found.notes:,}", *figures]])


def _share(figure: Figure) -> str:
    """``4.21 (4.02 to 4.40)``; a figure without an interval alone."""
    if figure.low is None or figure.high is None:
        return f"{100 * figure.mean:.2f}"
    return f"{100 * figure.mean:.2f} ({100 * figure.low:.2f} to {100 * figure.high:.2f})"


def draw_online(report: OnlineReport) -> bytes:
    """CTR by position, exposure, age and day, as SVG; bars are 95% intervals."""
    drawn = {name: report.rates[name] for name in _DRAWN if report.rates[name]}
    with panels_of(max(1, len(drawn)), 4.8 * max(1, len(drawn)), 4.0) as (canvas, subplots):
        for place, (axes, (name, found)) in enumerate(zip(subplots, drawn.items(), strict=False)):
            style = {"color": OURS_COLOR if not place else COLORS[place], "marker": "o", "linestyle": "-"}
            draw_curve(axes, range(len(found)), [one.share for one in found.values()], style)
            step = -(-len(found) // _TICKS)
            axes.set_xticks(range(0, len(found), step), [*found][::step], rotation=30, ha="right")
            axes.set_title(_TITLES[name].partition(" (")[0], color=INK)
            axes.set_ylabel("CTR (%)")
            axes.set_ylim(bottom=0)
        return svg(canvas)
