"""The evaluation of section 5 on a folder's held-out notes: related notes, categories, hashtags, popularity debias.

This module puts the parts together; what others need of the parts can be had from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.answers import (
    HASHTAGS,
    WITH_NEIGHBORS,
    CategoryRow,
    HashtagLead,
    HashtagReport,
    HashtagRow,
    Read,
    Write,
    compare_hashtags,
    evaluate_categories,
    evaluate_hashtags,
    evaluate_tags,
    format_categories,
    format_hashtags,
    sample_notes,
)
from model.baselines import BM25, MINILM, Embeddings, Popularity, Ranker, SameCategory, TfIdf, minilm_vectors
from model.cooccurrence import HOLDOUT, SEED, related_pairs, split_notes
from model.debias import (
    DEPTH,
    STEPS,
    Debiased,
    DebiasRow,
    evaluate_debias,
    fit_popularity_weight,
    format_debias,
    validation_notes,
)
from model.events import EventTable, read_events
from model.minilm import has_minilm
from model.note import Note
from model.notes import is_blank, read_notes
from model.pairs import Pairs
from model.ranking import (
    KS,
    NOTELLM,
    Embed,
    Lead,
    RankerRow,
    evaluate_rankers,
    exposure_buckets,
    format_buckets,
    format_leads,
    format_table,
    leads,
    ranker_rows,
    truth_ranks,
)
from model.rows import DataError
from model.suggestions import Scores

__all__ = [
    "ALL_PAIRS", "HASHTAGS", "KS", "MIN_USERS", "NOTELLM", "WITH_NEIGHBORS", "CategoryRow", "DebiasReport",
    "DebiasRow", "Debiased", "Embed", "GoldResult", "HashtagLead", "HashtagReport", "HashtagRow", "Lead", "RankerRow",
    "Read", "Report", "Write", "compare_hashtags", "evaluate", "evaluate_categories", "evaluate_debias",
    "evaluate_hashtags", "evaluate_rankers", "evaluate_tags", "exposure_buckets", "fit_popularity_weight",
    "format_buckets", "format_categories", "format_debias", "format_hashtags", "format_leads", "format_report",
    "format_table", "leads", "ranker_rows", "sample_notes", "supported_pairs", "truth_ranks", "validation_notes",
]  # fmt: skip

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
    """What an evaluation found, and on what.

    ``pool``: held-out notes with any text or hashtags; ``blank``: held-out notes without, left out;
    ``skipped_users``: those with too many clicks. ``gold``: the sets of gold pairs, the one to believe first.
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


