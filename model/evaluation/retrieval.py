"""How well rankers find related notes: one pool and one set of gold pairs for all (section 5.1).

Shapes: N notes in the pool, P gold pairs, T distinct targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.evaluation.baselines import Embeddings, Ranker
from model.evaluation.metrics import Interval, average_hits, bootstrap, paired_bootstrap, recall_at
from model.evaluation.tables import markdown, percent, percent_interval
from model.inference.open import default_device
from model.note import Note
from model.progress import bar

if TYPE_CHECKING:
    import torch

    from model.data.pairs import Pairs

KS = (10, 100, 1000)
# Section 5.1, of a pool of 257,937 notes; `KS` suits one of a hundredth of that.
PAPER_KS = (100, 1000, 10_000, 100_000)
# Section 5.3: the 30% of the notes with least exposure, and the 10% with most.
LOW_EXPOSURE, HIGH_EXPOSURE = 0.3, 0.1
# Users who clicked a note, from this number on: what is cold, lukewarm and warm.
CLICKS = {"no clicks": 0, "1 or 2 clicks": 1, "3 to 9 clicks": 3, "10 clicks or more": 10}
NOTELLM = "NoteLLM"

BLOCK_BYTES = 2**28
# A pair and a note of the pool cost a score, its copy for the pair, and the outcome of a comparison.
_BYTES_PER_SCORE = 4 + 4 + 1

Embed = Callable[[Sequence[Note]], NDArray[np.float32]]
"""Embeddings of notes, in order: (N notes) -> (N, D), any norm."""


@dataclass(frozen=True, slots=True)
class RankerRow:
    """The figures of one ranker. ``recall`` maps k to Recall@k with its 95% interval, ``average`` is their mean.

    ``buckets``: Recall@k by exposure of the truth, see `exposure_buckets`. ``by_clicks``: by the clicks of the truth,
    see `click_buckets`; empty where those are not known. ``ranks``: 0-based rank of each gold pair's truth, int64,
    shape (P,).
    """

    name: str
    recall: dict[int, Interval]
    average: Interval
    buckets: dict[str, dict[int, float]]
    by_clicks: dict[str, dict[int, Interval]]
    ranks: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lead:
    """How far NoteLLM is ahead of another ranker at Recall@k, by a paired bootstrap over the targets."""

    over: str
    k: int
    lead: Interval


def fitting(ks: Sequence[int], num_notes: int) -> tuple[int, ...]:
    """The k at which rankers of ``num_notes`` notes can differ, in order: of as many as there are, Recall@k is 1.

    Raises:
        ValueError: if no k is left, or one is below 1.
    """
    if min(ks) < 1:
        raise ValueError(f"the k of Recall@k must be at least 1, got {min(ks)}")
    kept = tuple(k for k in ks if k < num_notes - 1)
    if not kept:
        raise ValueError(
            f"the pool has {num_notes} notes, so that Recall@{min(ks)} is 1 whatever their order; "
            "a larger pool or a smaller k is needed"
        )
    return kept


def evaluate_rankers(
    rankers: Sequence[Ranker],
    pool: Sequence[Note],
    gold: Pairs,
    ks: Sequence[int] = KS,
    clicks_N: NDArray[np.int64] | None = None,
) -> list[RankerRow]:
    """Recall@k of every ranker over the gold pairs, in order; see `ranker_rows`.

    Raises:
        ValueError: if there are no pairs, a pair's end is not in the pool, a score is not finite, or two rankers
            have one name.
    """
    names = [ranker.name for ranker in rankers]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two rankers are called {min(twice)!r}")
    targets, truths = places_of(pool, gold)
    ranks = {ranker.name: truth_ranks(ranker, targets, truths, len(pool)) for ranker in rankers}
    return ranker_rows(ranks, pool, gold, ks, clicks_N)


def ranker_rows(
    ranks: Mapping[str, NDArray[np.int64]],
    pool: Sequence[Note],
    gold: Pairs,
    ks: Sequence[int] = KS,
    clicks_N: NDArray[np.int64] | None = None,
) -> list[RankerRow]:
    """A row for each ranker's ranks of the gold pairs' truths, shape (P,); a bucket without any truth is left out.

    ``clicks_N``: how many users clicked each note of the pool, as `clicks_of` counts them.
    """
    targets, truths = places_of(pool, gold)
    by_exposure = _of_truths(exposure_buckets(exposure_of(pool)), truths)
    by_clicks = {} if clicks_N is None else _of_truths(click_buckets(clicks_N), truths)

    def recall(ranks_P: NDArray[np.int64], inside_P: NDArray[np.bool_]) -> dict[int, Interval]:
        hits = {k: (ranks_P[inside_P] < k).astype(np.float64) for k in ks}
        return {k: bootstrap(hits_P, targets[inside_P]) for k, hits_P in hits.items()}

    return [
        RankerRow(
            name,
            recall(ranks_P, np.ones(len(ranks_P), dtype=np.bool_)),
            bootstrap(average_hits(ranks_P, ks), targets),
            {bucket: recall_at(ranks_P[inside_P], ks) for bucket, inside_P in by_exposure.items()},
            {bucket: recall(ranks_P, inside_P) for bucket, inside_P in by_clicks.items()},
            ranks_P,
        )
        for name, ranks_P in ranks.items()
    ]


def truth_ranks(
    ranker: Ranker,
    targets: NDArray[np.int64],
    truths: NDArray[np.int64],
    num_notes: int,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> NDArray[np.int64]:
    """0-based rank of each truth in the pool of ``num_notes`` without the target, shape (P,). Exact, in blocks.

    Half of the notes that score the same as the truth stand before it: a ranker that cannot tell gains nothing.
    Counting, and the products of `Embeddings`, run on a GPU when there is one.

    Args:
        targets, truths: places in the pool, int64, shape (P,).
        block_bytes: a block of pairs takes 9 bytes a pair and note, and holds at least one pair: by default
            29 pairs at a time for a million notes. `Embeddings` also holds its N x D float32 in memory, and once more
            on the GPU; another ranker holds what its ``scores`` needs for as many targets.

    Raises:
        ValueError: if a score is not finite: a comparison with NaN would put the truth first.
    """
    score = _scorer(ranker, default_device())
    ranks = np.empty(len(targets), dtype=np.int64)
    by_target = np.argsort(targets, kind="stable")  # pairs of one target side by side share its scores
    step = max(1, block_bytes // (_BYTES_PER_SCORE * num_notes))
    with bar(f"rank {ranker.name}", len(targets), "pair") as progress:
        for start in range(0, len(targets), step):
            pairs = by_target[start : start + step]
            distinct, row_of_pair = np.unique(targets[pairs], return_inverse=True)
            ranks[pairs] = _ranks(score(distinct), row_of_pair, targets[pairs], truths[pairs])
            progress.update(len(pairs))
    return ranks


def exposure_buckets(exposure_N: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Which notes have low and which have high exposure (section 5.3), bool, shape (N,).

    The bounds are the pool's quantiles, because the paper's (1,500 and 75,000 impressions) fit its traffic
    alone. No buckets where every note has the same exposure.
    """
    if exposure_N.min() == exposure_N.max():
        return {}
    low, high = np.quantile(exposure_N, [LOW_EXPOSURE, 1 - HIGH_EXPOSURE])
    return {"low exposure": exposure_N <= low, "high exposure": exposure_N >= high}


