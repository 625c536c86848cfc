"""What counts by reader say, held against sums written out, other formulas, and readers drawn at random."""

import math

import numpy as np
import pytest
from scipy import integrate, stats
from support.readers import DAYS, Readers, unclustered

from service.experiments.statistics import (
    ERROR_RATE,
    SPLIT_ERROR_RATE,
    TYPICAL_LIFT,
    TYPICAL_SPLIT,
    Counts,
    difference,
    lift,
    rate_interval,
    split_p_value,
)

EXPERIMENTS = 60


@pytest.fixture
def readers() -> Readers:
    return Readers(np.random.default_rng(5))


def test_a_reader_counts_as_one_however_often_their_answers_are_repeated():
    once = Counts.of([1, 0, 2, 0] * 20, [10, 4, 10, 6] * 20)
    often = Counts.of([100, 0, 200, 0] * 20, [1000, 400, 1000, 600] * 20)

    assert often.rate == once.rate == pytest.approx(0.1)
    assert often.variance == pytest.approx(once.variance)
    assert rate_interval(often) == pytest.approx(rate_interval(once))


def test_with_one_trial_a_reader_the_variance_is_that_of_a_share():
    successes = [1] * 30 + [0] * 70

    assert Counts.of(successes, [1] * 100).variance == pytest.approx(0.3 * 0.7 / 99)


def test_the_variance_is_the_spread_of_the_rate_over_draws_of_readers(readers):
    arm = readers.draw(lift=0)[0][DAYS - 1]
    chance = np.random.default_rng(0)
    draws = [chance.integers(arm.readers, size=arm.readers) for _ in range(400)]
    rates = [arm.successes[rows].sum() / arm.trials[rows].sum() for rows in draws]

    assert math.sqrt(arm.variance) == pytest.approx(np.std(rates), rel=0.15)


def test_readers_without_a_trial_say_nothing():
    counts = Counts.of([1, 0, 0], [4, 0, 2])

    assert (counts.readers, counts.rate) == (2, pytest.approx(1 / 6))


def test_a_few_readers_with_most_of_the_trials_weigh_as_few():
    assert Counts.of([0] * 50, [3] * 50).effective == pytest.approx(50)
    assert Counts.of([0] * 50, [10_000] + [1] * 49).effective == pytest.approx(1, abs=0.02)


def test_of_too_few_readers_or_of_none_with_a_success_nothing_is_said():
    enough, few = Counts.of([1, 0] * 50, [5] * 100), Counts.of([1, 0] * 10, [5] * 20)
    heavy, never = Counts.of([1, 0] * 50, [9999] + [1] * 99), Counts.of([0] * 100, [5] * 100)

    assert lift(enough, enough) is not None
    for silent in (few, heavy, never, Counts.of([], [])):
        assert lift(enough, silent) is None
        assert lift(silent, enough) is None
        assert rate_interval(silent) is None


def test_a_difference_can_be_told_from_an_arm_that_never_had_any():
    never, sometimes = Counts.of([0] * 400, [5] * 400), Counts.of([0, 1] * 200, [5] * 400)
    change = difference(never, sometimes)

    assert change is not None
    assert change.estimate == pytest.approx(0.1)
    assert change.is_more


def test_the_interval_is_where_the_mixed_likelihood_ratio_stays_below_the_bound():
    """Of the module's bound, its two formulas, and the mixture as an integral over true lifts."""
    first, second = Counts.of([1, 0, 1, 3] * 300, [9] * 1200), Counts.of([1, 1, 1, 3] * 300, [9] * 1200)
    change = lift(first, second)
    assert change is not None
    estimate = math.log(second.rate / first.rate)
    spread = math.sqrt(first.variance / first.rate**2 + second.variance / second.rate**2)

    def ratio(about: float) -> float:
        def mixed(true: float) -> float:
            likelihood = stats.norm.pdf(estimate, true, spread) / stats.norm.pdf(estimate, about, spread)
            return float(likelihood * stats.norm.pdf(true, about, TYPICAL_LIFT))

        return float(integrate.quad(mixed, about - 1, about + 1, limit=200)[0])

    assert change.p_value == pytest.approx(min(1, 1 / ratio(0)))
    for end in change.interval:
        assert ratio(math.log1p(end)) == pytest.approx(1 / ERROR_RATE)
    assert change.interval[0] < change.at_once[0] < change.estimate < change.at_once[1] < change.interval[1]