def evaluate(
    data: Path,
    embed: Embed | None = None,
    read: Read | None = None,
    write: Write | None = None,
    *,
    embeddings: Mapping[str, Embed] | None = None,
    categories: Sequence[str] | None = None,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    min_users: int = MIN_USERS,
    ks: Sequence[int] = KS,
    limit: int | None = None,
    scores: Scores | None = None,
) -> Report:
    """Compare popularity, words, MiniLM (if installed), other models and NoteLLM (if given) on held-out notes.

    Pairs are ordered where every event has a time, else unordered. Held-out notes without text and hashtags
    are left out of pool and pairs.

    Args:
        data: folder with notes and events, see `read_notes` and `read_events`.
        embed: NoteLLM's embeddings of notes. It also embeds training notes, for the debias and for hashtags.
        read: NoteLLM's readings of notes; it is shown neither the category nor the hashtags that it is asked for.
        write: NoteLLM's unconstrained categories, for which ``read`` must be given too.
        embeddings: further models by name, on the same pool.
        categories: the closed set for Ill.; by default every category of the notes asked about.
        holdout, seed: as when the training pairs were made, or NoteLLM is tested on what it was trained on.
        min_users: users behind the pairs of the first set of gold pairs; the second is all pairs.
        ks: the k of Recall@k.
        limit: notes to read at most for categories, and for hashtags; see `sample_notes`.
        scores: what NoteLLM's hashtags merged with the neighbours' are ordered by.

    Raises:
        DataError: if a file is not what it should be, or leaves no gold pair.
    """
    notes, events = read_notes(data), read_events(data)
    held_out = split_notes((note.id for note in notes), holdout, seed)
    pool = [note for note in notes if note.id in held_out and not is_blank(note)]
    gold = related_pairs(events, ordered=not events.untimed, within=frozenset(note.id for note in pool))
    supported = gold.supported_by(min_users)
    if not supported:
        raise DataError(
            f"{data}: no pair of the {len(pool)} held-out notes has {min_users} users behind it; "
            "more events, a larger holdout or fewer users a pair are needed"
        )
    models = {**(embeddings or {}), **({NOTELLM: embed} if embed is not None else {})}
    rankers = [*_baselines(pool, events), *(Embeddings(name, model(pool)) for name, model in models.items())]
    training = [note for note in notes if note.id not in held_out and not is_blank(note)]
    return Report(
        pool=len(pool),
        blank=len(held_out) - len(pool),
        skipped_users=gold.skipped_users,
        ordered=not events.untimed,
        holdout=holdout,
        seed=seed,
        gold=_by_gold(evaluate_rankers(rankers, pool, gold, ks), pool, gold, min_users),
        categories=_categories(sample_notes([note for note in pool if note.category], limit), read, write, categories),
        hashtags=None
        if read is None
        else evaluate_tags(notes, read, embed, holdout=holdout, seed=seed, limit=limit, scores=scores),
        debias=None
        if embed is None
        else _debias(rankers[-1], embed, validation_notes(training, seed), pool, supported, ks),
    )


def supported_pairs(min_users: int) -> str:
    """What the gold pairs are called that at least so many users stand behind."""
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


def _baselines(pool: Sequence[Note], events: EventTable) -> list[Ranker]:
    popularity = Popularity(pool, events)
    rankers: list[Ranker] = [popularity]
    if any(note.category for note in pool):
        rankers.append(SameCategory(pool, popularity))
    rankers += [TfIdf(pool), BM25(pool)]
    if has_minilm():
        rankers.append(Embeddings(MINILM, minilm_vectors(pool)))
    return rankers


def _by_gold(rows: list[RankerRow], pool: Sequence[Note], gold: Pairs, min_users: int) -> list[GoldResult]:
    """The rows on the supported pairs and on all; a truth's rank is the same in both."""
    sets = {ALL_PAIRS: (gold, rows)}
    kept = gold.users >= min_users
    if not kept.all():
        supported = gold.supported_by(min_users)
        ks = list(rows[0].recall)
        few = ranker_rows({row.name: row.ranks[kept] for row in rows}, pool, supported, ks)
        sets = {supported_pairs(min_users): (supported, few), **sets}
    return [
        GoldResult(name, len(pairs), len(set(pairs.note_ids)), found, leads(found, pairs))
        for name, (pairs, found) in sets.items()
    ]


def _categories(
    notes: Sequence[Note], read: Read | None, write: Write | None, categories: Sequence[str] | None
) -> CategoryRow | None:
    if read is None or not notes:
        return None
    truth = [note.category or "" for note in notes]
    drafts = [replace(note, category=None) for note in notes]
    predicted = [reading.category.name if reading.category else None for reading in read(drafts)]
    return evaluate_categories(
        predicted,
        truth,
        sorted(set(truth)) if categories is None else categories,
        None if write is None else write(drafts),
    )


def _debias(
    ranker: Ranker,
    embed: Embed,
    validation: Sequence[Note],
    pool: Sequence[Note],
    gold: Pairs,
    ks: Sequence[int],
) -> DebiasReport | None:
    """None where exposure says nothing, or too few notes are left to fit on."""
    exposure = np.array([note.exposure for note in validation])
    if len(validation) < 2 * DEPTH or exposure.min() == exposure.max():
        return None
    weight = fit_popularity_weight(embed(validation), exposure)
    steps = STEPS if weight else STEPS[:1]
    return DebiasReport(weight, len(validation), evaluate_debias(ranker, weight, pool, gold, steps, ks))
