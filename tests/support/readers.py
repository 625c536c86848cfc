"""Readers drawn at random, as statistics of experiments meet them, and a twin that takes impressions for units."""

import math
from collections.abc import Callable

import numpy as np

from service.experiments.statistics import Counts

DAYS = 14
# Each reader clicks at a rate of their own: 5% in the mean, a beta distribution with a deviation of 3.4 points.
_CLICKS, _OTHERS = 2.0, 38.0
# Impressions of the r-th busiest reader go with 1 / r (Zipf), between these two a day.
_BUSIEST, _IDLEST = 140.0, 0.05
_Z = 1.959964  # a single look, 95%


class Readers:
    """Experiments, one a call of `draw`, on ``count`` readers who come back day after day."""

    def __init__(
        self, chance: np.random.Generator, count: int = 3000, *, arm_of: Callable[[int, int], int] | None = None
    ) -> None:
        """``arm_of`` says of an experiment's number and a reader's whether the reader is in arm 0 or 1."""
        self._chance = chance
        self._count = count
        self._arm_of = arm_of
        self._experiments = 0

    def draw(self, lift: float) -> tuple[list[Counts], list[Counts]]:
        """Both arms' clicks in impressions up to each day; the second's readers click by ``lift`` more often."""
        self._experiments += 1
        if self._arm_of:
            second_R = np.array([self._arm_of(self._experiments, reader) for reader in range(self._count)]) == 1
        else:
            second_R = self._chance.random(self._count) < 0.5
        rates_R = self._chance.beta(_CLICKS, _OTHERS, self._count) * np.where(second_R, 1 + lift, 1)
        ranks_R = self._chance.permutation(self._count) + 1
        daily_R = np.clip(self._count / 2 / ranks_R, _IDLEST, _BUSIEST)
        impressions_RD = self._chance.poisson(daily_R[:, None], (self._count, DAYS))
        clicks_RD = self._chance.binomial(impressions_RD, np.minimum(rates_R, 1)[:, None])
        shown_RD, clicked_RD = impressions_RD.cumsum(1), clicks_RD.cumsum(1)
        first, second = (
            [Counts.of(clicked_RD[rows, day], shown_RD[rows, day]) for day in range(DAYS)]
            for rows in (~second_R, second_R)
        )
        return first, second


def unclustered(first: Counts, second: Counts) -> tuple[float, float]:
    """The interval of the lift as if each impression came from another reader."""
    variance = sum(1 / arm.successes.sum() - 1 / arm.trials.sum() for arm in (first, second))
    estimate, half = math.log(second.rate / first.rate), _Z * math.sqrt(variance)
    return math.expm1(estimate - half), math.expm1(estimate + half)
