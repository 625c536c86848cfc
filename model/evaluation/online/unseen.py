"""What is new in the newest notes: hashtags and categories that a model was not trained on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.data.events import has_events, load_events
from model.data.notes import has_notes, load_notes, notes_files, stream_notes
from model.data.periods import split_periods
from model.network.checkpoint import described
from model.note import Note
from model.text.hashtags import fold

# The share of the notes that are the newest, as `notellm learn` has it by default.
NEWEST = 0.2
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Unseen:
    """How many are ``new``, their ``share`` of all that the newest notes carry, and the ``most`` frequent of them."""

    new: int
    share: float
    most: list[str]

    @classmethod
    def of(cls, counts: Counter[str], known: set[str]) -> "Unseen":
        """Of what the newest notes carry, beside what is known."""
        new = Counter({name: count for name, count in counts.items() if name not in known})
        share = new.total() / counts.total() if counts else 0.0
        return cls(len(new), round(share, 4), [name for name, _ in new.most_common(_NAMED)])


@dataclass(frozen=True, slots=True)
class News:
    """Hashtags, folded, and categories of the newest notes that are new."""

    hashtags: Unseen
    categories: Unseen

    def encode(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def tags_of(notes: Iterable[Note]) -> set[str]:
    """The hashtags of notes, folded."""
    return {fold(tag) for note in notes for tag in note.hashtags}


def unseen(tags: set[str], categories: Iterable[str], newest: Iterable[Note]) -> News:
    """What the newest notes carry beside the hashtags, folded, and categories that a model knows."""
    carried, named = Counter[str](), Counter[str]()
    for note in newest:
        carried.update(folded for tag in note.hashtags if (folded := fold(tag)))
        if note.category:
            named[note.category] += 1
    return News(Unseen.of(carried, tags), Unseen.of(named, set(categories)))


def news_of(folder: Path, checkpoint: Path | None = None) -> News | None:
    """Of a folder of notes and events, by when notes were first seen; None where it has too little of them.

    What the model of ``checkpoint`` was trained on is known where a turn of learning made it; else, and without a
    checkpoint, the older notes stand for it.

    Raises:
        DataError: if the notes are none.
        CheckpointError: if there is no checkpoint.
    """
    model = described(checkpoint) if checkpoint else None
    if not (has_notes(folder) and has_events(folder)):
        return None
    try:
        periods = split_periods(load_events(folder), share=NEWEST)
    except ValueError:
        return None  # impressions alone, no times, or one moment
    files = notes_files(folder)
    tags, categories = tags_of(notes_of_turn(checkpoint) if checkpoint else ()), set[str]()
    is_known = bool(tags)
    for note in stream_notes(files):
        if note.id in periods.before:
            categories |= {note.category} if note.category else set()
            tags |= set() if is_known else tags_of([note])
    newest = (note for note in stream_notes(files) if note.id in periods.after)
    return unseen(tags, model.categories if model else categories, newest)


def notes_of_turn(checkpoint: Path) -> list[Note]:
    """The notes that a model was trained on, if a turn of learning has made it: they lie beside it."""
    data = checkpoint.parent / "data"
    return load_notes(data) if checkpoint.name == "checkpoint" and data.is_dir() else []
