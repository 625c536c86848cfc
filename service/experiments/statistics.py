"""What the counts of an experiment say: rates, the lift between two arms, and whether readers were split as planned.

Pure functions of counts by reader. A reader's answers resemble each other, and some readers have a thousand times as
many as others, so the reader is the unit and no answer is (Deng et al. 2018, https://arxiv.org/abs/1803.06336).
Variances are those of the jackknife over readers: with heavy tails the delta method's are too small.

An experiment is looked at many times. `Change.interval` holds at all looks together, in 95 of 100 experiments: it is
the normal mixture of Robbins, which is the mixture sequential probability ratio test of Johari et al. 2017
(https://arxiv.org/abs/1512.04922), with an estimated variance (asymptotic confidence sequences, Waudby-Smith et al.
2021, https://arxiv.org/abs/2103.06476). ``at_once`` holds for one look alone, planned beforehand.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import gammaln

ERROR_RATE = 0.05
# Readers, weighted by their share in the trials (`effective`), below which no sum is near a normal distribution.
FEWEST_READERS = 30
# The lift, and the difference of shares, for which `Change.interval` is narrowest soonest. Fixed, for to choose one by
# the data would void the error rate.
TYPICAL_LIFT = 0.2
TYPICAL_DIFFERENCE = 0.01
# How narrow the mixture of broken splits is: of two equal arms the shares have a standard deviation of 0.05.
TYPICAL_SPLIT = 100.0
# Broken splits are rare and cost the whole experiment: the field's usual bound.
SPLIT_ERROR_RATE = 0.001

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Of one arm: each reader's ``successes`` in ``trials``, shape (R,), as clicks in impressions; some trials in all.

    Not only counts: a sum of seconds in a number of answers is a mean.
    """

    successes: NDArray[np.float64]
    trials: NDArray[np.float64]

    @classmethod
    def of(cls, successes: ArrayLike, trials: ArrayLike) -> "Counts":
        """Any arrays of numbers. Readers without a trial say nothing and are left out."""
        successes_R, trials_R = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
        return cls(successes_R[trials_R > 0], trials_R[trials_R > 0])

    @property
    def readers(self) -> int:
        """How many have a trial."""
        return len(self.trials)

    @property
    def effective(self) -> float:
        """How many readers with equally many trials would weigh as much (Kish): few, where a few have most trials."""
        return float(self.trials.sum() ** 2 / (self.trials**2).sum()) if self.readers else 0.0

    @property
    def rate(self) -> float:
        """Successes in all trials; NaN without a trial."""
        return float(self.successes.sum() / self.trials.sum()) if self.readers else math.nan

    @property
    def variance(self) -> float:
        """Variance of ``rate`` over draws of readers, by leaving out each in turn; NaN with fewer than two."""
        if self.readers < 2:
            return math.nan
        without_R = (self.successes.sum() - self.successes) / (self.trials.sum() - self.trials)
        return float((self.readers - 1) / self.readers * ((without_R - self.rate) ** 2).sum())

    @property
    def says_enough(self) -> bool:
        """Whether there are readers enough for an interval, and some success among them."""
        return self.effective >= FEWEST_READERS and self.variance > 0


@dataclass(frozen=True, slots=True)
class Change:
    """How much an arm differs from the first: an estimate, and two intervals of 95%; see the module."""

    estimate: float
    interval: Interval
    at_once: Interval
    p_value: float

    @property
    def is_more(self) -> bool:
        """Whether the arm is above the first one, at any number of looks."""
        return self.interval[0] > 0

    @property
    def is_less(self) -> bool:
        """The same, below."""
        return self.interval[1] < 0


def rate_interval(counts: Counts) -> Interval | None:
    """95% interval of a rate as of one look, by Student's t; None when too little is known."""
    if not counts.says_enough:
        return None
    half = float(stats.t.ppf(1 - ERROR_RATE / 2, counts.effective - 1)) * math.sqrt(counts.variance)
    return max(counts.rate - half, 0.0), counts.rate + half


def lift(first: Counts, second: Counts) -> Change | None:
    """By what share the second arm's rate is above the first's, 0.1 for 10%; None when too little is known.

    Computed of the logarithm of the ratio, which is nearer to normal.
    """
    if not (first.says_enough and second.says_enough):
        return None
    variance = first.variance / first.rate**2 + second.variance / second.rate**2
    change = _change(math.log(second.rate / first.rate), variance, TYPICAL_LIFT)
    low, high = change.interval
    return Change(
        math.expm1(change.estimate),
        (math.expm1(low), math.expm1(high)),
        (math.expm1(change.at_once[0]), math.expm1(change.at_once[1])),
        change.p_value,
    )


def difference(first: Counts, second: Counts, fewest: int = FEWEST_READERS) -> Change | None:
    """The second arm's rate minus the first's, of which one may be 0; None when too little is known.

    ``fewest`` is for counts of groups of readers, whose sums are nearer to normal than those of readers.
    """
    variance = first.variance + second.variance
    if min(first.effective, second.effective) < fewest or not variance > 0:
        return None
    return _change(second.rate - first.rate, variance, TYPICAL_DIFFERENCE)


def split_p_value(readers: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """How likely readers who come one by one are ever so far from the planned shares; 1 without a reader.

    Holds at every look: of sound splits no more than a share p ever gets a p-value of p, however often they are looked
    at. It is the planned shares' likelihood over that of the Dirichlet mixture of shares around them, of which
    `TYPICAL_SPLIT` are all parameters together (Lindon and Malek 2022, https://arxiv.org/abs/2011.03567).
    """
    total = sum(shares.values())
    planned_A = np.array([shares[arm] / total for arm in readers])
    counts_A, prior_A = np.array(list(readers.values())), TYPICAL_SPLIT * planned_A
    mixed = (gammaln(prior_A + counts_A) - gammaln(prior_A)).sum()
    mixed -= gammaln(TYPICAL_SPLIT + counts_A.sum()) - gammaln(TYPICAL_SPLIT)
    return min(1.0, math.exp(float((counts_A * np.log(planned_A)).sum() - mixed)))


def _change(estimate: float, variance: float, typical: float) -> Change:
    """Of a normal estimate. The mixture is over true values with the standard deviation ``typical``."""
    spread = math.sqrt(variance)
    at_once = float(stats.norm.ppf(1 - ERROR_RATE / 2)) * spread
    growth = 1 + typical**2 / variance
    always = spread * math.sqrt((1 + variance / typical**2) * (math.log(growth) + 2 * math.log(1 / ERROR_RATE)))
    # The likelihood ratio of the mixture to no change, as a logarithm: its inverse is a p-value at every look.
    log_ratio = estimate**2 / (2 * variance) * (1 - 1 / growth) - math.log(growth) / 2
    return Change(
        estimate,
        (estimate - always, estimate + always),
        (estimate - at_once, estimate + at_once),
        min(1.0, math.exp(-log_ratio)),
    )
