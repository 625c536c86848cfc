"""The report of an evaluation, and its Markdown."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from model.evaluation.debias import DebiasRow, format_debias
from model.evaluation.hashtags import CategoryRow, HashtagReport, format_categories, format_hashtags
from model.evaluation.retrieval import (
    NOTELLM,
    Lead,
    RankerRow,
    format_buckets,
    format_clicks,
    format_leads,
    format_table,
)

MIN_USERS = 2
ALL_PAIRS = "all pairs"


@dataclass(frozen=True, slots=True)
class GoldResult:
    """Every ranker on one set of gold pairs. ``targets``: distinct notes that its pairs start from.

    ``by_clicks``: pairs by clicks of the truth, in the buckets of the rows.
    """

    name: str
    pairs: int
    targets: int
    rankers: list[RankerRow]
    leads: list[Lead]
    by_clicks: dict[str, int]


@dataclass(frozen=True, slots=True)
class DebiasReport:
    """NoteLLM without popularity. ``weight``: b, fitted on ``notes`` validation notes.

    It is 0 where the lists favor no popular notes; ``rows`` then holds the plain ranker alone.
    """

    weight: float
    notes: int
    rows: list[DebiasRow]


@dataclass(frozen=True, slots=True)
class Report:
    """The results of an evaluation, and its data.

    ``pool``, ``blank``, ``origin``: see `HeldOut`. ``gold``: the sets of gold pairs, the one to believe first; empty
    where nothing says what is related. ``remarks``: what is left out, and why.
    """

    pool: int
    blank: int
    origin: str
    gold: list[GoldResult] = field(default_factory=list)
    debias: DebiasReport | None = None
    categories: CategoryRow | None = None
    hashtags: HashtagReport | None = None
    remarks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Every figure, without the ranks that they are made of."""
        return asdict(self, dict_factory=lambda fields: {name: value for name, value in fields if name != "ranks"})


def supported_pairs(min_users: int) -> str:
    """The name of the gold pairs of at least so many users."""
    return f"pairs of {min_users} users or more"


def format_report(report: Report) -> str:
    """The whole report as Markdown."""
    left_out = f" ({report.blank:,} without text left out)" if report.blank else ""
    parts = [f"A pool of {report.pool:,} held-out notes{left_out}: {report.origin}.", *report.remarks]
    for result in report.gold:
        parts += _gold(result)
    if report.debias is not None:
        fitted = (
            f"Popularity debias of {NOTELLM}: b = {report.debias.weight:.4f}, fitted on {report.debias.notes:,} notes"
        )
        parts += [f"{fitted}; {report.gold[0].name}.", format_debias(report.debias.rows)]
    if report.categories is not None:
        parts.append(format_categories(report.categories))
    if report.hashtags is not None:
        parts.append(format_hashtags(report.hashtags))
    return "\n\n".join(parts)


def _gold(result: GoldResult) -> Iterator[str]:
    yield f"Gold: {result.pairs:,} {result.name}, of {result.targets:,} targets."
    yield format_table(result.rankers)
    if result.rankers[0].buckets:
        yield format_buckets(result.rankers)
    if len(result.by_clicks) > 1:
        yield format_clicks(result.rankers, result.by_clicks)
    if result.leads:
        yield format_leads(result.leads)
