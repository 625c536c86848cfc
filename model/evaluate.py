"""The evaluation of section 5: every ranker ranks the same pool of held-out notes for the same gold pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.backends.base import Reading
from model.baselines import Embeddings, MiniLM, Popularity, Ranker, SameCategory, TfIdf
from model.cooccurrence import HOLDOUT, SEED, related_pairs, split_notes
from model.data import DataError, EventTable, Pairs, is_blank, read_events, read_notes
from model.metrics import (
    Interval,
    accuracy,
    bleu4,
    bootstrap,
    f1_at,
    illegal_share,
    paired_bootstrap,
    recall_at,
    rouge,
)
from model.minilm import minilm_folder
from model.note import Note
from model.prompt import topics_text
from model.tags import clean_tags

# The paper reports up to 100,000 on a pool of 257,937 notes; pools here are about a hundredth of that.
KS = (10, 100, 1000)
MIN_USERS = 2
# Section 5.4: the 30% of the notes with least exposure, and the 10% with most.
LOW_EXPOSURE, HIGH_EXPOSURE = 0.3, 0.1
NOTELLM = "NoteLLM"
HASHTAGS = 5

Embed = Callable[[Sequence[Note]], NDArray[np.float32]]
Read = Callable[[Sequence[Note]], Sequence[Reading]]

_SCORES_PER_BLOCK = 2**24  # 64 MiB of float32


@dataclass(frozen=True, slots=True)
class RankerRow:
    """How one ranker did. ``recall`` maps k to Recall@k with its 95% interval.

    ``buckets``: Recall@k by exposure of the truth, see `exposure_buckets`.
    ``ranks``: 0-based rank of each gold pair's truth, int64, shape (P,).
    """

    name: str
    recall: dict[int, Interval]
    buckets: dict[str, dict[int, float]]
    ranks: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lead:
    """How far NoteLLM is ahead of another ranker at Recall@k, by a paired bootstrap over the targets."""

    over: str
    k: int
    lead: Interval


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """How generated categories did on ``notes`` notes that have one; shares in 0..1."""

    notes: int
    accuracy: float
    illegal: float


@dataclass(frozen=True, slots=True)
class HashtagRow:
    """How generated hashtags did on ``notes`` notes that have some; shares in 0..1, F1 at five."""

    notes: int
    bleu4: float
    rouge1: float
    rouge2: float
    rouge_l: float
    f1: float


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found, and on what.

    ``pool``: held-out notes with any text or hashtags; ``blank``: held-out notes without, left out;
    ``targets``: distinct notes that gold pairs start from; ``skipped_users``: those with too many clicks.
    """

    pool: int
    blank: int
    gold_pairs: int
    targets: int
    skipped_users: int
    ordered: bool
    holdout: float
    seed: int
    rankers: list[RankerRow]
    leads: list[Lead]
    categories: CategoryRow | None = None
    hashtags: HashtagRow | None = None


def evaluate(
    data: Path,
    embed: Embed | None = None,
    read: Read | None = None,
    *,
    categories: Sequence[str] | None = None,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    min_users: int = MIN_USERS,
    ks: Sequence[int] = KS,
) -> Report:
    """Compare popularity, TF-IDF, MiniLM (if installed) and NoteLLM (if given) on a folder's held-out notes.

    Pairs are ordered where every event has a time, else unordered. Held-out notes without text and hashtags
    are left out of pool and pairs.

    Args:
        data: folder with notes and events, see `read_notes` and `read_events`.
        embed: NoteLLM's embeddings of notes, shape (len(notes), D), in order.
        read: NoteLLM's readings of notes, in order, with five hashtags each if it finds them; it is shown
            neither the category nor the hashtags that it is asked for. categories: the closed set for Ill.;
            by default every category of the held-out notes. holdout, seed: as when the training pairs were
            made, or NoteLLM is tested on what it was trained on. min_users: gold pairs have at least this
            many users behind them. ks: the k of Recall@k.

    Raises:
        DataError: if a file is not what it should be, or leaves no gold pair.
    """
    notes, events = read_notes(data), read_events(data)
    held_out = split_notes((note.id for note in notes), holdout, seed)
    pool = [note for note in notes if note.id in held_out and not is_blank(note)]
    found = related_pairs(events, ordered=not events.untimed, within=frozenset(note.id for note in pool))
    gold = found.supported_by(min_users)
    if not gold:
        raise DataError(
            f"{data}: no pair of the {len(pool)} held-out notes has {min_users} users behind it; "
            "more events, a larger holdout or fewer users a pair are needed"
        )
    rows = evaluate_rankers(_rankers(pool, events, embed), pool, gold, ks)
    return Report(
        pool=len(pool),
        blank=len(held_out) - len(pool),
        gold_pairs=len(gold),
        targets=len(set(gold.note_ids)),
        skipped_users=gold.skipped_users,
        ordered=not events.untimed,
        holdout=holdout,
        seed=seed,
        rankers=rows,
        leads=leads(rows, gold),
        categories=_categories(pool, read, categories),
        hashtags=_hashtags(pool, read),
    )


