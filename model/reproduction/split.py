"""The data of a reproduction, split by note: training sees one side, and every run ranks and predicts the other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.cooccurrence import PairRules, related_pairs, split_notes, training_pairs
from model.data.events import EventTable, load_events
from model.data.notes import is_blank, load_notes
from model.data.pairs import Pairs
from model.data.rows import DataError
from model.evaluation.debias import DEPTH, validation_notes
from model.evaluation.hashtags import has_hashtags, sample_notes
from model.evaluation.retrieval import exposure_buckets, exposure_of, places_of
from model.note import Note
from model.reproduction.grid import Request


@dataclass(frozen=True, slots=True)
class Data:
    """Notes and events of a folder. ``digest``: 16 hex digits that change when a note or an event does."""

    notes: Sequence[Note]
    events: EventTable
    digest: str

    @property
    def categories(self) -> tuple[str, ...]:
        """The closed set."""
        return tuple(sorted({note.category for note in self.notes if note.category}))


@dataclass(frozen=True, slots=True)
class Split:
    """The notes and pairs of either side.

    ``gold``: every pair of pool notes, whatever the number of its users. ``categorized`` and ``tagged``: the pool's
    notes whose category and whose hashtags are predicted, the same ones in every run. ``validation``: training notes
    to fit the debias on, none where exposure says nothing.
    """

    training_notes: list[Note]
    training: Pairs
    pool: list[Note]
    gold: Pairs
    categorized: list[Note]
    tagged: list[Note]
    validation: list[Note]

    def gold_arrays(self) -> dict[str, NDArray[Any]]:
        """Of each gold pair the place of its target, its users, and whether its truth is in a bucket of exposure."""
        targets, truths = places_of(self.pool, self.gold)
        buckets = exposure_buckets(exposure_of(self.pool))
        inside = {name: inside_N[truths] for name, inside_N in buckets.items()}
        return {"targets": targets, "users": self.gold.users, **inside}


def load_data(folder: Path) -> Data:
    """Notes and events of a folder. Raises DataError."""
    notes, events = load_notes(folder), load_events(folder)
    return Data(notes, events, data_digest(notes, events))


def data_digest(notes: Sequence[Note], events: EventTable) -> str:
    """See `Data`."""
    digest = hashlib.blake2b(digest_size=8)
    for note in notes:
        digest.update(repr(note).encode("utf-8", "surrogatepass"))
    for column in (events.users, events.notes, events.ts, events.clicked):
        digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(repr(events.note_ids).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_data(data: Data, request: Request) -> Split:
    """Split the data by note and find the pairs on either side. Raises DataError if a side has too few."""
    notes, events = data.notes, data.events
    held_out = split_notes((note.id for note in notes), request.holdout, request.split_seed)
    rules = PairRules(ordered=not events.untimed)
    pairs = training_pairs(notes, events, rules, holdout=request.holdout, seed=request.split_seed)
    training = pairs.supported_by(request.pairs_min_users)
    if len(training) < 2:
        raise DataError(
            f"{len(training)} of {len(pairs)} training pairs have {request.pairs_min_users} users behind them, and two "
            "are needed; ask for fewer users a pair"
        )
    pool = [note for note in notes if note.id in held_out and not is_blank(note)]
    gold = related_pairs(events, rules, within=frozenset(note.id for note in pool))
    if not gold:
        raise DataError(f"no two of the {len(pool)} held-out notes are related; a larger holdout is needed")
    training_notes = [note for note in notes if note.id not in held_out and not is_blank(note)]
    validation = validation_notes(training_notes, request.split_seed)
    can_debias = len(validation) >= 2 * DEPTH and len({note.exposure for note in validation}) > 1
    return Split(
        training_notes=training_notes,
        training=training,
        pool=pool,
        gold=gold,
        categorized=sample_notes([note for note in pool if note.category], request.tag_notes),
        tagged=sample_notes([note for note in pool if has_hashtags(note)], request.tag_notes),
        validation=validation if can_debias else [],
    )
