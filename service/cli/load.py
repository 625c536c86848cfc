"""`notellm load`: sends a file of notes to a running service and waits until they are searchable."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from model.note import Note
from service.cli.common import on_one_line
from service.client import ClientError, NoteLLMClient, Refused
from service.client.bodies import BulkNote
from service.contract.notes import BulkOut

BULK = 500
_TIMEOUT_S, _PATIENCE_S = 60.0, 120.0
_POLL_S = 0.5
_SHOWN = 5
_KEY_REFUSED = {401, 403}


class LoadError(Exception):
    """The service cannot be used; the message is one line for the person who typed the command."""


@dataclass(slots=True)
class Loaded:
    """Counts of a load. ``problems`` holds the first few rejections, each in one line."""

    accepted: int = 0
    rejected: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The summary that the command prints."""
        rate = self.accepted / self.seconds if self.seconds else 0.0
        lines = [f"{self.accepted} notes in {self.seconds:.1f} s, {rate:.0f} notes/s"]
        if self.rejected:
            lines += [f"{self.rejected} were rejected:", *(f"  {problem}" for problem in self.problems)]
        return "\n".join(lines)


def send(notes: Sequence[BulkNote], url: str, *, key: str | None = None, wait: bool = True) -> Loaded:
    """Write the notes in bulks of 500; with ``wait``, return when none is pending any more.

    The seconds include the wait. Progress goes to stderr, when that is a terminal. ``key`` is one of the service's,
    empty for a service that asks for none.

    Raises:
        LoadError: if the service is not there, refuses a bulk, or stays overloaded for two minutes.
    """
    started = time.monotonic()
    loaded = Loaded()
    try:
        with NoteLLMClient(url, key=key, timeout_s=_TIMEOUT_S, patience_s=_PATIENCE_S) as service:
            with _bar("written", len(notes)) as bar:
                for answer in service.put_all(notes, size=BULK):
                    _add(loaded, notes, answer)
                    bar.update(answer.accepted + len(answer.rejected))
            if wait:
                _wait(service, loaded.accepted)
    except Refused as error:
        hint = "; give one with --key or NOTELLM_KEY" if error.status in _KEY_REFUSED else ""
        raise LoadError(f"the service refuses: {error.message}{hint}") from error
    except ClientError as error:
        raise LoadError(str(error)) from error
    loaded.seconds = time.monotonic() - started
    return loaded


def load_source(source: str) -> list[BulkNote]:
    """The notes of a file or folder, or of the samples that come with the package. Raises ValueError."""
    if source == "samples":
        from model.data.samples.generate import sample_notes

        return [_fields(note, {}) for note in sample_notes()]
    from model.data.notes import notes_files, stream_labeled

    return [_fields(labeled.note, labeled.labels) for labeled in stream_labeled(notes_files(Path(source)))]


def _wait(service: NoteLLMClient, accepted: int) -> None:
    with _bar("searchable", accepted) as bar:
        while True:
            status = service.status()
            pending = max(status.notes.pending, status.queue.depth)
            bar.n = max(0, accepted - pending)
            bar.refresh()
            if not pending:
                return
            time.sleep(_POLL_S)


def _add(loaded: Loaded, notes: Sequence[BulkNote], answer: BulkOut) -> None:
    loaded.accepted += answer.accepted
    loaded.rejected += len(answer.rejected)
    problems = [f"{on_one_line(notes[one.position]['note_id'], most=128)}: {one.message}" for one in answer.rejected]
    loaded.problems = (*loaded.problems, *problems)[:_SHOWN]


def _fields(note: Note, labels: Mapping[str, Any]) -> BulkNote:
    fields = {
        "note_id": note.id,
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "category": note.category,
        "exposure": note.exposure,
    }
    return cast(BulkNote, {**fields, **labels})


def _bar(what: str, total: int) -> "tqdm[Any]":
    return tqdm(total=total, desc=what, unit=" notes", file=sys.stderr, disable=None)
