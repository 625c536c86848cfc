"""MIND, the Microsoft News Dataset: ``news.tsv`` and ``behaviors.tsv``, without header and without quoting."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from model.data.files import DataError
from model.data.readers.layout import Event, Source, load_lines
from model.note import Note

NEWS = ("news id", "category", "subcategory", "title", "abstract", "url", "title entities", "abstract entities")
BEHAVIORS = ("impression id", "user id", "time", "history", "impressions")

_FILES = ("behaviors.tsv", "news.tsv")
_TIME = "%m/%d/%Y %I:%M:%S %p"
_EVENTS = {"0": "view", "1": "click"}
# As the folders are called (MINDsmall_train), oldest first.
_SPLITS = ("train", "dev", "test")


def load(source: Path) -> Source:
    """The splits of a folder: every folder with the two files, itself or below it.

    An impression is a view or a click at its time, in seconds since 1970, and counts as exposure. The history
    of a user's first impression becomes clicks too. It is in order but without times: their ts is
    their position, which is before any impression. Later histories only repeat clicks that were seen by then.

    Raises:
        DataError: here or while iterating, if a file is missing or not as published.
    """
    folders = _folders(source)
    shown: Counter[str] = Counter()
    return Source(_events(folders, shown), _notes(folders, shown))


def _folders(source: Path) -> list[Path]:
    folders = {path.parent for name in _FILES for path in source.rglob(name)}
    if not folders:
        raise DataError(f"{source}: neither news.tsv nor behaviors.tsv here or below")
    for folder in sorted(folders):
        for name in _FILES:
            if not (folder / name).is_file():
                raise DataError(f"{folder / name}: no such file")
    return sorted(folders, key=lambda folder: (_age(folder), folder))


def _age(folder: Path) -> int:
    return next((age for age, split in enumerate(_SPLITS) if split in folder.name), len(_SPLITS))


def _events(folders: Sequence[Path], shown: Counter[str]) -> Iterator[Event]:
    met: set[str] = set()
    for folder in folders:
        for where, (_, user_id, time, history, impressions) in _rows(folder / "behaviors.tsv", BEHAVIORS):
            if not user_id:
                raise DataError(f"{where}: user id must not be empty")
            if user_id not in met:
                met.add(user_id)
                for position, note_id in enumerate(history.split()):
                    yield Event(user_id, note_id, "click", position)
            ts = _seconds(time, where)
            for impression in impressions.split():
                note_id, event = _shown(impression, where)
                shown[note_id] += 1
                yield Event(user_id, note_id, event, ts)


def _shown(impression: str, where: str) -> tuple[str, str]:
    note_id, dash, label = impression.rpartition("-")
    if not dash:
        return impression, "view"  # the test split has no labels
    if not note_id or label not in _EVENTS:
        raise DataError(f"{where}: impressions must be news ids that end in -0 or -1, got {impression!r}")
    return note_id, _EVENTS[label]


def _seconds(time: str, where: str) -> int:
    try:
        return int(datetime.strptime(time, _TIME).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise DataError(f"{where}: time must be like 11/15/2019 10:22:32 AM, got {time!r}") from None


def _notes(folders: Sequence[Path], shown: Counter[str]) -> Iterator[Note]:
    for folder in folders:
        for where, (note_id, category, subcategory, title, abstract, *_) in _rows(folder / "news.tsv", NEWS):
            if not note_id:
                raise DataError(f"{where}: news id must not be empty")
            hashtags = (subcategory,) if subcategory else ()
            yield Note(note_id, title, abstract, hashtags, category or None, shown[note_id])


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for where, line in load_lines(path):
        try:
            fields = line.decode().split("\t")
        except UnicodeDecodeError:
            raise DataError(f"{where}: not valid UTF-8") from None
        if len(fields) != len(columns):
            raise DataError(f"{where}: must have {len(columns)} columns ({', '.join(columns)}), has {len(fields)}")
        yield where, fields