def evaluate_rankers(
    rankers: Sequence[Ranker], pool: Sequence[Note], gold: Pairs, ks: Sequence[int] = KS
) -> list[RankerRow]:
    """Recall@k of every ranker over the gold pairs, in order; a bucket without any truth is left out.

    Raises:
        ValueError: if there are no pairs, a pair's end is not in the pool, or a score is not finite.
    """
    place = {note.id: row for row, note in enumerate(pool)}
    missing = {name for pair in gold.ends() for name in pair if name not in place}
    if missing:
        raise ValueError(f"{len(missing)} notes of the gold pairs are not in the pool, {min(missing)!r} for one")
    targets = np.array([place[name] for name in gold.note_ids], dtype=np.int64)
    truths = np.array([place[name] for name in gold.related_ids], dtype=np.int64)
    by_note = exposure_buckets(np.array([note.exposure for note in pool]))
    buckets = {name: inside[truths] for name, inside in by_note.items()}
    rows = []
    for ranker in rankers:
        ranks = truth_ranks(ranker, targets, truths, len(pool))
        rows.append(
            RankerRow(
                ranker.name,
                {k: bootstrap((ranks < k).astype(np.float64), targets) for k in ks},
                {name: recall_at(ranks[inside], ks) for name, inside in buckets.items() if inside.any()},
                ranks,
            )
        )
    return rows


