"""Related pairs by co-occurrence in a click log (section 4.1, eq. 1), and the split by note."""

from collections.abc import Iterable, Sequence, Set
from hashlib import blake2b

from model.data.engines.duckdb_engine import DuckDbEngine
from model.data.engines.query import Engine
from model.data.engines.query import PairRules as PairRules
from model.data.events import EventTable
from model.data.notes import is_blank
from model.data.pairs import Pairs
from model.data.parquet_events import ParquetEvents
from model.note import Note

# Of the split: the share of notes in no training pair, and the seed.
HOLDOUT = 0.3
SEED = 0
PAPER = PairRules()
ONE_MACHINE = DuckDbEngine()


def split_notes(ids: Iterable[str], holdout: float = HOLDOUT, seed: int = SEED) -> frozenset[str]:
    """The held-out ids. Each is drawn by its own hash: new notes never move old ones across the split.

    Training takes the pairs with both ends outside, evaluation the pairs with both ends inside; the rest is unused.

    Raises:
        ValueError: if ``holdout`` is not within 0..1.
    """
    if not 0 <= holdout <= 1:
        raise ValueError(f"holdout must be within 0..1, got {holdout}")
    return frozenset(note_id for note_id in ids if _draw(note_id, seed) < holdout)


def training_pairs(
    notes: Sequence[Note],
    events: EventTable | ParquetEvents,
    rules: PairRules = PAPER,
    *,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    engine: Engine = ONE_MACHINE,
) -> Pairs:
    """Related pairs of the notes that are neither held out nor blank.

    Raises:
        ValueError: see `related_pairs` and `split_notes`.
    """
    held_out = split_notes((note.id for note in notes), holdout, seed)
    kept = frozenset(note.id for note in notes if note.id not in held_out and not is_blank(note))
    return related_pairs(events, rules, within=kept, engine=engine)


def related_pairs(
    events: EventTable | ParquetEvents,
    rules: PairRules = PAPER,
    *,
    within: Set[str] | None = None,
    engine: Engine = ONE_MACHINE,
) -> Pairs:
    """The related notes of every note, eq. 1.

    s(A -> B) is the sum of 1/N_i over users i who viewed A and then clicked B, N_i the number of distinct
    notes user i clicked in the whole log, or in the period of the rules. A user counts once for (A, B).

    Args:
        events: the log; a click is a view too.
        within: both ends of a pair are in this set. It changes no N_i.

    Raises:
        ValueError: if the rules need the time of every event and one has none, or the engine lacks what it needs.
    """
    if rules.timed and events.untimed:
        raise ValueError(f"{events.untimed} of {len(events)} events have no ts: without an order, use unordered pairs")
    return engine.related(events, rules.in_unit_of(events.newest), within)


def _draw(note_id: str, seed: int) -> float:
    """A number in 0..1 that depends on nothing but the id and the seed."""
    digest = blake2b(f"{seed}:{note_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
