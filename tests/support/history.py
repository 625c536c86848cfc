"""A click log that has an order and no times, as what a service lives through: before its first model, and after.

The first half of each reader's clicks is what the first model learns from, the second half comes while that model
serves, and the last click is held out. A fifth of the notes is young: nobody clicks one before the last week, so that
clicks of the two halves on them come then, in their order.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

DAY_S = 24 * 3600
YOUNG = 0.2
# Days ago: the first halves, the second halves, and the clicks on young notes.
_FIRST, _SECOND, _WEEK = (60, 30), (30, 8), (7, 0.1)


class Click(NamedTuple):
    """A reader clicks a note, at a time in seconds since 1970; ``here`` is the note of their click before, if any."""

    reader: str
    note: str
    ts: float
    here: str | None


@dataclass(frozen=True, slots=True)
class History:
    """``first`` and ``second`` in the order of their times; ``last`` has the held-out click of each reader.

    ``old``: the notes that are not young.
    """

    old: frozenset[str]
    first: list[Click] = field(default_factory=list)
    second: list[Click] = field(default_factory=list)
    last: list[Click] = field(default_factory=list)


def history(clicks: Mapping[str, Sequence[str]], now_s: float) -> History:
    """Of the clicks of each reader, three or more, in order."""
    draw = random.Random(0)
    notes = sorted({note for own in clicks.values() for note in own})
    young = frozenset(draw.sample(notes, int(YOUNG * len(notes))))
    found = History(frozenset(notes) - young)
    for reader, own in clicks.items():
        before, half = own[:-1], (len(own) + 1) // 2
        walked = None
        for part, days, own_part in (
            (found.first, _FIRST, [note for note in before[:half] if note not in young]),
            (found.second, _SECOND, [note for note in before[half:] if note not in young]),
            (found.second, _WEEK, [note for note in before if note in young]),
        ):
            part += _walk(reader, own_part, now_s - DAY_S * draw.uniform(*days), walked)
            walked = own_part[-1] if own_part else walked
        found.last.append(Click(reader, own[-1], now_s, own[-2]))
    for part in (found.first, found.second):
        part.sort(key=lambda click: click.ts)
    return found


def _walk(reader: str, notes: Sequence[str], came_s: float, here: str | None) -> Iterator[Click]:
    """One click a second, from note to note."""
    for place, note in enumerate(notes):
        yield Click(reader, note, came_s + place, here)
        here = note