def truth_ranks(
    ranker: Ranker, targets: NDArray[np.int64], truths: NDArray[np.int64], num_notes: int
) -> NDArray[np.int64]:
    """0-based rank of each truth in the pool of ``num_notes`` without the target, shape (P,).

    Half of the notes that score the same as the truth stand before it: a ranker that cannot tell gains
    nothing.

    Args:
        targets, truths: places in the pool, int64, shape (P,).

    Raises:
        ValueError: if a score is not finite: a comparison with NaN would put the truth first.
    """
    ranks = np.empty(len(targets), dtype=np.int64)
    distinct, target_of_pair = np.unique(targets, return_inverse=True)
    pairs_of_target = np.split(np.argsort(target_of_pair, kind="stable"), np.cumsum(np.bincount(target_of_pair)))
    step = max(1, _SCORES_PER_BLOCK // num_notes)
    with tqdm(total=len(targets), desc=f"rank {ranker.name}", unit="pair", delay=1, disable=None) as progress:
        for start in range(0, len(distinct), step):
            block = distinct[start : start + step]
            scores_TN = ranker.scores(block.tolist())
            if not np.isfinite(scores_TN).all():
                raise ValueError(f"{ranker.name} gave a score that is not finite")
            for scores_N, target, pairs in zip(scores_TN, block, pairs_of_target[start:], strict=False):
                others_N = np.delete(scores_N, target)
                ranks[pairs] = [_rank(others_N, scores_N[truth]) for truth in truths[pairs]]
                progress.update(len(pairs))
    return ranks


def exposure_buckets(exposure_N: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Which notes have low and which have high exposure (section 5.4), bool, shape (N,).

    The bounds are the pool's quantiles, because the paper's (1,500 and 75,000 impressions) fit its traffic
    alone. No buckets where every note has the same exposure.
    """
    if exposure_N.min() == exposure_N.max():
        return {}
    low, high = np.quantile(exposure_N, [LOW_EXPOSURE, 1 - HIGH_EXPOSURE])
    return {"low exposure": exposure_N <= low, "high exposure": exposure_N >= high}


def leads(rows: Sequence[RankerRow], gold: Pairs) -> list[Lead]:
    """NoteLLM's lead over every other ranker at every k; none without NoteLLM among the rows."""
    ours = next((row for row in rows if row.name == NOTELLM), None)
    if ours is None:
        return []
    groups = np.unique(np.array(gold.note_ids), return_inverse=True)[1]
    return [
        Lead(row.name, k, paired_bootstrap(_hits(ours, k), _hits(row, k), groups))
        for row in rows
        if row is not ours
        for k in row.recall
    ]


def evaluate_categories(
    predicted: Sequence[str | None], truth: Sequence[str], categories: Sequence[str]
) -> CategoryRow:
    """Acc. and Ill. of generated categories; ``categories`` is the closed set. ValueError without any."""
    return CategoryRow(len(truth), accuracy(predicted, truth), illegal_share(predicted, categories))


def evaluate_hashtags(predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> HashtagRow:
    """Overlap of generated hashtags with the true ones, both cleaned as the service cleans them.

    BLEU and ROUGE read as many predicted hashtags as the note has, which is the number j that the paper's
    prompt asks for; F1 reads five. Raises ValueError without any.
    """
    said = [clean_tags(list(tags)) for tags in predicted]
    true = [clean_tags(list(tags)) for tags in truth]
    said_texts = [topics_text(tags[: len(wanted)]) for tags, wanted in zip(said, true, strict=True)]
    true_texts = [topics_text(tags) for tags in true]
    overlap = rouge(said_texts, true_texts)
    return HashtagRow(
        notes=len(true),
        bleu4=bleu4(said_texts, true_texts),
        rouge1=overlap["rouge1"],
        rouge2=overlap["rouge2"],
        rouge_l=overlap["rougeL"],
        f1=f1_at(said, true, HASHTAGS),
    )


def format_table(rows: Sequence[RankerRow]) -> str:
    """Recall in percent with its 95% interval, as a Markdown table."""
    header = ["ranker", *(f"R@{k} (95% interval)" for k in rows[0].recall)]
    body = [[row.name, *map(_percent_interval, row.recall.values())] for row in rows]
    return _markdown(header, body)


def format_buckets(rows: Sequence[RankerRow]) -> str:
    """Recall in percent by exposure of the truth, as a Markdown table."""
    columns = [(bucket, k) for bucket, recall in rows[0].buckets.items() for k in recall]
    header = ["ranker", *(f"{bucket} R@{k}" for bucket, k in columns)]
    body = [[row.name, *(_percent(row.buckets[bucket][k]) for bucket, k in columns)] for row in rows]
    return _markdown(header, body)


def format_report(report: Report) -> str:
    """The whole report as Markdown."""
    parts = [
        f"{report.gold_pairs:,} gold pairs of {report.targets:,} targets in a pool of {report.pool:,}"
        f" held-out notes ({report.blank:,} without text left out);"
        f" {'ordered' if report.ordered else 'unordered'} pairs,"
        f" holdout {report.holdout}, seed {report.seed}, {report.skipped_users:,} overactive users skipped.",
        format_table(report.rankers),
    ]
    if report.rankers[0].buckets:
        parts.append(format_buckets(report.rankers))
    if report.leads:
        body = [[lead.over, f"R@{lead.k}", _percent_interval(lead.lead)] for lead in report.leads]
        parts.append(_markdown([f"{NOTELLM} ahead of", "at", "points (95% interval)"], body))
    if report.categories is not None:
        row = report.categories
        shares = [_percent(share) for share in (row.accuracy, row.illegal)]
        parts.append(_markdown(["category: notes", "Acc.", "Ill."], [[f"{row.notes:,}", *shares]]))
    if report.hashtags is not None:
        tags = report.hashtags
        shares = [_percent(share) for share in (tags.bleu4, tags.rouge1, tags.rouge2, tags.rouge_l, tags.f1)]
        header = ["hashtags: notes", "BLEU4", "ROUGE1", "ROUGE2", "ROUGEL", f"F1@{HASHTAGS}"]
        parts.append(_markdown(header, [[f"{tags.notes:,}", *shares]]))
    return "\n\n".join(parts)


def _rankers(
    pool: Sequence[Note],
    events: EventTable,
    embed: Embed | None,
) -> list[Ranker]:
    popularity = Popularity(pool, events)
    rankers: list[Ranker] = [popularity]
    if any(note.category for note in pool):
        rankers.append(SameCategory(pool, popularity))
    rankers.append(TfIdf(pool))
    if minilm_folder() is not None:
        rankers.append(Embeddings(MiniLM.name, MiniLM().embed(pool)))
    if embed is not None:
        rankers.append(Embeddings(NOTELLM, embed(pool)))
    return rankers


def _categories(pool: Sequence[Note], read: Read | None, categories: Sequence[str] | None) -> CategoryRow | None:
    notes = [note for note in pool if note.category]
    if read is None or not notes:
        return None
    truth = [note.category or "" for note in notes]
    readings = read([replace(note, category=None) for note in notes])
    predicted = [reading.category.name if reading.category else None for reading in readings]
    return evaluate_categories(predicted, truth, sorted(set(truth)) if categories is None else categories)


def _hashtags(pool: Sequence[Note], read: Read | None) -> HashtagRow | None:
    notes = [note for note in pool if clean_tags(list(note.hashtags)) and (note.title or note.content)]
    if read is None or not notes:
        return None
    readings = read([replace(note, hashtags=(), category=None) for note in notes])
    predicted = [[scored.name for scored in reading.hashtags] for reading in readings]
    return evaluate_hashtags(predicted, [note.hashtags for note in notes])


def _rank(others_N: NDArray[np.float32], score: np.float32) -> int:
    tied = int((others_N == score).sum()) - 1  # the truth is among the others
    return int((others_N > score).sum()) + tied // 2


def _hits(row: RankerRow, k: int) -> NDArray[np.float64]:
    return (row.ranks < k).astype(np.float64)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _percent_interval(interval: Interval) -> str:
    return f"{_percent(interval.mean)} ({_percent(interval.low)} to {_percent(interval.high)})"


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])