def click_buckets(clicks_N: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Which notes so many users clicked, bool, shape (N,), coldest first: see `CLICKS`.

    A truth of a pair that was made of clicks has been clicked itself, so that there are no truths without any.
    """
    bounds = [*CLICKS.values(), np.inf]
    return {
        name: (clicks_N >= low) & (clicks_N < high) for name, low, high in zip(CLICKS, bounds, bounds[1:], strict=False)
    }


def pairs_by_clicks(pool: Sequence[Note], gold: Pairs, clicks_N: NDArray[np.int64]) -> dict[str, int]:
    """How many pairs have their truth in each bucket of clicks that holds any."""
    inside = _of_truths(click_buckets(clicks_N), places_of(pool, gold)[1])
    return {name: int(inside_P.sum()) for name, inside_P in inside.items()}


def leads(rows: Sequence[RankerRow], gold: Pairs) -> list[Lead]:
    """NoteLLM's lead over every other ranker at every k; none without NoteLLM among the rows."""
    ours = next((row for row in rows if row.name == NOTELLM), None)
    if ours is None:
        return []
    return [Lead(row.name, k, lead_at(ours, row, gold, k)) for row in rows if row is not ours for k in row.recall]


def exposure_of(notes: Sequence[Note]) -> NDArray[np.int64]:
    """How often each note was shown, shape (N,)."""
    return np.array([note.exposure for note in notes], dtype=np.int64)


def places_of(pool: Sequence[Note], gold: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in the pool of the pairs' targets and of their truths, each of shape (P,).

    Raises:
        ValueError: if a note of a pair is not in the pool.
    """
    place = {note.id: row for row, note in enumerate(pool)}
    missing = {name for pair in gold.ends() for name in pair if name not in place}
    if missing:
        raise ValueError(f"{len(missing)} notes of the gold pairs are not in the pool, {min(missing)!r} for one")
    targets = np.array([place[name] for name in gold.note_ids], dtype=np.int64)
    truths = np.array([place[name] for name in gold.related_ids], dtype=np.int64)
    return targets, truths


def lead_at(first: RankerRow, second: RankerRow, gold: Pairs, k: int) -> Interval:
    """How far the first is ahead of the second at Recall@k, by a paired bootstrap over the targets."""
    targets = np.unique(np.array(gold.note_ids), return_inverse=True)[1]
    return paired_bootstrap(_hits(first, k), _hits(second, k), targets)


def format_table(rows: Sequence[RankerRow]) -> str:
    """Recall in percent with its 95% interval, and the average over several k, as a Markdown table."""
    several = len(rows[0].recall) > 1
    header = ["ranker", *(f"R@{k} (95% interval)" for k in rows[0].recall), *["Avg. (95% interval)"][:several]]
    body = [[*row.recall.values(), *[row.average][:several]] for row in rows]
    return markdown(header, [[row.name, *map(percent_interval, cells)] for row, cells in zip(rows, body, strict=True)])


def format_buckets(rows: Sequence[RankerRow]) -> str:
    """Recall in percent by exposure of the truth, as a Markdown table."""
    columns = [(bucket, k) for bucket, recall in rows[0].buckets.items() for k in recall]
    header = ["ranker", *(f"{bucket} R@{k}" for bucket, k in columns)]
    return markdown(header, [[row.name, *(percent(row.buckets[bucket][k]) for bucket, k in columns)] for row in rows])


def format_clicks(rows: Sequence[RankerRow], pairs: Mapping[str, int]) -> str:
    """Recall in percent by clicks of the truth, coldest first, as a Markdown table; ``pairs`` is how many there are."""
    header = ["truth with", "pairs", "ranker", *(f"R@{k} (95% interval)" for k in rows[0].recall)]
    body = [
        [bucket, f"{count:,}", row.name, *map(percent_interval, row.by_clicks[bucket].values())]
        for bucket, count in pairs.items()
        for row in rows
    ]
    return markdown(header, body)


def format_leads(leads: Sequence[Lead]) -> str:
    """NoteLLM's leads in points with their 95% intervals, as a Markdown table."""
    body = [[lead.over, f"R@{lead.k}", percent_interval(lead.lead)] for lead in leads]
    return markdown([f"{NOTELLM} ahead of", "at", "points (95% interval)"], body)


def _of_truths(buckets: Mapping[str, NDArray[np.bool_]], truths: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Which pairs have their truth in each bucket, bool, shape (P,); without buckets that hold none."""
    return {name: inside_N[truths] for name, inside_N in buckets.items() if inside_N[truths].any()}


def _scorer(ranker: Ranker, device: torch.device) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """Scores of the pool for places of targets, on the device: (T,) -> (T, N)."""
    import torch

    if isinstance(ranker, Embeddings):
        unit_ND = torch.from_numpy(ranker.unit_ND).to(device)
        return lambda places: unit_ND[torch.from_numpy(places).to(device)] @ unit_ND.T

    def checked(places: NDArray[np.int64]) -> torch.Tensor:
        scores_TN = ranker.scores(places.tolist())
        if not np.isfinite(scores_TN).all():
            raise ValueError(f"{ranker.name} gave a score that is not finite")
        return torch.from_numpy(scores_TN).to(device)

    return checked


def _ranks(
    scores_TN: torch.Tensor,
    row_of_pair: NDArray[np.int64],
    targets: NDArray[np.int64],
    truths: NDArray[np.int64],
) -> NDArray[np.int64]:
    import torch

    row_P, target_P, truth_P = (
        torch.from_numpy(places).to(scores_TN.device) for places in (row_of_pair, targets, truths)
    )
    pair_P = torch.arange(len(row_P), device=scores_TN.device)
    scores_PN = scores_TN[row_P]
    scores_PN[pair_P, target_P] = -torch.inf
    # From the same product as the others: summed in another order, the truth would not tie with its duplicates.
    truth_P1 = scores_PN[pair_P, truth_P].unsqueeze(1)
    higher_P = (scores_PN > truth_P1).sum(dim=1)
    equal_P = (scores_PN == truth_P1).sum(dim=1) - 1  # the truth itself
    ranks_P: NDArray[np.int64] = (higher_P + equal_P // 2).cpu().numpy()
    return ranks_P


def _hits(row: RankerRow, k: int) -> NDArray[np.float64]:
    return (row.ranks < k).astype(np.float64)
