"""The report of an evaluation, and its Markdown."""

from dataclasses import dataclass

from model.evaluation.debias import DebiasRow, format_debias
from model.evaluation.hashtags import CategoryRow, HashtagReport, format_categories, format_hashtags
from model.evaluation.retrieval import NOTELLM, Lead, RankerRow, format_buckets, format_leads, format_table

MIN_USERS = 2
ALL_PAIRS = "all pairs"


@dataclass(frozen=True, slots=True)
class GoldResult:
    """Every ranker on one set of gold pairs. ``targets``: distinct notes that its pairs start from."""

    name: str
    pairs: int
    targets: int
    rankers: list[RankerRow]
    leads: list[Lead]


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

    ``pool``: held-out notes with any text or hashtags; ``blank``: held-out notes without, left out;
    ``skipped_users``: users with too many clicks. ``gold``: the sets of gold pairs, the one to believe first.
    """

    pool: int
    blank: int
    skipped_users: int
    ordered: bool
    holdout: float
    seed: int
    gold: list[GoldResult]
    categories: CategoryRow | None = None
    hashtags: HashtagReport | None = None
    debias: DebiasReport | None = None


def supported_pairs(min_users: int) -> str:
    """The name of the gold pairs of at least so many users."""
    return f"pairs of {min_users} users or more"


def format_report(report: Report) -> str:
    """The whole report as Markdown."""
    parts = [
        f"A pool of {report.pool:,} held-out notes ({report.blank:,} without text left out);"
        f" {'ordered' if report.ordered else 'unordered'} pairs,"
        f" holdout {report.holdout}, seed {report.seed}, {report.skipped_users:,} overactive users skipped."
    ]
    for result in report.gold:
        parts += [f"Gold: {result.pairs:,} {result.name}, of {result.targets:,} targets.", format_table(result.rankers)]
        if result.rankers[0].buckets:
            parts.append(format_buckets(result.rankers))
        if result.leads:
            parts.append(format_leads(result.leads))
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
