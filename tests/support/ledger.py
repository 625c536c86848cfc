"""What a service acknowledged, and whether it still says so: the checker of the fault tests.

A write is *unknown* from its first byte until its answer: it may have happened, may not, or may happen later. Without
an answer it stays so until `Ledger.check` has seen which. Of each note only one client at a time may write.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from service.backup.events import export
from service.client import NoteLLMClient, Refused
from service.contract.notes import NoteOut
from service.store.connection import open_sync_redis

MOST_RELATED = 100
PATIENCE_S = 60.0


@dataclass(slots=True)
class Entry:
    """One note: its last acknowledged title (None when it has none, or was deleted), and the writes without an answer.

    ``low`` and ``high`` bound the version that the store may have; ``writes`` counts what was begun.
    """

    title: str | None = None
    low: int = 0
    high: int = 0
    writes: int = 0
    unknown: list[str | None] = field(default_factory=list)
    past: set[str] = field(default_factory=set)

    @property
    def gone(self) -> bool:
        """Deleted, or never written, whatever the unknown writes did."""
        return self.title is None and not any(self.unknown)


class Ledger:
    """Writes and events of all clients. ``problems`` are those that an answer itself showed."""

    def __init__(self) -> None:
        self.notes: dict[str, Entry] = {}
        self.problems: list[str] = []
        self.acknowledged = Counter[str]()
        self._events: dict[str, bool] = {}
        self._lock = threading.Lock()

    def begin(self, note_id: str, title: str | None) -> None:
        """A write goes out: a new title, or None for a delete. Titles must never repeat."""
        with self._lock:
            entry = self.notes.setdefault(note_id, Entry())
            entry.unknown.append(title)
            entry.writes += 1
            entry.high += 1
            if title:
                entry.past.add(title)

    def acknowledge(self, note_id: str, title: str | None, version: int | None = None) -> None:
        """It was answered with 2xx, and the version if the answer tells it."""
        with self._lock:
            self.acknowledged["writes" if title else "deletes"] += 1
            entry = self.notes[note_id]
            entry.unknown.remove(title)
            changed = title is not None or (entry.title is not None and None not in entry.unknown)
            if version is not None and not entry.low < version <= entry.high:
                self.problems.append(f"phantom: {note_id} got version {version}, not {entry.low + 1}..{entry.high}")
            if version is None:
                entry.low += changed
            else:
                entry.low, entry.high = version, version + len(entry.unknown)
            entry.title = title

    def refuse(self, note_id: str, title: str | None) -> None:
        """It was answered with an error that says that nothing was stored."""
        with self._lock:
            entry = self.notes[note_id]
            entry.unknown.remove(title)
            entry.high -= 1

    def begin_events(self, event_ids: Iterable[str]) -> None:
        """Events go out."""
        with self._lock:
            self._events |= dict.fromkeys(event_ids, False)

    def acknowledge_events(self, event_ids: Iterable[str]) -> None:
        """They were accepted."""
        with self._lock:
            self.acknowledged["events"] += len(accepted := dict.fromkeys(event_ids, True))
            self._events |= accepted

    def gone(self) -> dict[str, int]:
        """The notes that no answer to a later request may name, as of now, with `Entry.writes`."""
        with self._lock:
            return {note_id: entry.writes for note_id, entry in self.notes.items() if entry.gone}

    def saw(self, note_ids: Iterable[str], gone: dict[str, int]) -> None:
        """A list came whose request went out when these were `gone`."""
        with self._lock:
            for note_id, count in Counter(note_ids).items():
                entry = self.notes.get(note_id)
                if count > 1:
                    self.problems.append(f"duplicate: {note_id} in a list")
                if entry is None:
                    self.problems.append(f"phantom: {note_id} in a list")
                elif gone.get(note_id) == entry.writes:
                    self.problems.append(f"resurrected: {note_id} in a list")

    def check(self, notellm: NoteLLMClient, *, indexed: bool = True, patience_s: float = PATIENCE_S) -> list[str]:
        """Problems, one a line; empty when the service holds what it acknowledged and nothing else.

        Looks at every note and, with ``indexed``, waits until all are searchable and looks through every list. Then
        the unknown writes are known. To be called while nobody writes.
        """
        problems, self.problems = self.problems, []
        live: dict[str, str] = {}
        give_up = time.monotonic() + patience_s
        for note_id, entry in self.notes.items():
            note = _searchable(notellm, note_id, give_up) if indexed else _get(notellm, note_id)
            problems += _compare(note_id, entry, note)
            if note:
                live[note_id] = note.title
                if indexed and note.status != "searchable":
                    problems.append(f"lost: {note_id} is {note.status}")
        if indexed:
            problems += _lists(notellm, live)
            counted = notellm.status().notes
            if (counted.live, counted.searchable, counted.pending) != (len(live), len(live), 0):
                problems.append(f"phantom: {counted}, not {len(live)} notes")
        return problems

    def check_events(self, stored: Iterable[str]) -> list[str]:
        """The same of the ids of all stored events, each as often as it is stored."""
        counted = Counter(stored)
        problems = [f"lost: event {event}" for event, known in self._events.items() if known and not counted[event]]
        problems += [f"phantom: event {event}" for event in counted.keys() - self._events.keys()]
        return problems + [f"duplicate: event {event}" for event, count in counted.items() if count > 1]


def _get(notellm: NoteLLMClient, note_id: str) -> NoteOut | None:
    try:
        return notellm.get(note_id)
    except Refused as error:
        if error.code == "note_not_found":
            return None
        raise


def _searchable(notellm: NoteLLMClient, note_id: str, give_up: float) -> NoteOut | None:
    """The note once it is searchable, or as it is at the end of all patience."""
    while (note := _get(notellm, note_id)) and note.status != "searchable" and time.monotonic() < give_up:
        time.sleep(0.05)
    return note


def _compare(note_id: str, entry: Entry, note: NoteOut | None) -> list[str]:
    """What is wrong with a note as the service has it; the entry then says the same as the service."""
    title = note.title if note else None
    problems = []
    if title != entry.title and title not in entry.unknown:
        problems.append(f"{_kind(entry, title)}: {note_id} is {title!r}, not {entry.title!r}, unknown {entry.unknown}")
    if note and not entry.low <= note.version <= entry.high:
        kind = "lost" if note.version < entry.low else "phantom"
        problems.append(f"{kind}: {note_id} has version {note.version}, not {entry.low}..{entry.high}")
    entry.title, entry.unknown = title, []
    if note:
        entry.low = entry.high = note.version
    return problems


def _kind(entry: Entry, title: str | None) -> str:
    if title is None:
        return "lost"
    if title not in entry.past:
        return "phantom"
    return "resurrected" if entry.title is None else "lost"


def _lists(notellm: NoteLLMClient, live: dict[str, str]) -> list[str]:
    """Every list in full, so that a note that no list names is found, too."""
    assert len(live) <= MOST_RELATED
    problems = []
    for note_id in live:
        answer = notellm.related(note_id, k=MOST_RELATED)
        named = Counter(item.note_id for item in answer.items)
        if answer.degraded:
            problems.append(f"lost: the list of {note_id} is degraded")
        problems += [f"duplicate: {other} in the list of {note_id}" for other, count in named.items() if count > 1]
        problems += [f"lost: {other} from the list of {note_id}" for other in live.keys() - named.keys() - {note_id}]
        problems += [f"resurrected: {other} in the list of {note_id}" for other in named.keys() - live.keys()]
        if note_id in named:
            problems.append(f"phantom: {note_id} in its own list")
        problems += [
            f"lost: {item.note_id} is {item.title!r} in the list of {note_id}"
            for item in answer.items
            if item.title != live.get(item.note_id, item.title)
        ]
    return problems


def stored_events(redis_url: str, folder: Path) -> list[str]:
    """The ids of all stored events, exported to the folder, which may hold earlier ones."""
    with open_sync_redis(redis_url) as redis:
        export(redis, folder)
    return [event for part in folder.glob("dt=*/*.parquet") for event in pq.read_table(part)["event_id"].to_pylist()]
