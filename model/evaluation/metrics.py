"""Metrics (section 5), all as shares in 0..1.

Every one raises ValueError when there is nothing to score, and when prediction and truth differ in number.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.text.words import words, words_and_marks

Predicted = TypeVar("Predicted")
True_ = TypeVar("True_")


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over seeds, its 95% interval by a bootstrap (None for a figure of all texts at once, as BLEU is), and the
    standard deviation over the seeds (None for one seed)."""

    mean: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the bounds that a bootstrap puts around it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Scores that are close to each other: their mean, the share of them that were right, and how many they are."""

    score: float
    right: float
    count: int


def recall_at(ranks: Sequence[int] | NDArray[np.int64], ks: Sequence[int]) -> dict[int, float]:
    """Recall@k for each k: the share of truths among the first k.

    ``ranks`` are 0-based places of the truth in the pool without the target (section 5), shape (P,).
    """
    places = np.asarray(ranks)
    _refuse_none(places)
    return {k: float(np.mean(places < k)) for k in ks}


def average_hits(ranks: Sequence[int] | NDArray[np.int64], ks: Sequence[int]) -> NDArray[np.float64]:
    """The share of the ``ks`` within which each truth stands, shape (P,); their mean is the paper's Avg. (table 2)."""
    within_P: NDArray[np.float64] = np.mean(np.asarray(ranks)[:, None] < np.asarray(ks), axis=1)
    return within_P


def accuracy(predicted: Sequence[str | None], truth: Sequence[str]) -> float:
    """Share of categories that are right, but for case and outer white space; None is always wrong."""
    _refuse_none(truth)
    return float(np.mean([_folded(name) == _folded(true) for name, true in zip(predicted, truth, strict=True)]))


def illegal_share(predicted: Sequence[str | None], categories: Collection[str]) -> float:
    """Ill.: share of categories outside the closed set, but for case and white space; None is outside."""
    _refuse_none(predicted)
    legal = {_folded(name) for name in categories}
    return float(np.mean([_folded(name) not in legal for name in predicted]))


def bleu4(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Corpus BLEU with up to 4-grams of `words`, one reference a text.

    Orders that no predicted text is long enough for are left out: a perfect prediction of short texts scores
    1.
    """
    from sacrebleu.metrics import BLEU

    _refuse_none(truth)
    scorer = BLEU(tokenize="none", effective_order=True, force=True)
    pairs = [(" ".join(words(text)), " ".join(words(true))) for text, true in zip(predicted, truth, strict=True)]
    result = scorer.corpus_score([text for text, _ in pairs], [[true for _, true in pairs]])
    return min(1.0, float(result.score) / 100)


def bleu4_public_code(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """The authors' code calls it BLEU-4 (github.com/zcfinal/NoteLLM, eval_generation.py). It is not BLEU.

    There nltk's sentence_bleu gets the true words for references, so each word is a reference of single letters. They
    hold next to no four predicted words in a row, so the smoothing decides: 0.1 over the number of four words in a row
    that were predicted, or 0 where no predicted word is a letter or mark of the truth. A perfect prediction of three
    hashtags scores 0.05. Texts whose truth is blank are left out, as there.

    Chinese is cut by jieba, as there.
    """
    pairs = [(words_and_marks(text), words_and_marks(true)) for text, true in _zipped(predicted, truth)]
    scores = [_letters_bleu4(text, true) for text, true in pairs if true]
    _refuse_none(scores)
    return float(np.mean(scores))


def rouge_of_each(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """F1 of ``rouge1``, ``rouge2`` and ``rougeL`` of each text, counted in `words`, each of shape (texts,)."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=_Words())
    scores = [scorer.score(true, text) for text, true in _zipped(predicted, truth)]
    return {kind: np.array([score[kind].fmeasure for score in scores]) for kind in kinds}


def f1_of_each(predicted: Sequence[Sequence[str]], truth: Sequence[Collection[str]], k: int) -> NDArray[np.float64]:
    """F1 of each note's first k distinct hashtags against all true ones, shape (notes,), but for case and white space.

    Hashtags match as a whole or not at all. A note scores 0 when none matches, so also when it has no true
    hashtags.
    """
    return np.array([_f1(hashtags, true, k) for hashtags, true in _zipped(predicted, truth)])


def bootstrap(
    values: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """Mean of values, shape (P,), with the 95% interval of a percentile bootstrap of 1,000 samples.

    Whole groups are drawn: the related notes of one target are not independent of each other.

    Args:
        values: one figure a pair.
        groups: the group of each value, any integers, shape (P,); by default each value is its own.
    """
    _refuse_none(values)
    codes = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(codes, weights=values), np.bincount(codes)
    rng = np.random.default_rng(seed)
    means = np.empty(1000)
    for sample in range(len(means)):
        drawn = rng.integers(len(sums), size=len(sums))
        means[sample] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))


