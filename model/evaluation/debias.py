"""Popularity debias: ``score = cosine - debias * b * log(1 + exposure)``, with ``debias`` in 0..1 chosen by the reader.

b is fitted so that at ``debias`` = 1 the lists no longer favor popular notes: the mean of log(1 + exposure) over all
lists of related notes is the pool's. The slope of the cosines on log(1 + exposure) would be simpler, and wrong: over
all pairs of notes it is that of pairs no list shows, and among the nearest it is flattened, because a note is there
only by being near.

Shapes: N notes in the pool, T targets, D embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.data.cooccurrence import split_notes
from model.data.pairs import Pairs
from model.evaluation.baselines import Embeddings, Ranker
from model.evaluation.metrics import Interval
from model.evaluation.retrieval import KS, RankerRow, evaluate_rankers, exposure_of, lead_at
from model.evaluation.tables import markdown, percent, percent_interval
from model.note import Note

VALIDATION_SHARE = 0.2
STEPS = (0.0, 0.5, 1.0)
# As many related notes as the service answers with by default.
DEPTH = 10

_MAX_TARGETS = 1000
_MAX_SCORES = 2**26  # 256 MiB of float32
_HALVINGS = 30


@dataclass(frozen=True, slots=True)
class DebiasRow:
    """A ranker at one ``debias``. ``lost`` maps k to the loss of Recall@k, paired; negative is a gain."""

    debias: float
    ranker: RankerRow
    lost: dict[int, Interval]


class Debiased:
    """A ranker with popularity taken out of its scores.

    Args:
        exposure_N: how often each note of the pool was shown.
        weight: ``debias * b``; 0 changes nothing.
    """

    def __init__(self, ranker: Ranker, exposure_N: NDArray[np.int64], weight: float) -> None:
        self.name = ranker.name
        self._ranker = ranker
        self._prior_N = (weight * np.log1p(exposure_N)).astype(np.float32)

    def scores(self, targets: Sequence[int]) -> NDArray[np.float32]:
        """Score less prior, shape (len(targets), N)."""
        debiased_TN: NDArray[np.float32] = self._ranker.scores(targets) - self._prior_N
        return debiased_TN


def validation_notes(training: Sequence[Note], seed: int, share: float = VALIDATION_SHARE) -> list[Note]:
    """The training notes that the weight is fitted on: a ``share`` of them, each drawn by its own hash, in order.

    ``seed`` is that of the split that set the training notes apart.
    """
    # Under the split's own seed every training note has a hash above the holdout: a small share would be empty.
    drawn = split_notes((note.id for note in training), share, seed + 1)
    return [note for note in training if note.id in drawn]


def fit_popularity_weight(
    emb_ND: NDArray[np.float32], exposure_N: NDArray[np.int64], depth: int = DEPTH, seed: int = 0
) -> float:
    """b: the smallest weight at which lists of the ``depth`` best notes have no more log(1 + exposure) than the pool.

    The mean over the lists never rises with the weight, so halving an interval finds it. 0 where the lists favor
    nothing to begin with.

    Args:
        emb_ND: embeddings of validation notes, any norm; they are targets and pool at once. A thousand targets are
            drawn at most, fewer above 67,000 notes to stay within 256 MiB.

    Raises:
        ValueError: if there are not twice ``depth`` notes: lists of nearly all notes favor none.
    """
    num_notes = len(emb_ND)
    if num_notes < 2 * depth:
        raise ValueError(f"{num_notes} notes are too few to fit the popularity weight on, {2 * depth} are needed")
    num_targets = min(num_notes, _MAX_TARGETS, max(1, _MAX_SCORES // num_notes))
    targets = np.sort(np.random.default_rng(seed).choice(num_notes, num_targets, replace=False))
    cosine_TN = Embeddings("validation", emb_ND).scores(targets.tolist())
    cosine_TN[np.arange(num_targets), targets] = -np.inf
    popularity_N = np.log1p(exposure_N).astype(np.float32)
    total = popularity_N.sum(dtype=np.float64)
    # Without the target itself, as the lists are: then some weight is always large enough.
    fair = float(np.mean((total - popularity_N[targets]) / (num_notes - 1))) + 1e-6

    def favors(weight: float) -> bool:
        best_TK = np.argpartition(weight * popularity_N - cosine_TN, depth - 1, axis=1)[:, :depth]
        return bool(popularity_N[best_TK].mean(dtype=np.float64) > fair)

    if not favors(0.0):
        return 0.0
    low, high = 0.0, 0.01
    while favors(high):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if favors(middle) else (low, middle)
    return high


def evaluate_debias(
    ranker: Ranker,
    weight: float,
    pool: Sequence[Note],
    gold: Pairs,
    steps: Sequence[float] = STEPS,
    ks: Sequence[int] = KS,
) -> list[DebiasRow]:
    """The ranker at every ``debias`` of ``steps``; ``weight`` is b. Raises ValueError as `evaluate_rankers` does."""
    exposure_N = exposure_of(pool)
    [plain] = evaluate_rankers([ranker], pool, gold, ks)
    rows = []
    for debias in steps:
        [row] = evaluate_rankers([Debiased(ranker, exposure_N, debias * weight)], pool, gold, ks) if debias else [plain]
        rows.append(DebiasRow(debias, row, {k: lead_at(plain, row, gold, k) for k in ks}))
    return rows


def format_debias(rows: Sequence[DebiasRow]) -> str:
    """Recall by exposure of the truth, recall overall and its loss, in percent, as a Markdown table."""
    first = rows[0].ranker
    columns = [(bucket, k) for bucket, recall in first.buckets.items() for k in recall]
    overall = [title for k in first.recall for title in (f"R@{k} (95% interval)", f"lost at R@{k} (95% interval)")]
    header = ["debias", *(f"{bucket} R@{k}" for bucket, k in columns), *overall]
    body = []
    for row in rows:
        buckets = [percent(row.ranker.buckets[bucket][k]) for bucket, k in columns]
        recall = [percent_interval(figures[k]) for k in first.recall for figures in (row.ranker.recall, row.lost)]
        body.append([f"{row.debias:g}", *buckets, *recall])
    return markdown(header, body)
