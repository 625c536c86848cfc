"""The bound on chance of the guard, against the binomial distribution written out."""

import math

import pytest

from service.experiments.guard import is_above

# Of four standard deviations, one side.
CHANCE = 3.2e-5


def chance_of(bad: int, trials: int, share: float) -> float:
    """Of ``bad`` ones or more among the trials, written out."""
    return sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(bad, trials + 1))


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.06, 0.5])
def test_it_acts_on_what_chance_hardly_does_and_on_all_that_is_far_beyond_it_however_few_the_answers(limit):
    for trials in (1, 2, 5, 6, 10, 17, 40, 100):
        acts = [bad for bad in range(trials + 1) if is_above([(bad, trials)], limit)]

        assert all(chance_of(bad, trials, limit) <= CHANCE for bad in acts)
        far = [bad for bad in range(trials + 1) if chance_of(bad, trials, limit) < CHANCE**2]
        assert set(far) <= set(acts)


def test_a_share_at_its_limit_or_below_is_not_above_it_however_many_the_answers():
    assert not is_above([(50_000, 1_000_000)], 0.05)
    assert not is_above([(0, 1_000_000)], 0.05)
    assert not is_above([(1000, 1000)], 1.0)
    assert is_above([(60_000, 1_000_000)], 0.05)
