"""The report of an experiment, for somebody who has to decide: one sentence, then the figures behind it."""

from collections.abc import Callable
from datetime import UTC, datetime

from model.evaluation.tables import markdown
from service.experiments.results import ArmResults, Results
from service.experiments.statistics import (
    FEWEST_READERS,
    SPLIT_ERROR_RATE,
    Change,
    Counts,
    difference,
    lift,
    rate_interval,
    split_p_value,
)
from service.store.experiments.records import Experiment

# A guard falls where an arm is surely worse than this: its lists take longer by a tenth, or reach a fifth fewer notes.
_SLOWER, _FEWER = 0.1, 0.2
_WIDTH = 61


def split(results: Results) -> float:
    """The p-value of the sample-ratio test: both arms are to have as many readers."""
    first, second = results.arms
    return split_p_value({"first": first.readers, "second": second.readers}, {"first": 1.0, "second": 1.0})


def harm(results: Results) -> list[str]:
    """What the second arm surely does worse than the first, beside its clicks, in words; it holds at every look."""
    first, second = results.arms
    fallen = []
    if (failed := difference(first.failed, second.failed)) and failed.is_more:
        fallen.append("it fails more often")
    if (empty := difference(first.empty, second.empty)) and empty.is_more:
        fallen.append("more of its lists are empty")
    if (slower := lift(first.seconds, second.seconds)) and slower.interval[0] > _SLOWER:
        fallen.append(f"its lists take at least {slower.interval[0]:.0%} longer")
    return fallen


def fallen_guards(results: Results) -> list[str]:
    """The same, and how far its lists reach, of which there is no interval."""
    first, second = results.arms
    fallen = harm(results)
    if second.seconds.readers >= FEWEST_READERS and second.notes < (1 - _FEWER) * first.notes:
        fallen.append(f"its lists reach {1 - second.notes / first.notes:.0%} fewer notes")
    return fallen


def verdict(experiment: Experiment, results: Results) -> str:
    """What the experiment says, in a sentence or two."""
    first, second = (arm.name for arm in experiment.arms)
    if not any(arm.readers for arm in results.arms):
        return "Nothing to say yet: no answer to a reader of it is in the log."
    if split(results) < SPLIT_ERROR_RATE:
        return (
            f"Do not trust these figures: {first} has {results.arms[0].readers:,} readers and {second} "
            f"{results.arms[1].readers:,}, which is no even split. Something loses answers of one arm; stop the "
            "experiment, mend that, and start another."
        )
    change = lift(results.arms[0].clicks, results.arms[1].clicks)
    guards = fallen_guards(results)
    but = f" But {'; '.join(guards)}." if guards else ""
    if change is None:
        return f"Too early to say which arm gets more clicks: too few readers, or a few have most of the items.{but}"
    low, high = change.interval
    if change.is_more:
        return f"{second} is better: it gets {low:.1%} to {high:.1%} more clicks an item than {first}.{but}"
    if change.is_less:
        return f"{second} is worse: it gets {-high:.1%} to {-low:.1%} fewer clicks an item than {first}.{but}"
    between = f"between {-low:.1%} fewer and {high:.1%} more clicks an item"
    return f"No difference so far: {second} gets {between} than {first}.{but}"


def format_report(experiment: Experiment, results: Results) -> str:
    """The whole report, as Markdown."""
    return "\n\n".join(
        [
            f"**{verdict(experiment, results)}**",
            _facts(experiment, results),
            _rates(experiment, results),
            f"```\n{_drawn(experiment, results)}\n```",
            _guards(experiment, results),
            _notes(results),
        ]
    )


def _facts(experiment: Experiment, results: Results) -> str:
    until = experiment.ended_at or results.until_s
    span = f"{_day(experiment.started_at)} to {_day(until)}" if until else f"from {_day(experiment.started_at)}"
    ratio = split(results)
    state = "as planned" if ratio >= SPLIT_ERROR_RATE else "BROKEN"
    arms = "; ".join(map(str, experiment.arms))
    return (
        f"{experiment.name}: {span} UTC, {experiment.share:.1%} of the readers, {arms}. "
        f"Sample-ratio test: p = {ratio:.2g}, {state}."
    )


