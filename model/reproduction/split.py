"""The data of a reproduction: what training sees, and the pools that every run ranks and predicts."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.data.cooccurrence import HOLDOUT, SEED, PairRules, related_pairs, split_notes, training_pairs
from model.data.events import EventTable, load_events
from model.data.files import DataError
from model.data.notes import is_blank, load_notes
from model.data.pairs import Pairs
from model.data.periods import split_periods, temporal_pairs
from model.evaluation.baselines import clicks_of
from model.evaluation.debias import DEPTH, validation_notes
from model.evaluation.hashtags import has_hashtags, sample_notes
from model.evaluation.retrieval import click_buckets, exposure_buckets, exposure_of, places_of
from model.note import Note


@dataclass(frozen=True, slots=True)
class SplitRules:
    """How notes and pairs are set apart: by note (``holdout`` and ``seed``), or by time.

    Args:
        start, share: by time, with one of them: see `model.data.periods.split_periods`.
        rules: which notes are related; times, where events have none, count for nothing.
        pairs_min_users: users behind a training pair at least.
        pool: rank the test notes alone, or ``all`` notes, as a service does; gold pairs are of test notes either way.
    """

    holdout: float = HOLDOUT
    seed: int = SEED
    start: float | None = None
    share: float | None = None
    rules: PairRules = field(default_factory=PairRules)
    pairs_min_users: int = 2
    pool: Literal["test", "all"] = "test"

    @property
    def by_time(self) -> bool:
        """Whether the test notes are those of a later period."""
        return self.start is not None or self.share is not None

    def of_training(self) -> dict[str, Any]:
        """What training depends on."""
        return asdict(replace(self, pool="test"))


@dataclass(frozen=True, slots=True)
class Data:
    """Notes and events of a folder. ``digest``: 16 hex digits that change when a note or an event does."""

    name: str
    notes: Sequence[Note]
    events: EventTable
    digest: str

    @property
    def categories(self) -> tuple[str, ...]:
        """The closed set."""
        return tuple(sorted({note.category for note in self.notes if note.category}))


@dataclass(frozen=True, slots=True)
class Pool:
    """Notes that are ranked, and the gold pairs among them: every pair, whatever the number of its users."""

    data: Data
    notes: list[Note]
    gold: Pairs

    def gold_arrays(self) -> dict[str, NDArray[Any]]:
        """Of each gold pair the place of its target, its users, and whether its truth is in each bucket of exposure
        and of clicks."""
        targets, truths = places_of(self.notes, self.gold)
        buckets = exposure_buckets(exposure_of(self.notes)) | click_buckets(clicks_of(self.notes, self.data.events))
        inside = {name: inside_N[truths] for name, inside_N in buckets.items()}
        return {"targets": targets, "users": self.gold.users, **inside}


@dataclass(frozen=True, slots=True)
class Split:
    """The notes and pairs of either side.

    ``start``: of the test period, None in a split by note. ``categorized`` and ``tagged``: the test notes whose
    category and whose hashtags are predicted, the same ones in every run. ``validation``: training notes to fit the
    debias on, none where exposure says nothing.
    """

    start: float | None
    training_notes: list[Note]
    training: Pairs
    pool: Pool
    categorized: list[Note]
    tagged: list[Note]
    validation: list[Note]


def load_data(folder: Path) -> Data:
    """Notes and events of a folder. Raises DataError."""
    notes, events = load_notes(folder), load_events(folder)
    return Data(folder.resolve().name, notes, events, data_digest(notes, events))


def data_digest(notes: Sequence[Note], events: EventTable) -> str:
    """See `Data`."""
    digest = hashlib.blake2b(digest_size=8)
    for note in notes:
        digest.update(repr(note).encode("utf-8", "surrogatepass"))
    for column in (events.users, events.notes, events.ts, events.clicked):
        digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(repr(events.note_ids).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_data(data: Data, split: SplitRules, tag_notes: int) -> Split:
    """Split the data and find the pairs on either side.

    Raises:
        ValueError: if a side has too few, or the log has no times to split by.
    """
    notes = [note for note in data.notes if not is_blank(note)]
    start, seen, unseen, pairs, gold = (_by_time if split.by_time else _by_note)(data, notes, split)
    training = pairs.supported_by(split.pairs_min_users)
    if len(training) < 2:
        raise DataError(
            f"{len(training)} of {len(pairs)} training pairs have {split.pairs_min_users} users behind them, and two "
            "are needed; ask for fewer users a pair"
        )
    if not gold:
        remedy = "an earlier start" if split.by_time else "a larger holdout"
        raise DataError(f"no two of the {len(unseen)} test notes are related; {remedy} is needed")
    validation = validation_notes(seen, split.seed)
    can_debias = len(validation) >= 2 * DEPTH and len({note.exposure for note in validation}) > 1
    return Split(
        start=start,
        training_notes=seen,
        training=training,
        pool=Pool(data, notes if split.pool == "all" else unseen, gold),
        categorized=sample_notes([note for note in unseen if note.category], tag_notes),
        tagged=sample_notes([note for note in unseen if has_hashtags(note)], tag_notes),
        validation=validation if can_debias else [],
    )


def whole_pool(data: Data, rules: PairRules) -> Pool:
    """Every note of data that no training saw, and all its pairs. Raises ValueError without any."""
    notes = [note for note in data.notes if not is_blank(note)]
    gold = related_pairs(data.events, _possible(rules, data.events), within=frozenset(note.id for note in notes))
    if not gold:
        raise DataError(f"{data.name}: no two of its {len(notes)} notes are related, so there is nothing to test on")
    return Pool(data, notes, gold)


Sides = tuple[float | None, list[Note], list[Note], Pairs, Pairs]


def _by_note(data: Data, notes: list[Note], split: SplitRules) -> Sides:
    rules = _possible(split.rules, data.events)
    held_out = split_notes((note.id for note in notes), split.holdout, split.seed)
    unseen = [note for note in notes if note.id in held_out]
    return (
        None,
        [note for note in notes if note.id not in held_out],
        unseen,
        training_pairs(notes, data.events, rules, holdout=split.holdout, seed=split.seed),
        related_pairs(data.events, rules, within=frozenset(note.id for note in unseen)),
    )


def _by_time(data: Data, notes: list[Note], split: SplitRules) -> Sides:
    periods = split_periods(data.events, start=split.start, share=split.share)
    before = [note for note in notes if note.id in periods.before]
    after = [note for note in notes if note.id in periods.after]
    return periods.start, before, after, *temporal_pairs(notes, data.events, periods, split.rules)


def _possible(rules: PairRules, events: EventTable) -> PairRules:
    return replace(rules, ordered=rules.ordered and not events.untimed)
