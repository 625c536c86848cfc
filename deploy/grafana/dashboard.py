"""Writes dashboards/notellm.json: rows of panels, each a title, a unit and what it asks Prometheus.

make dashboard
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "dashboards" / "notellm.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, TILE_HEIGHT = 24, 8, 4
GREEN, ORANGE, RED = "green", "orange", "red"


@dataclass(frozen=True)
class Panel:
    """A graph over time, or with ``is_tile`` one figure of now. ``queries`` leads from legends to expressions.

    Grafana puts labels in a legend where {{label}} stands. From the values in ``limits`` on, the colours change.
    """

    title: str
    unit: str
    queries: dict[str, str]
    meaning: str
    is_tile: bool = False
    stacked: bool = False
    limits: Sequence[tuple[float, str]] = field(default=())
    top: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels side by side under one heading."""

    title: str
    panels: Sequence[Panel]


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second, over the interval that suits what is shown."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{where}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str = "") -> str:
    """Of a histogram."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le')})"


def quantiles(metric: str) -> dict[str, str]:
    """The usual three, of all together."""
    return {f"p{100 * q:g}": quantile(q, metric) for q in (0.5, 0.9, 0.99)}


ROWS = (
    Row(
        "What users see",
        (
            Panel(
                "Requests", "reqps", {"": rate("notellm_http_requests_total")}, "Answered, all routes.", is_tile=True
            ),
            Panel(
                "Failed",
                "percentunit",
                {"": "notellm:errors:ratio_rate5m"},
                "5xx and refused for want of room; one in a thousand is promised.",
                is_tile=True,
                limits=((0.001, ORANGE), (0.0144, RED)),
            ),
            Panel(
                "Late notes",
                "percentunit",
                {"": "notellm:freshness_late:ratio_rate5m"},
                "Searchable later than 10 s after the write; one in a hundred is promised.",
                is_tile=True,
                limits=((0.01, ORANGE), (0.144, RED)),
            ),
            Panel(
                "Notes", "short", {"": "sum(max by (shard) (notellm_index_notes))"}, "That can be found.", is_tile=True
            ),
            Panel(
                "Shards up",
                "percentunit",
                {"": "avg(min by (shard) (notellm_shard_up))"},
                "As the gateways see them.",
                is_tile=True,
                limits=((0, RED), (1, GREEN)),
            ),
            Panel(
                "Dead letters",
                "short",
                {"": "max(notellm_dead_letters)"},
                "Notes in the dead-letter stream that nobody removed.",
                is_tile=True,
                limits=((1, ORANGE),),
            ),
        ),
    ),
    Row(
        "Requests",
        (
            Panel(
                "Requests by route",
                "reqps",
                {"{{method}} {{route}}": rate("notellm_http_requests_total", "method, route")},
                "Answered.",
                stacked=True,
            ),
            Panel(
                "Latency by route, p99",
                "s",
                {"{{route}}": quantile(0.99, "notellm_http_request_duration_seconds", "route")},
                "From a request's first byte to the last of its answer. Writes that wait take as long as they wait.",
            ),
            Panel(
                "Mistakes, failures and refusals",
                "reqps",
                {
                    "{{status}} {{route}}": rate("notellm_http_requests_total", "status, route", '{status=~"[45].."}'),
                    "refused: {{code}}": rate("notellm_http_refused_total", "code"),
                },
                "4xx are the clients', 5xx ours. Refused requests are in no other figure.",
                stacked=True,
            ),
        ),
    ),
    Row(
        "Freshness",
        (
            Panel(
                "From write to searchable",
                "s",
                quantiles("notellm_note_freshness_seconds"),
                "Every note, by the clocks of Redis and the indexers.",
            ),
            Panel(
                "The index's part of it",
                "s",
                quantiles("notellm_index_freshness_seconds"),
                "From the worker's publishing to the note being searchable.",
            ),
            Panel(
                "Queue",
                "short",
                {"{{fingerprint}}": "max by (fingerprint) (notellm_queue_depth)"},
                "Jobs that wait for a worker.",
            ),
            Panel(
                "Oldest job",
                "s",
                {"{{fingerprint}}": "max by (fingerprint) (notellm_queue_oldest_seconds)"},
                "How long the first of the queue has waited.",
                limits=((300, RED),),
            ),
        ),
    ),
    Row(
        "Worker",
        (
            Panel(
                "Notes read",
                "ops",
                {
                    "embedded": rate("notellm_notes_embedded_total"),
                    "known: {{cache}}": rate("notellm_embed_cache_hits_total", "cache"),
                    "dead-lettered": rate("notellm_notes_failed_total"),
                },
                "Published; of these, known without asking the model; dead-lettered.",
            ),
            Panel("Tokens", "ops", {"": rate("notellm_embed_tokens_total")}, "Prompt tokens that the model reads."),
            Panel(
                "Stages, p90",
                "s",
                {"{{stage}}": quantile(0.9, "notellm_embed_stage_duration_seconds", "stage")},
                "queue and infer are of a note; prefill and decode of a step, and a note takes many.",
            ),
            Panel(
                "Suggested hashtags",
                "ops",
                {"{{source}}": rate("notellm_tags_suggested_total", "source")},
                "For drafts: written by the model, voted for by neighbors, or both.",
                stacked=True,
            ),
        ),
    ),
    Row(
        "Index",
        (
            Panel(
                "Notes by shard",
                "short",
                {"shard {{shard}}": "max by (shard) (notellm_index_notes)"},
                "That the shard can find.",
                stacked=True,
            ),
            Panel(
                "Recall@10",
                "percentunit",
                {"shard {{shard}}": "min by (shard) (notellm_index_recall)"},
                "Against exact search, probed every five minutes.",
                limits=((0, RED), (0.9, ORANGE), (0.96, GREEN)),
                top=1,
            ),
            Panel(
                "Behind the stream",
                "short",
                {"shard {{shard}}": "max by (shard) (notellm_index_lag_changes)"},
                "Changes that are not applied yet.",
            ),
            Panel(
                "Waiting for a snapshot",
                "s",
                {"shard {{shard}}": "max by (shard) (notellm_index_snapshot_age_seconds)"},
                "Age of the last snapshot while changes wait for the next.",
                limits=((900, RED),),
            ),
        ),
    ),
    Row(
        "Readers and models",
        (
            Panel(
                "Events of readers",
                "ops",
                {"{{outcome}}": rate("notellm_events_total", "outcome")},
                "As they were delivered.",
                stacked=True,
            ),
            Panel(
                "Records of answers",
                "ops",
                {"{{outcome}}": rate("notellm_answers_logged_total", "outcome")},
                "Those that are dropped are missing in reports and experiments.",
                stacked=True,
            ),
            Panel(
                "Reach of lists",
                "percentunit",
                {"coverage": "max(notellm_reach_coverage)", "Gini": "max(notellm_reach_gini)"},
                "Of today and yesterday: the share of notes in a list, and how unequally places fall to them.",
                top=1,
            ),
            Panel(
                "Guard of the last model",
                "short",
                {"{{state}}": "max by (state) (notellm_guard)"},
                "1 while it is watched; should be taken back, and cannot be; was taken back within a day.",
                top=1,
            ),
        ),
    ),
    Row(
        "Redis",
        (
            Panel(
                "Memory",
                "bytes",
                {"used": "max(notellm_redis_memory_bytes)"},
                "At its limit Redis refuses writes.",
            ),
            Panel(
                "Share of memory",
                "percentunit",
                {"": "max(notellm_redis_memory_bytes) / max(notellm_redis_memory_limit_bytes)"},
                "Of maxmemory, or of the machine.",
                limits=((0.85, RED),),
            ),
            Panel(
                "Append-only file",
                "bytes",
                {"size": "max(notellm_redis_aof_bytes)"},
                "While it is written anew, two of them lie on the disk.",
            ),
            Panel(
                "Redis up, and writing to disk",
                "short",
                {"up": "max(notellm_redis_up)", "writing": "max(notellm_redis_persistent)"},
                "1 is yes.",
                top=1,
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """As Grafana reads it."""
    return {
        "uid": "notellm",
        "title": "NoteLLM",
        "tags": ["notellm"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": []},
        "annotations": {"list": [_alerts()]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_laid_out(), start=1)],
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": RED,
        "expr": 'ALERTS{alertstate="firing"}',
        "titleFormat": "{{alertname}}",
    }


def _laid_out() -> Iterator[dict[str, Any]]:
    """Headings and panels from top to bottom, each row as wide as the page."""
    y = 0
    for row in ROWS:
        yield {
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        }
        y += 1
        width = WIDTH // len(row.panels)
        height = TILE_HEIGHT if row.panels[0].is_tile else HEIGHT
        for place, panel in enumerate(row.panels):
            yield _panel(panel) | {"gridPos": {"x": place * width, "y": y, "w": width, "h": height}}
        y += height


def _panel(panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": colour} for value, colour in panel.limits]
    base = {"value": None, "color": GREEN}
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": [base, *steps]},
        "color": {"mode": "thresholds" if panel.is_tile else "palette-classic"},
    }
    shown: dict[str, Any] = {"type": "stat", "options": {"colorMode": "value", "graphMode": "area"}}
    if not panel.is_tile:
        custom = {
            "fillOpacity": 25 if panel.stacked else 8,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "line" if panel.limits else "off"},
            "showPoints": "never",
        }
        defaults |= {"custom": custom, "min": 0} | ({"max": panel.top} if panel.top else {})
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        shown = {"type": "timeseries", "options": {"legend": legend, "tooltip": {"mode": "multi"}}}
    return shown | {
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expr, "legendFormat": legend or panel.title}
            for number, (legend, expr) in enumerate(panel.queries.items())
        ],
    }


def text() -> str:
    """The file as it is committed."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    OUT.write_text(text())
