"""The report of an experiment, for somebody who has to decide: one sentence, then the figures behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from model.evaluation.tables import markdown
from service.experiments.results import ArmResults, Results
from service.experiments.statistics import (
    FEWEST_READERS,
    SPLIT_ERROR_RATE,
    Change,
    Counts,
    Interval,
    difference,
    lift,
    rate_interval,
    split_p_value,
)
from service.store.experiments.records import Experiment

# A guard falls where an arm is surely worse than this: its lists take longer by a tenth, or reach a fifth fewer notes.
_SLOWER, _FEWER = 0.1, 0.2
_WIDTH = 61

Finding = Literal["nothing", "broken_split", "too_early", "better", "worse", "no_difference"]


def split(results: Results) -> float:
    """The p-value of the sample-ratio test: both arms are to have as many readers."""
    first, second = results.arms
    return split_p_value({"first": first.readers, "second": second.readers}, {"first": 1.0, "second": 1.0})


@dataclass(frozen=True, slots=True)
class Guard:
    """What the second arm may not do worse than the first: both values, None where nothing was measured.

    ``interval`` is of the change, a difference of shares or a lift, and holds at every look; None where there is none.
    ``says`` how it falls, in words; empty where it holds.
    """

    name: Literal["failed", "empty", "seconds", "notes"]
    values: tuple[float | None, float | None]
    interval: Interval | None
    says: str


def guards(results: Results) -> list[Guard]:
    """The guards of an experiment; that of the notes, of which there is no interval, is the last."""
    first, second = results.arms
    is_narrow = second.seconds.readers >= FEWEST_READERS and second.notes < (1 - _FEWER) * first.notes
    fewer = f"its lists reach {1 - second.notes / first.notes:.0%} fewer notes" if is_narrow else ""
    return [
        _guard("failed", first.failed, second.failed, difference, 0.0, "it fails more often"),
        _guard("empty", first.empty, second.empty, difference, 0.0, "more of its lists are empty"),
        _guard("seconds", first.seconds, second.seconds, lift, _SLOWER, "its lists take at least {:.0%} longer"),
        Guard("notes", (first.notes, second.notes), None, fewer),
    ]


def _guard(
    name: Literal["failed", "empty", "seconds"],
    first: Counts,
    second: Counts,
    compare: Callable[[Counts, Counts], Change | None],
    most: float,
    says: str,
) -> Guard:
    """It falls where the change is surely more than ``most``."""
    values = (first.rate if first.readers else None, second.rate if second.readers else None)
    interval = change.interval if (change := compare(first, second)) else None
    return Guard(name, values, interval, says.format(interval[0]) if interval and interval[0] > most else "")


def harm(results: Results) -> list[str]:
    """What the second arm surely does worse than the first, beside its clicks, in words; it holds at every look."""
    said = [guard.says for guard in guards(results) if guard.says and guard.name != "notes"]
    return [*said, *_less_accepted(results)]


def fallen_guards(results: Results) -> list[str]:
    """The same, and how far its lists reach, of which there is no interval."""
    return [guard.says for guard in guards(results) if guard.says] + _less_accepted(results)


def _less_accepted(results: Results) -> list[str]:
    """A guard, too, though its figures stand beside those of the clicks."""
    first, second = results.arms
    change = difference(first.accepted, second.accepted)
    return ["fewer of its hashtags are accepted"] if change is not None and change.is_less else []


def finding(results: Results) -> Finding:
    """What the experiment says, in a word: of its clicks, or why nothing is said of them."""
    if not any(arm.readers for arm in results.arms):
        return "nothing"
    if split(results) < SPLIT_ERROR_RATE:
        return "broken_split"
    change = lift(results.arms[0].clicks, results.arms[1].clicks)
    if change is None:
        return "too_early"
    return "better" if change.is_more else "worse" if change.is_less else "no_difference"


def verdict(experiment: Experiment, results: Results) -> str:
    """The same, in a sentence or two, with the guards that fall."""
    first, second = (arm.name for arm in experiment.arms)
    found, change = finding(results), lift(results.arms[0].clicks, results.arms[1].clicks)
    if found == "nothing":
        return "Nothing to say yet: no answer to a reader of it is in the log."
    if found == "broken_split":
        return (
            f"Do not trust these figures: {first} has {results.arms[0].readers:,} readers and {second} "
            f"{results.arms[1].readers:,}, which is no even split. Something loses answers of one arm; stop the "
            "experiment, mend that, and start another."
        )
    fallen = fallen_guards(results)
    but = f" But {'; '.join(fallen)}." if fallen else ""
    if change is None:
        return f"Too early to say which arm gets more clicks: too few readers, or a few have most of the items.{but}"
    low, high = change.interval
    if found == "better":
        return f"{second} is better: it gets {low:.1%} to {high:.1%} more clicks an item than {first}.{but}"
    if found == "worse":
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
