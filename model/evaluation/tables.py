"""Markdown tables of figures: shares of 0..1 in percent, with the bounds of their 95% intervals."""

from collections.abc import Sequence

from model.evaluation.metrics import Interval


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])


def percent(share: float) -> str:
    """``0.842`` as ``84.2``."""
    # Adding zero turns a -0.0 into 0.0.
    return f"{round(100 * share, 1) + 0.0:.1f}"


def percent_interval(interval: Interval) -> str:
    """``84.2 (82.1 to 85.9)``: mean, and bounds of the interval."""
    return f"{percent(interval.mean)} ({percent(interval.low)} to {percent(interval.high)})"
