"""Whether experiments say what is true, on simulated readers.

    python tests/bench/experiments.py [--experiments 200] [--lift 0.2] [--seed 0]

Readers (`support.readers`) click at rates of their own, come back on 14 days, and the busiest tenth has two thirds of
the impressions. The product's own hash says who is in which arm. Every experiment is looked at on each day. Wrong
analyses run beside the right ones, and have to fail: ``peeking`` looks daily at an interval for one look,
``unclustered`` takes each impression for a reader. Of `SPLITS` splits whose readers come over the days, broken ones
lose a quarter of the second arm's readers, and their twin is the chi-square test for one look. The last line is one
JSON object; the exit status is 1 if one of its promises does not hold.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy import stats
from support.readers import DAYS, Readers, unclustered

from service.experiments.assignment import arm_of
from service.experiments.statistics import ERROR_RATE, SPLIT_ERROR_RATE, Change, Counts, lift, split_p_value
from service.store.experiments.records import SLOTS, Arm, Experiment

READERS, LOST, SPLITS = 3000, 0.25, 5000
EVEN = {"A": 1.0, "B": 1.0}
HELD = 0.93


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--lift", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = np.random.default_rng(options.seed)
    readers = Readers(chance, READERS, arm_of=_arm)
    without = [readers.draw(0.0) for _ in range(options.experiments)]
    with_lift = [readers.draw(options.lift) for _ in range(options.experiments)]
    found = {
        "experiments": options.experiments,
        "looks": DAYS,
        "readers": READERS,
        "busiest_tenth": round(float(np.mean([_busiest(first[-1]) for first, _ in without])), 3),
        "no_lift": _alarms(without),
        "lift": {"true": options.lift} | _coverage(with_lift, options.lift),
        "split": _splits(chance),
    }
    promises = [
        found["no_lift"]["at_one_look"] <= ERROR_RATE,
        found["no_lift"]["at_any_look"] <= ERROR_RATE,
        found["no_lift"]["twin_peeking"] > ERROR_RATE,
        found["lift"]["held"] >= HELD,
        found["lift"]["twin_unclustered_held"] < HELD,
        found["split"]["broken_caught"] >= 0.99,
        found["split"]["sound_refused"] <= SPLIT_ERROR_RATE,
        found["split"]["twin_sound_refused"] > SPLIT_ERROR_RATE,
    ]
    print(json.dumps(found | {"holds": all(promises)}))
    sys.exit(not all(promises))


def _arm(number: int, reader: int) -> int:
    arms = Arm("A", "", {}), Arm("B", "", {})
    experiment = Experiment(f"experiment-{number}", arms, ((0, SLOTS),), 0.0)
    return arms.index(arm_of(experiment, f"reader-{reader}"))


def _busiest(arm: Counts) -> float:
    return float(np.sort(arm.trials)[-arm.readers // 10 :].sum() / arm.trials.sum())


def _changes(days: tuple[Sequence[Counts], Sequence[Counts]]) -> list[Change]:
    return [change for pair in zip(*days, strict=True) if (change := lift(*pair))]


def _alarms(experiments: Sequence[tuple[list[Counts], list[Counts]]]) -> dict[str, float]:
    """Shares of experiments in which there is a lift, by what is said."""
    looks = [_changes(one) for one in experiments]
    count = len(looks)
    return {
        "at_one_look": sum(_excludes_none(changes[-1].interval) for changes in looks) / count,
        "at_any_look": sum(any(_excludes_none(change.interval) for change in changes) for changes in looks) / count,
        "one_planned_look": sum(_excludes_none(changes[-1].at_once) for changes in looks) / count,
        "twin_peeking": sum(any(_excludes_none(change.at_once) for change in changes) for changes in looks) / count,
        "twin_unclustered": sum(_excludes_none(unclustered(first[-1], second[-1])) for first, second in experiments)
        / count,
    }


def _excludes_none(interval: tuple[float, float]) -> bool:
    return not interval[0] <= 0 <= interval[1]


def _coverage(experiments: Sequence[tuple[list[Counts], list[Counts]]], true: float) -> dict[str, float]:
    looks = [_changes(one) for one in experiments]
    count = len(looks)

    def holds(interval: tuple[float, float]) -> bool:
        return interval[0] <= true <= interval[1]

    return {
        "held": sum(holds(changes[-1].interval) for changes in looks) / count,
        "held_at_every_look": sum(all(holds(change.interval) for change in changes) for changes in looks) / count,
        "held_at_one_planned_look": sum(holds(changes[-1].at_once) for changes in looks) / count,
        "seen_by_the_end": sum(any(change.is_more for change in changes) for changes in looks) / count,
        "twin_unclustered_held": sum(holds(unclustered(first[-1], second[-1])) for first, second in experiments)
        / count,
    }


def _splits(chance: np.random.Generator) -> dict[str, float]:
    """Shares of `SPLITS` splits that are refused at any daily look, by `split_p_value` and by a twin for one look.

    ``readers_until_caught`` are those of both arms at the first look after which half of the broken ones are.
    """

    def twin(readers: Mapping[str, int], _: object) -> float:
        return float(stats.chisquare(list(readers.values())).pvalue)

    def refused(lost: float, p_value: Callable[[Mapping[str, int], Mapping[str, float]], float]) -> list[int]:
        """Readers at the look that refuses each split; those of none are left out."""
        found = []
        for _ in range(SPLITS):
            new_D = chance.poisson(READERS / DAYS, DAYS)
            second_D = chance.binomial(new_D, (1 - lost) / (2 - lost)).cumsum()
            for total, second in zip(new_D.cumsum().tolist(), second_D.tolist(), strict=True):
                if p_value({"A": total - second, "B": second}, EVEN) < SPLIT_ERROR_RATE:
                    found.append(total)
                    break
        return found

    sound, broken = refused(0, split_p_value), refused(LOST, split_p_value)
    twin_sound, twin_broken = refused(0, twin), refused(LOST, twin)
    return {
        "sound_refused": len(sound) / SPLITS,
        "twin_sound_refused": len(twin_sound) / SPLITS,
        "broken_caught": len(broken) / SPLITS,
        "readers_until_caught": float(np.median(broken)),
        "twin_readers_until_caught": float(np.median(twin_broken)),
    }


if __name__ == "__main__":
    main()
