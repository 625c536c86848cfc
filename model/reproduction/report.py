"""The report of a reproduction: its tables as Markdown, JSON and plots. No note's text is in it.

Figures are shares in 0..1 in the JSON, percent in the Markdown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from model.evaluation.metrics import Figure
from model.evaluation.reliability import MARKDOWN as RELIABILITY
from model.evaluation.retrieval import KS
from model.evaluation.tables import markdown, percent
from model.files import write_bytes, write_json
from model.reproduction.analysis import FIGURES, Ranked, Recall, Report, Row, build_report, table_name
from model.reproduction.grid import (
    ABLATIONS,
    ALPHA,
    COLD_START,
    CROSS_PLATFORM,
    EXPOSURE,
    GENERATING,
    METHODS,
    OURS,
    PROMPTS,
    SHARE,
    TABLES,
)
from model.reproduction.plots import PLOTS, draw

MARKDOWN, JSON = "report.md", "report.json"
TITLES = {
    METHODS: "related notes, by method",
    EXPOSURE: "related notes, by exposure of the truth",
    ABLATIONS: "ablations",
    SHARE: "data diversity: r, the share of a batch that writes hashtags",
    ALPHA: "α, the weight of the generation loss",
    COLD_START: "related notes, by clicks of the truth",
    CROSS_PLATFORM: "related notes of another community, which no training saw",
    PROMPTS: "the paper's prompt, and the one whose prefix all tasks share",
}


def write_report(out: Path, ks: Sequence[int] = KS) -> Report:
    """Build the report of the finished runs in ``out`` and write report.md, report.json and the plots there.

    Raises:
        ValueError: if there is no plan in ``out``, or no run of it is done.
    """
    report = build_report(out, ks)
    plots = draw(report)
    for name, svg in plots.items():
        write_bytes(out / name, svg)
    write_json(out / JSON, asdict(report))
    calibrated = sorted(out.glob(f"runs/*/checkpoint/{RELIABILITY}"))
    links = [path.relative_to(out).as_posix() for path in calibrated]
    write_bytes(out / MARKDOWN, format_report(report, list(plots), links).encode())
    return report


def format_report(report: Report, plots: Sequence[str] = (), calibrated: Sequence[str] = ()) -> str:
    """The report as Markdown; ``plots``, and ``calibrated`` (the reports of calibrated runs), are relative paths."""
    parts = ["# Reproduction", _statement(report)]
    for table in TABLES:
        rows = [row for row in report.rows if row.table == table]
        if rows:
            parts += [f"## {table_name(table)}: {TITLES[table]}", *_tables(report, table, rows)]
        parts += [f"![{PLOTS[name][1]}]({name})" for name in plots if PLOTS[name][0] == table]
    if calibrated:
        parts += ["## Reliability of scores", "\n".join(f"- [{path}]({path})" for path in calibrated)]
    if report.missing:
        parts += ["## Not there yet", "\n".join(f"- {line}" for line in report.missing)]
    return "\n\n".join(parts) + "\n"


def _tables(report: Report, table: str, rows: Sequence[Row]) -> Iterator[str]:
    pool = report.pools[rows[0].pool]

    def recalls(column: str, rows: Sequence[Row], recalls: Sequence[Recall], averages: Sequence[Figure] = ()) -> str:
        body = [[row.label, *map(_cell, recall.values())] for row, recall in zip(rows, recalls, strict=True)]
        body = [[*cells, _cell(average)] for cells, average in zip(body, averages, strict=True)] if averages else body
        return markdown([column, *(f"R@{k}" for k in pool.ks), *["Avg."][: len(averages)]], body)

    if table == EXPOSURE:
        yield from _debias(report)
    if table == EXPOSURE and not rows[0].sliced:
        yield "Every note has the same exposure here, so there are no buckets."
    for name in rows[0].sliced:
        yield f"Recall@k in percent, {pool.gold} whose truth has {name} ({pool.buckets[name]:,} pairs):"
        yield recalls("method", rows, [row.sliced[name] for row in rows])
    if table == CROSS_PLATFORM:
        yield f"{pool.data}: {_question(pool, 'notes')}"
    # Two tables show every set of gold pairs; a difference between them there holds for all.
    for name in pool.sets if table in (METHODS, CROSS_PLATFORM) else [pool.gold]:
        yield f"Recall@k in percent, {name}:"
        averages = [row.average for row in rows] if name == pool.gold and len(pool.ks) > 1 else []
        yield recalls("method", rows, [row.recall[name] for row in rows], averages)
    if table in GENERATING and any(row.generation for row in rows):
        names = [name for name in FIGURES if any(name in row.generation for row in rows)]
        yield (
            f"Categories and hashtags in percent, of at most {report.statement['tag_notes']:,} held-out notes. Here "
            "popularity is the most frequent category and hashtags, TF-IDF the hashtags of the nearest notes:"
        )
        body = [[row.label, *(_cell(row.generation.get(name)) for name in names)] for row in rows if row.generation]
        yield markdown(["method", *(FIGURES[name] for name in names)], body)
    led = [row for row in rows if row.lead is not None]
    if led:
        yield f"{OURS}'s lead over each in points, paired, {pool.gold}:"
        yield recalls("over", led, [row.lead or {} for row in led])


def _debias(report: Report) -> Iterator[str]:
    if report.debias_weights:
        weights = ", ".join(f"{weight:.4f}" for weight in report.debias_weights)
        yield (
            "Debias d: score = cosine - d * b * log(1 + exposure); b, fitted on training notes, is "
            f"{weights}{' by seed' if len(report.debias_weights) > 1 else ''}."
        )


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


def _question(pool: Ranked, notes: str) -> str:
    sets = "; ".join(f"{name}: {size['pairs']:,} of {size['targets']:,} targets" for name, size in pool.sets.items())
    return f"each truth's place among {pool.notes:,} {notes}. Gold, {sets}."


def _statement(report: Report) -> str:
    """The measurement in words: data, training, question, and how figures are written."""
    facts, pool = report.statement, next(iter(report.pools.values()))
    rules = facts["rules"]
    window = "".join(f", {name} {rules[name]}" for name in ("since", "until") if rules[name] is not None)
    passes = "one pass" if facts["epochs"] == 1 else f"{facts['epochs']} passes"
    steps = f"{facts['steps']:,} steps" if facts["steps"] else f"{passes} over the pairs in batches"
    seeds = ", ".join(map(str, facts["seeds"]))
    split = (
        f"Split by note: {facts['holdout']:.0%} held out, split seed {facts['split_seed']}."
        if facts["start"] is None
        else f"Split by time: the test notes are those first seen from {facts['start']} on; training saw what came "
        "before, gold pairs are of what came after."
    )
    lines = [
        f"Data: {facts['data']}, {facts['notes']:,} notes and {facts['events']:,} events of {facts['users']:,} users "
        f"(digest {facts['digest']}). {split} Related by eq. 1 with u = {rules['upper']:g}, l = {rules['lower']:g}, "
        f"t = {rules['top']}{window}.",
        f"Training: recipe {facts['recipe']} on {facts['base_model']}, {steps} of {facts['pairs_per_batch']} "
        f"{'ordered' if facts['ordered'] else 'unordered'} pairs, drawn from {facts['training_pairs']:,} with "
        f"{facts['pairs_min_users']} users or more; seeds {seeds}."
        + (" Every trained row is centered." if facts.get("centered") else ""),  # a plan of before has no word of it
        f"Question: {_question(pool, 'notes, those of training too' if facts['whole_pool'] else 'test notes')}",
        "In brackets: 95% intervals by a bootstrap over targets (over notes for categories and hashtags)."
        + (
            " Behind ±: the standard deviation over seeds; means and intervals are of all seeds."
            if len(facts["seeds"]) > 1
            else ""
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)
