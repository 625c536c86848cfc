"""What becomes of a new model that is tried on readers: the rule by which `notellm learn` ships it or takes it back."""

from dataclasses import dataclass
from typing import Literal

from service.experiments.report import fallen_guards, harm, split, verdict
from service.experiments.results import Results
from service.experiments.statistics import SPLIT_ERROR_RATE, lift
from service.store.experiments.records import Experiment


@dataclass(frozen=True, slots=True)
class Decision:
    """``ship``: the second arm's model answers from now on; ``take back``: the first one's; ``wait``: too early."""

    do: Literal["ship", "take back", "wait"]
    why: str


def decide(experiment: Experiment, results: Results, now_s: float, most_days: float) -> Decision:
    """The decision as of now; it may be asked for as often as wanted, as the intervals hold at every look.

    Shipped when it surely gets more clicks and no guard falls. Taken back as soon as it surely gets fewer, does harm or
    the split is broken, and at the end of ``most_days`` without a difference: an advantage that nobody can see is not
    worth a change.
    """
    said = verdict(experiment, results)
    if split(results) < SPLIT_ERROR_RATE or harm(results):
        return Decision("take back", said)
    change = lift(*(arm.clicks for arm in results.arms))
    if change is not None and change.is_more:
        return Decision("take back" if fallen_guards(results) else "ship", said)
    if change is not None and change.is_less:
        return Decision("take back", said)
    if now_s - experiment.started_at > most_days * 86_400:
        return Decision("take back", f"{most_days:g} days are over. {said}")
    return Decision("wait", said)
