"""The report of an experiment as figures, for those who draw it: `service.experiments.report` says it in words."""

from collections.abc import Sequence
from datetime import UTC, datetime

from model.evaluation.online.ratio import Rate
from service.contract.experiments import (
    ArmReportOut,
    ChangeOut,
    DayOut,
    EstimateOut,
    GuardOut,
    ReportOut,
    SplitOut,
)
from service.contract.fields import time_of
from service.experiments.report import finding, guards, split, verdict
from service.experiments.results import ArmResults, Results
from service.experiments.statistics import SPLIT_ERROR_RATE, Counts, lift, rate_interval
from service.store.experiments.records import Experiment

MOST_DAYS = 60
_DAY_S = 86_400


def report_out(experiment: Experiment, results: Results, now_s: float) -> ReportOut:
    """The report as it is told to gateways."""
    first, second = (arm.name for arm in experiment.arms)
    p_value = split(results)
    days = sorted({day for day, _ in results.days})[-MOST_DAYS:]
    return ReportOut(
        made=time_of(now_s),
        until=None if results.until_s is None else time_of(results.until_s),
        finding=finding(results),
        verdict=verdict(experiment, results),
        arms=(_arm(first, results.arms[0]), _arm(second, results.arms[1])),
        clicks=_change([arm.clicks for arm in results.arms]),
        hashtags=_change([arm.accepted for arm in results.arms]),
        split=SplitOut(p_value=p_value, holds=p_value >= SPLIT_ERROR_RATE),
        guards=[
            GuardOut(
                name=guard.name,
                first=guard.values[0],
                second=guard.values[1],
                low=guard.interval and guard.interval[0],
                high=guard.interval and guard.interval[1],
                says=guard.says,
            )
            for guard in guards(results)
        ],
        days=[
            DayOut(
                day=f"{datetime.fromtimestamp(day * _DAY_S, UTC):%Y-%m-%d}",
                first=_share(results.days.get((day, first))),
                second=_share(results.days.get((day, second))),
            )
            for day in days
        ],
        impressions=results.has_impressions,
    )


def _arm(name: str, arm: ArmResults) -> ArmReportOut:
    return ArmReportOut(
        name=name,
        readers=arm.readers,
        answers=arm.answers,
        shown=int(arm.clicks.trials.sum()),
        clicked=int(arm.clicks.successes.sum()),
        ctr=_estimate(arm.clicks),
        suggested=int(arm.accepted.trials.sum()),
        accepted=int(arm.accepted.successes.sum()),
        acceptance=_estimate(arm.accepted),
        slow_s=arm.slow_s,
    )


def _estimate(counts: Counts) -> EstimateOut | None:
    if not counts.readers:
        return None
    low, high = rate_interval(counts) or (None, None)
    return EstimateOut(value=counts.rate, low=low, high=high)


def _share(rate: Rate | None) -> EstimateOut | None:
    return None if rate is None else EstimateOut(value=rate.share.mean, low=rate.share.low, high=rate.share.high)


def _change(arms: Sequence[Counts]) -> ChangeOut | None:
    change = lift(*arms)
    if change is None:
        return None
    low, high = change.interval
    return ChangeOut(value=change.estimate, low=low, high=high, p_value=change.p_value)