def paired_bootstrap(
    first: NDArray[np.float64], second: NDArray[np.float64], groups: NDArray[np.int64] | None = None
) -> Interval:
    """How much higher ``first`` is than ``second`` on the same pairs; see `bootstrap`."""
    return bootstrap(first - second, groups)


def reliability(score_C: NDArray[np.float64], right_C: NDArray[np.bool_]) -> list[Bin]:
    """Scores in 0..1 in ten bins of equal width, and how often they were right, lowest first, without empty bins."""
    _refuse_none(score_C)
    bin_C = np.minimum((score_C * 10).astype(int), 9)
    return [
        Bin(float(score_C[inside_C].mean()), float(right_C[inside_C].mean()), int(inside_C.sum()))
        for inside_C in (bin_C == number for number in range(10))
        if inside_C.any()
    ]


def calibration_error(score_C: NDArray[np.float64], right_C: NDArray[np.bool_]) -> float:
    """ECE: how far the mean score of a bin is from the share that was right, over the bins of `reliability`."""
    return sum(abs(one.score - one.right) * one.count for one in reliability(score_C, right_C)) / len(score_C)


def chance_calibration_error(score_C: NDArray[np.float64]) -> float:
    """The `calibration_error` that scores like these would show if every one of them were exact: it is never 0.

    The mean over 200 draws in which each is right with the probability that it states.
    """
    rng = np.random.default_rng(0)
    draws = (rng.random(len(score_C)) < score_C for _ in range(200))
    return float(np.mean([calibration_error(score_C, right_C) for right_C in draws]))


class _Words:
    """`words` with the interface of rouge_score's tokenizers."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _letters_bleu4(predicted: Sequence[str], true: Sequence[str]) -> float:
    """nltk's BLEU of order 4 with its smoothing method 1, for references that are the letters of single words."""
    if not set(predicted) & set("".join(true)):
        return 0.0
    grams = Counter(zip(*(predicted[start:] for start in range(4)), strict=False))
    spelled = [Counter(zip(*(word[start:] for start in range(4)), strict=False)) for word in true]
    matched = sum(min(count, max(word[gram] for word in spelled)) for gram, count in grams.items())
    precision = (matched or 0.1) / max(1, grams.total())
    closest = min((len(word) for word in true), key=lambda length: (abs(length - len(predicted)), length))
    return precision * min(1.0, math.exp(1 - closest / len(predicted)))


def _zipped(predicted: Sequence[Predicted], truth: Sequence[True_]) -> list[tuple[Predicted, True_]]:
    _refuse_none(truth)
    return list(zip(predicted, truth, strict=True))


def _refuse_none(values: Sized) -> None:
    if not len(values):
        raise ValueError("there is nothing to score: a mean over no values does not exist")


def _folded(name: str | None) -> str | None:
    return None if name is None else name.strip().casefold()


def _f1(predicted: Sequence[str], truth: Collection[str], k: int) -> float:
    first = set(list(dict.fromkeys(map(_folded, predicted)))[:k])
    true = set(map(_folded, truth))
    return 2 * len(first & true) / max(1, len(first) + len(true))