def _rates(experiment: Experiment, results: Results) -> str:
    header = ["", *(arm.name for arm in experiment.arms), "change", "p"]
    body = [["readers", *(f"{arm.readers:,}" for arm in results.arms), "", ""]]
    body.append(_row("clicks of items shown, %", results, lambda arm: arm.clicks))
    body.append(_row("hashtags accepted, %", results, lambda arm: arm.accepted))
    return markdown(header, body)


def _row(name: str, results: Results, counts: Callable[[ArmResults], Counts]) -> list[str]:
    first, second = map(counts, results.arms)
    change = lift(first, second)
    said = "too early" if first.readers or second.readers else ""
    if change:
        said = f"{change.estimate:+.1%} ({change.interval[0]:+.1%} to {change.interval[1]:+.1%})"
    return [name, _rate(first), _rate(second), said, f"{change.p_value:.2g}" if change else ""]


def _rate(counts: Counts) -> str:
    if not counts.readers:
        return "none"
    interval = rate_interval(counts)
    between = f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else ""
    return f"{100 * counts.rate:.2f}{between}"


def _drawn(experiment: Experiment, results: Results) -> str:
    """The intervals of the changes, on one scale with zero in the middle."""
    changes = {
        "clicks": lift(*(arm.clicks for arm in results.arms)),
        "hashtags": lift(*(arm.accepted for arm in results.arms)),
    }
    known = {name: change for name, change in changes.items() if change}
    if not known:
        return "no interval yet"
    reach = min(max(abs(end) for change in known.values() for end in change.interval), 1.0)
    side = _WIDTH // 2 - 1
    scale = f"{f'{-reach:+.0%}':<{side}} 0 {f'{reach:+.0%}':>{side}}"
    lines = [f"{name:>8} {_bar(change, reach)}" for name, change in known.items()]
    return "\n".join([*lines, f"{'':>8} {scale}", f"{'':>8} {experiment.arms[1].name} above {experiment.arms[0].name}"])


def _bar(change: Change, reach: float) -> str:
    """``-`` is the interval for all looks, ``=`` that for one alone, ``o`` the estimate."""

    def place(value: float) -> int:
        return round((min(max(value, -reach), reach) + reach) / (2 * reach) * (_WIDTH - 1))

    cells = [" "] * _WIDTH
    for mark, (low, high) in (("-", change.interval), ("=", change.at_once)):
        cells[place(low) : place(high) + 1] = mark * (place(high) - place(low) + 1)
    cells[_WIDTH // 2] = "|"
    cells[place(change.estimate)] = "o"
    return "".join(cells).rstrip()


def _guards(experiment: Experiment, results: Results) -> str:
    header = ["guard", *(arm.name for arm in experiment.arms), "change"]
    first, second = results.arms
    body = [
        ["answers that failed, %", *_shares(first.failed, second.failed)],
        ["empty lists, %", *_shares(first.empty, second.empty)],
        ["mean time of a list, ms", *_times(first.seconds, second.seconds)],
        ["99th percentile, ms", *(f"{1000 * arm.slow_s:.1f}" for arm in results.arms), ""],
        ["different notes in lists", *(f"{arm.notes:,}" for arm in results.arms), _ratio(first.notes, second.notes)],
    ]
    return markdown(header, body)


def _shares(first: Counts, second: Counts) -> list[str]:
    change = difference(first, second)
    said = f"{100 * change.interval[0]:+.2f} to {100 * change.interval[1]:+.2f} points" if change else ""
    return [*(f"{100 * counts.rate:.2f}" if counts.readers else "none" for counts in (first, second)), said]


def _times(first: Counts, second: Counts) -> list[str]:
    change = lift(first, second)
    said = f"{change.interval[0]:+.1%} to {change.interval[1]:+.1%}" if change else ""
    return [*(f"{1000 * counts.rate:.1f}" if counts.readers else "none" for counts in (first, second)), said]


def _ratio(first: int, second: int) -> str:
    return f"{second / first - 1:+.1%}" if first else ""


def _notes(results: Results) -> str:
    counted = (
        "Shown are items with an impression or a click."
        if results.has_impressions
        else "No impressions were reported: every item of a list counts as shown."
    )
    return (
        f"{counted} Changes hold at every look together, in 95 of 100 experiments. Intervals of rates, and `=`, hold "
        "for one look. The unit is the reader."
    )


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
