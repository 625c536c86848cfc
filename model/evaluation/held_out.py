"""What a model is tested on: a pool of notes to rank, and the pairs of them that are related (section 5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data.cooccurrence import HOLDOUT, SEED, PairRules, related_pairs, split_notes
from model.data.events import EventTable, has_events, load_events
from model.data.files import DataError
from model.data.notes import is_blank, load_notes
from model.data.pairs import Pairs, load_pairs
from model.evaluation.hashtags import has_hashtags
from model.evaluation.report import MIN_USERS
from model.note import Note


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Notes that training did not see, and the others.

    ``pool``: held-out notes with any text or hashtags; ``blank``: how many have none and are left out. ``training``:
    notes that may have been trained on, none of them blank. ``events``: None without any. ``gold``: related pairs of
    the pool, None where nothing says what is related; those of ``min_users`` users are to be believed first.
    ``origin``: where pool and pairs are from, for reports. ``seed``: of the split.
    """

    pool: list[Note]
    blank: int
    training: list[Note]
    events: EventTable | None
    gold: Pairs | None
    min_users: int
    origin: str
    seed: int


def load_held_out(
    data: Path,
    *,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    min_users: int = MIN_USERS,
    pool: Path | None = None,
    gold: Path | None = None,
) -> HeldOut:
    """The held-out notes of a folder, or given ones, and the related pairs of its events, or given ones.

    Pairs of events are ordered where every event has a time.

    Args:
        data: folder with notes and perhaps events, see `load_notes` and `load_events`.
        holdout, seed: as when the training pairs were made, or a model is tested on its training notes.
        min_users: users behind the pairs of the first set of gold pairs; the second is all pairs. 0: there may be none.
        pool: notes to rank instead; training then saw the folder's other notes, whatever the holdout.
        gold: pairs to find instead of those of the events, see `load_pairs`.

    Raises:
        DataError: if a file is not what it should be, a pair holds a note that is not in the pool, or there is nothing
            to measure.
    """
    notes, events = load_notes(data), load_events(data) if has_events(data) else None
    drawn = frozenset[str]() if pool else split_notes((note.id for note in notes), holdout, seed)
    found = load_notes(pool) if pool else [note for note in notes if note.id in drawn]
    ranked = [note for note in found if not is_blank(note)]
    if not ranked:
        raise DataError(f"{pool or data}: none of {len(found)} held-out notes has text or hashtags")
    kept_out = drawn | {note.id for note in ranked}
    origin = f"the notes of {pool.name}" if pool else f"split by note, holdout {holdout}, seed {seed}"
    pairs = None
    if gold is not None:
        pairs = _given(gold, ranked)
        origin += f"; the pairs of {gold.name}"
    elif events is not None:
        ordered = not events.untimed
        pairs = related_pairs(events, PairRules(ordered=ordered), within=frozenset(note.id for note in ranked))
        order = "ordered" if ordered else "unordered"
        origin += f"; {order} pairs of the events, {pairs.skipped_users:,} overactive users skipped"
    if pairs is None and not any(note.category or has_hashtags(note) for note in ranked):
        raise DataError(
            f"{data}: no events, and no held-out note has a category or hashtags: there is nothing to measure"
        )
    if pairs is not None and min_users and not pairs.supported_by(min_users):
        raise DataError(
            f"{(gold or data).name}: no pair of the {len(ranked):,} notes of the pool has {min_users} users behind it; "
            "more events, a larger holdout or fewer users a pair are needed"
        )
    return HeldOut(
        pool=ranked,
        blank=len(found) - len(ranked),
        training=[note for note in notes if note.id not in kept_out and not is_blank(note)],
        events=events,
        gold=pairs,
        min_users=min_users,
        origin=origin,
        seed=seed,
    )


def _given(gold: Path, pool: Sequence[Note]) -> Pairs:
    pairs = load_pairs(gold)
    known = {note.id for note in pool}
    used = {*pairs.note_ids, *pairs.related_ids}
    if not used:
        raise DataError(f"{gold.name} holds no pairs")
    if unknown := used - known:
        raise DataError(
            f"{gold.name}: {len(unknown):,} of its {len(used):,} notes are not among the {len(known):,} notes of the "
            f"pool that have text or hashtags, {min(unknown)!r} for one; --pool names the notes to rank"
        )
    if twins := [one for one, other in pairs.ends() if one == other]:
        raise DataError(f"{gold.name}: {len(twins):,} pairs relate a note to itself, {min(twins)!r} for one")
    return pairs