EVEN = {"A": 1.0, "B": 1.0}


def test_a_split_that_is_as_planned_passes_and_a_broken_one_does_not():
    assert split_p_value({"A": 5030, "B": 4970}, EVEN) == 1
    assert split_p_value({"A": 5300, "B": 4700}, EVEN) < SPLIT_ERROR_RATE
    assert split_p_value({"A": 9000, "B": 1000}, {"A": 0.9, "B": 0.1}) == 1
    assert split_p_value({"A": 0, "B": 0}, EVEN) == 1


def test_the_p_value_of_a_split_is_the_plans_likelihood_over_that_of_a_mixture_around_it():
    """Written out: two arms as a beta-binomial distribution, three as a Dirichlet-multinomial one."""
    two = stats.binom.pmf(530, 1000, 0.5) / stats.betabinom.pmf(530, 1000, TYPICAL_SPLIT / 2, TYPICAL_SPLIT / 2)
    shares, counts = [0.5, 0.3, 0.2], [520, 240, 240]
    mixture = stats.dirichlet_multinomial.pmf(counts, [TYPICAL_SPLIT * share for share in shares], 1000)
    three = stats.multinomial.pmf(counts, 1000, shares) / mixture

    assert split_p_value({"A": 530, "B": 470}, EVEN) == pytest.approx(two)
    assert split_p_value(dict(zip("ABC", counts, strict=True)), dict(zip("ABC", [5, 3, 2], strict=True))) == (
        pytest.approx(three)
    )
    assert 0 < three < two < 1


@pytest.mark.parametrize(("lost", "least", "most"), [(0.0, 0.0, SPLIT_ERROR_RATE), (0.25, 0.99, 1.0)])
def test_a_sound_split_is_seldom_refused_at_any_of_14_daily_looks_and_a_broken_one_is_caught(lost, least, most):
    """A twin, the chi-square test for one look, refuses sound ones more often than it says."""
    chance = np.random.default_rng(3)
    daily_ED = chance.poisson(3000 / DAYS, (2000, DAYS))
    second_ED = chance.binomial(daily_ED, (1 - lost) / (2 - lost)).cumsum(1)
    first_ED = daily_ED.cumsum(1) - second_ED
    refused = twin = 0
    for days in zip(first_ED.tolist(), second_ED.tolist(), strict=True):
        looks = list(zip(*days, strict=True))
        refused += min(split_p_value({"A": one, "B": other}, EVEN) for one, other in looks) < SPLIT_ERROR_RATE
        twin += max((one - other) ** 2 / (one + other) for one, other in looks) > stats.chi2.isf(SPLIT_ERROR_RATE, 1)

    assert least <= refused / 2000 <= most
    assert twin / 2000 > 2 * SPLIT_ERROR_RATE


def test_without_a_lift_daily_looks_alarm_seldom_and_those_of_a_twin_for_one_look_often(readers):
    alarms = peeking = 0
    for _ in range(EXPERIMENTS):
        changes = [change for pair in zip(*readers.draw(lift=0), strict=True) if (change := lift(*pair))]
        assert changes
        alarms += any(change.is_more or change.is_less for change in changes)
        peeking += any(change.at_once[0] > 0 or change.at_once[1] < 0 for change in changes)

    assert alarms <= ERROR_RATE * EXPERIMENTS
    assert peeking > ERROR_RATE * EXPERIMENTS


def test_a_known_lift_is_in_the_interval_and_not_in_that_of_a_twin_which_counts_impressions(readers):
    held = at_once = twin = 0
    for _ in range(EXPERIMENTS):
        first, second = (days[-1] for days in readers.draw(lift=0.2))
        change = lift(first, second)
        assert change is not None
        held += change.interval[0] <= 0.2 <= change.interval[1]
        at_once += change.at_once[0] <= 0.2 <= change.at_once[1]
        low, high = unclustered(first, second)
        twin += low <= 0.2 <= high

    assert held >= 0.93 * EXPERIMENTS
    assert at_once >= 0.88 * EXPERIMENTS  # three errors of sampling below 95 of 100
    assert twin < 0.6 * EXPERIMENTS
