"""Qilin (notes of Xiaohongshu; Tsinghua's IR group, THUIR): the folders of Parquet files of its Hugging Face page."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.data.files import DataError
from model.data.readers.layout import Event, Source, identifier, load_parquet, several, text, whole
from model.note import Note

NOTES = "notes"
REQUESTS = ("recommendation_train", "recommendation_test")
NOTE_FIELDS = ("note_idx", "note_title", "note_content", "taxonomy1_id", "imp_num")
RESULTS = "rec_result_details_with_idx"
RECENT = "recent_clicked_note_idxs"
REQUEST_FIELDS = ("user_idx", RESULTS, RECENT)

# Actions on a shown note, the strongest first; without any it is a view.
_DEEDS = (("collect", "save"), ("like", "like"), ("click", "click"), ("comment", "click"), ("share", "click"))
# How the app writes a hashtag into a note's text.
_HASHTAG = re.compile(r"#([^#\[\]\n]+)\[话题\]#")
_NOT_GIVEN = ("", "nan")


def load(source: Path) -> Source:
    """The notes and the recommendation requests of a folder that holds the published folders.

    Hashtags move out of the content, else the prompt of a hashtag model would hold the answer. The category is
    ``taxonomy1_id``, exposure is ``imp_num``. A note shown in a request is one event, the strongest deed, at its
    ``request_timestamp`` in milliseconds; clicks that a request lists as recent come just before it, see `_earlier`.

    Raises:
        DataError: here or while iterating, if a file is missing or not as published.
    """
    requests = [path for name in REQUESTS for path in _files(source, name)]
    return Source(_events(requests), _notes(_files(source, NOTES)))


def _files(source: Path, name: str) -> list[Path]:
    found = sorted((source / name).glob("*.parquet"))
    if not found:
        raise DataError(f"{source / name}: no .parquet file in this folder")
    return found


def _notes(paths: Sequence[Path]) -> Iterator[Note]:
    for path in paths:
        for where, row in load_parquet(path, NOTE_FIELDS):
            content, category = text(row, "note_content", where), text(row, "taxonomy1_id", where)
            exposure = whole(row, "imp_num", where) or 0
            if exposure < 0:
                raise DataError(f"{where}: imp_num must not be negative")
            yield Note(
                id=identifier(row, "note_idx", where),
                title=text(row, "note_title", where),
                content=_HASHTAG.sub("", content).strip(),
                hashtags=tuple(dict.fromkeys(tag.strip() for tag in _HASHTAG.findall(content))),
                category=None if category in _NOT_GIVEN else category,
                exposure=exposure,
            )


def _events(paths: Sequence[Path]) -> Iterator[Event]:
    clicks: dict[tuple[str, str], int] = {}  # when a user first clicked a note
    listed: dict[tuple[str, str], int] = {}  # when a request first listed it as recent
    for path in paths:
        for where, row in load_parquet(path, REQUEST_FIELDS):
            user_id = identifier(row, "user_idx", where)
            shown = [_shown(user_id, result, where) for result in several(row, RESULTS, dict, where)]
            yield from shown
            times = [event.ts for event in shown if event.ts is not None]
            for event in shown:
                if event.event != "view" and event.ts is not None:
                    _keep_first(clicks, (user_id, event.note_id), event.ts)
            for note_idx in several(row, RECENT, int, where) if times else ():
                _keep_first(listed, (user_id, str(note_idx)), min(times))
    yield from _earlier(clicks, listed)


def _shown(user_id: str, result: Mapping[str, Any], where: str) -> Event:
    event = next((event for deed, event in _DEEDS if whole(result, deed, where)), "view")
    return Event(user_id, identifier(result, "note_idx", where), event, whole(result, "request_timestamp", where))


def _keep_first(times: dict[tuple[str, str], int], key: tuple[str, str], ts: int) -> None:
    times[key] = min(ts, times.get(key, ts))


def _earlier(clicks: Mapping[tuple[str, str], int], listed: Mapping[tuple[str, str], int]) -> Iterator[Event]:
    """Clicks from before the log: listed as recent by a request, and not clicked in one before that.

    They are listed without times. The millisecond before the first request that lists one is late but in order: after
    every note that earlier requests showed, before every note of this one, and at the time of the others on its list.
    """
    for (user_id, note_id), ts in listed.items():
        if clicks.get((user_id, note_id), ts) >= ts:
            yield Event(user_id, note_id, "click", ts - 1)
