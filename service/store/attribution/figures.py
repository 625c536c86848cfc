"""Figures of the answers of one model: lists and suggestions by their time, empty ones, failures, and clicks."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from operator import add
from typing import Literal

from service.store.attribution.outcomes import GROUPS

# How long a slot is that gateways count in together.
SLOT_S = 10
# Upper ends, in seconds, each half as large again as the one before but one: 1 ms to 16 s; longer ones are in a last.
EDGES = tuple(0.001 * 2 ** (step / 2) for step in range(29))

# How many answers took as long as each of these, and how many longer than all.
Times = tuple[int, ...]
NO_TIMES: Times = (0,) * (len(EDGES) + 1)

Kind = Literal["list", "tags", "empty", "failed"]
_LETTERS: dict[Kind, str] = {"list": "l", "tags": "t", "empty": "e", "failed": "f"}
# Answers that wait to be counted, at most: some milliseconds of counting.
_MOST_WAITING = 5000


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one model: lists and suggestions of hashtags by their time, empty lists, and failures."""

    lists: Times = NO_TIMES
    tags: Times = NO_TIMES
    empty: int = 0
    failed: int = 0

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            _sum(self.lists, other.lists),
            _sum(self.tags, other.tags),
            self.empty + other.empty,
            self.failed + other.failed,
        )

    @property
    def answers(self) -> int:
        """All, and what failed in the place of one."""
        return sum(self.lists) + sum(self.tags) + self.failed


@dataclass(frozen=True, slots=True)
class Clicks:
    """Items shown and clicked, by the groups of readers of `attribution.outcomes`."""

    shown: tuple[int, ...] = (0,) * GROUPS
    clicked: tuple[int, ...] = (0,) * GROUPS

    def __sub__(self, other: "Clicks") -> "Clicks":
        return Clicks(
            tuple(mine - theirs for mine, theirs in zip(self.shown, other.shown, strict=True)),
            tuple(mine - theirs for mine, theirs in zip(self.clicked, other.clicked, strict=True)),
        )


class AnswerCounts:
    """What a gateway counted since the last `taken`.

    A request appends; the counting is done for many at once, which takes a fraction of the time.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._answered: list[tuple[str, Kind, float, bool]] = []

    def answered(self, model: str, kind: Kind, seconds: float, *, empty: bool = False) -> None:
        """Count a list or suggestions that took this long."""
        self._answered.append((model, kind, seconds, empty))
        if len(self._answered) >= _MOST_WAITING:
            self._count()

    def failed(self, model: str) -> None:
        """Count an error of ours in the place of an answer."""
        self._counts[model, _LETTERS["failed"]] += 1

    def taken(self) -> list[str | int]:
        """Fields and what to add to them; from now on they count anew."""
        self._count()
        counts, self._counts = self._counts, Counter()
        return [part for (model, what), count in counts.items() for part in (f"{model} {what}", count)]

    def _count(self) -> None:
        answered, self._answered = self._answered, []
        for model, kind, seconds, empty in answered:
            self._counts[model, f"{_LETTERS[kind]}{bisect_left(EDGES, seconds)}"] += 1
            if empty:
                self._counts[model, _LETTERS["empty"]] += 1


def _sum(first: Times, second: Times) -> Times:
    return tuple(map(add, first, second))
