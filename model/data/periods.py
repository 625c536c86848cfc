"""The split by time: train on what was seen before a moment, test on notes first seen after it (section 5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.data.cooccurrence import ONE_MACHINE, PairRules, related_pairs
from model.data.engines.query import Engine
from model.data.events import EventTable
from model.data.notes import is_blank
from model.data.pairs import Pairs
from model.data.times import Times, in_unit_of
from model.note import Note


@dataclass(frozen=True, slots=True)
class Periods:
    """Ids of notes by the time of their first event: before ``start``, or from it on."""

    start: float
    before: frozenset[str]
    after: frozenset[str]


def split_periods(events: EventTable, *, start: float | None = None, share: float | None = None) -> Periods:
    """The notes first seen before ``start`` (in the unit of ``ts``, or in seconds), and those first seen from then on.

    Args:
        share: sets the start instead: from then on this share of the notes was first seen.

    Raises:
        ValueError: if an event has no ``ts``, or a period has no notes.
    """
    if events.untimed:
        raise ValueError(
            f"{events.untimed} of {len(events)} events have no ts: without times, use the split by note (--holdout)"
        )
    first_N = _first_seen(events)
    if start is None:
        if share is None or not 0 < share < 1:
            raise ValueError(f"the test period's share of the notes must be within 0..1, got {share}")
        start = np.quantile(first_N, 1 - share, method="higher").item()
    start = in_unit_of(events.newest, start)
    ids = np.array(events.note_ids, dtype=object)
    before, after = frozenset(ids[first_N < start]), frozenset(ids[first_N >= start])
    if not before or not after:
        period = "before" if after else "from"
        raise ValueError(
            f"no note was first seen {period} {start}: the log has ts from {events.ts.min()} to {events.ts.max()}"
        )
    return Periods(start, before, after)


def temporal_pairs(
    notes: Sequence[Note],
    events: EventTable,
    periods: Periods,
    rules: PairRules,
    engine: Engine = ONE_MACHINE,
) -> tuple[Pairs, Pairs]:
    """Training pairs of the first period, and gold pairs of the second: events and notes of one are not the other's.

    Raises:
        ValueError: see `related_pairs`.
    """
    whole = frozenset(note.id for note in notes if not is_blank(note))
    first, second = replace(rules, until=periods.start), replace(rules, since=periods.start)
    return (
        related_pairs(events, first, within=whole & periods.before, engine=engine),
        related_pairs(events, second, within=whole & periods.after, engine=engine),
    )


def _first_seen(events: EventTable) -> Times:
    """The earliest ``ts`` of each note, shape (notes,)."""
    first_N = np.full(len(events.note_ids), events.ts.max())
    np.minimum.at(first_N, events.notes, events.ts)
    return first_N
