"""Lists of hashtags in their order, and places in it; for every implementation of `HashtagStore`."""

import re
from collections.abc import Iterable, Mapping

from service.store.interfaces import TrendingHashtag

# What a lift has on both sides of its fraction: so many notes more, seen and expected. One note is no trend.
SMOOTHING = 5
FEWEST_NOTES = 2

_CURSOR = re.compile(r"([0-9]{1,15}):(.+)", re.DOTALL)

# Number of notes, negative, and key: in ascending order the most used comes first, then the letters decide.
Place = tuple[int, str]


def cursor_of(place: Place) -> str:
    """The place as ``next`` of a page; no key has a colon."""
    return f"{-place[0]}:{place[1]}"


def place_of(cursor: str) -> tuple[int | None, str]:
    """The place that a cursor names; of a hashtag alone the number of notes is None."""
    match = _CURSOR.fullmatch(cursor)
    return (-int(match[1]), match[2]) if match else (None, cursor)


def trends(
    newest: Mapping[str, int], in_use: Mapping[str, int], newest_notes: int, all_notes: int, limit: int
) -> list[TrendingHashtag]:
    """The hashtags that the newest notes carry more often than those before, by descending lift, then by key.

    ``lift = (n + 5) / (b * N / B + 5)``: n of the N newest notes carry the hashtag, and b of the B notes before; as
    often as before, they would be ``b * N / B``. Without notes before, that is 0. A hashtag of one note, and one whose
    lift is not above 1, is no trend.

    Args:
        newest: by key, the newest notes that carry it.
        in_use: by key, all notes that carry it.
    """
    before = max(0, all_notes - newest_notes)

    def lift(tag: str, notes: int) -> float:
        earlier = max(0, in_use.get(tag, 0) - notes)
        expected = earlier * newest_notes / before if before else 0.0
        return (notes + SMOOTHING) / (expected + SMOOTHING)

    found = (TrendingHashtag(tag, notes, lift(tag, notes)) for tag, notes in common(newest))
    return sorted((one for one in found if one.lift > 1), key=lambda one: (-one.lift, one.tag))[:limit]


def common(newest: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    """The hashtags of enough notes to be a trend."""
    return ((tag, notes) for tag, notes in newest.items() if notes >= FEWEST_NOTES)
