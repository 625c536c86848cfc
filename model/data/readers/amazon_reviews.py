"""Amazon Reviews 2023 (McAuley lab): for each category ``C.jsonl`` with reviews and ``meta_C.jsonl`` with items."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.data.files import DataError
from model.data.readers.layout import Event, Source, identifier, load_lines, several, text, whole
from model.data.rows import json_object
from model.note import Note

# Four or five stars are a like; any other review is a click: the item was bought and opened.
LIKED = 4

_SUFFIXES = (".jsonl", ".jsonl.gz")
_META = "meta_"


def load(source: Path) -> Source:
    """Every category that lies in a folder or below it, packed (``.jsonl.gz``) or not.

    A note is an item under its ``parent_asin``, which its variants share; exposure is its number of reviews. The
    path of ``categories`` gives the category (second level, for the first is the whole shop) and, lower-cased, the
    hashtags (third level and deeper); without a second level the category is ``main_category``.
    A review is a click at its timestamp, in milliseconds since 1970, or a like from 4 stars on.

    Raises:
        DataError: here or while iterating, if a file is missing or not as published.
    """
    reviews, items = _files(source)
    reviewed: Counter[str] = Counter()
    return Source(_events(reviews, reviewed), _notes(items, reviewed))


def _files(source: Path) -> tuple[list[Path], list[Path]]:
    """The files of reviews and those of items, each in order of their categories."""
    found: dict[str, Path] = {}
    for path in sorted(source.rglob("*.jsonl*")):
        if path.name.endswith(_SUFFIXES):
            name = path.name.removesuffix(".gz").removesuffix(".jsonl")
            if name in found:
                raise DataError(f"{source}: {name} is there twice: {found[name]} and {path}")
            found[name] = path
    if not found:
        raise DataError(f"{source}: no .jsonl and no .jsonl.gz file here or below")
    categories = sorted({name.removeprefix(_META) for name in found})
    for name in (prefix + category for category in categories for prefix in ("", _META)):
        if name not in found:
            raise DataError(f"{source}: {name}.jsonl is missing, packed or not: reviews and items come in pairs")
    return [found[category] for category in categories], [found[_META + category] for category in categories]


def _events(paths: Sequence[Path], reviewed: Counter[str]) -> Iterator[Event]:
    for path in paths:
        for where, row in _rows(path):
            note_id = identifier(row, "parent_asin", where)
            event = "like" if _stars(row, where) >= LIKED else "click"
            reviewed[note_id] += 1
            yield Event(identifier(row, "user_id", where), note_id, event, whole(row, "timestamp", where))


def _stars(row: dict[str, Any], where: str) -> float:
    stars = row.get("rating")
    if not isinstance(stars, int | float) or isinstance(stars, bool):
        raise DataError(f"{where}: rating must be a number")
    return stars


def _notes(paths: Sequence[Path], reviewed: Counter[str]) -> Iterator[Note]:
    for path in paths:
        for where, row in _rows(path):
            note_id = identifier(row, "parent_asin", where)
            levels = several(row, "categories", str, where)
            body = several(row, "features", str, where) + several(row, "description", str, where)
            yield Note(
                id=note_id,
                title=text(row, "title", where),
                content="\n".join(body),
                hashtags=tuple(dict.fromkeys(level.lower() for level in levels[2:])),
                category="".join(levels[1:2]) or text(row, "main_category", where) or None,
                exposure=reviewed[note_id],
            )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((where, json_object(line, where)) for where, line in load_lines(path))
