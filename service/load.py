"""`notellm load`: sends a file of notes to a running service and waits until they can be found."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from tqdm import tqdm

from model.note import Note

BULK = 500
_PATIENCE_S = 120.0
_POLL_S = 0.5
_SHOWN = 5
_KEY_REFUSED = {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}


class LoadError(Exception):
    """The service cannot be used; the message is one line for the person who typed the command."""


@dataclass(slots=True)
class Loaded:
    """What became of the notes. ``problems`` holds the first few rejections, each in one line."""

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


def load(notes: Sequence[Note], url: str, *, wait: bool = True, key: str = "") -> Loaded:
    """Write the notes in bulks of 500; with ``wait``, return when none is pending any more.

    The seconds include the wait. Progress goes to stderr, when that is a terminal. ``key`` is one of the service's,
    empty for a service that asks for none.

    Raises:
        LoadError: if the service is not there, refuses a bulk, or stays overloaded for two minutes.
    """
    started = time.monotonic()
    loaded = Loaded()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, timeout=60.0, headers=headers) as client:
        with _bar("written", len(notes)) as bar:
            for bulk in _bulks(notes):
                _add(loaded, bulk, _post(client, bulk))
                bar.update(len(bulk))
        if wait:
            _wait(client, loaded.accepted)
    loaded.seconds = time.monotonic() - started
    return loaded


def read(source: str) -> list[Note]:
    """The notes of a file or folder, or of the samples that come with the package. Raises ValueError."""
    if source == "samples":
        from model.samples.generate import sample_notes

        return sample_notes()
    from model.data import read_notes

    return read_notes(Path(source))


def _bulks(notes: Sequence[Note]) -> Iterator[Sequence[Note]]:
    for start in range(0, len(notes), BULK):
        yield notes[start : start + BULK]


def _post(client: httpx.Client, bulk: Sequence[Note]) -> dict[str, Any]:
    body = b"\n".join(orjson.dumps(_element(note)) for note in bulk)
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        response = _send(client, "POST", "/notes", body)
        if response.status_code == httpx.codes.ACCEPTED:
            return dict(response.json())
        if response.status_code not in {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}:
            raise LoadError(f"the service refused the notes: {_message(response)}{_hint(response)}")
        if time.monotonic() > give_up:
            raise LoadError(f"the service stays overloaded: {_message(response)}")
        time.sleep(_retry_after_s(response))


def _wait(client: httpx.Client, accepted: int) -> None:
    with _bar("searchable", accepted) as bar:
        while True:
            response = _send(client, "GET", "/status")
            if response.status_code == httpx.codes.OK:
                status = response.json()
                pending = max(status["notes"]["pending"], status["queue"]["depth"])
                bar.n = max(0, accepted - pending)
                bar.refresh()
                if not pending:
                    return
            elif response.status_code in _KEY_REFUSED:
                raise LoadError(f"cannot see whether they can be found: {_message(response)}{_hint(response)}")
            time.sleep(_POLL_S)


def _send(client: httpx.Client, method: str, path: str, body: bytes | None = None) -> httpx.Response:
    headers = {"Content-Type": "application/x-ndjson"} if body else {}
    try:
        return client.request(method, path, content=body, headers=headers)
    except httpx.HTTPError as error:
        raise LoadError(f"no service answers at {client.base_url}: {error}") from error


def _add(loaded: Loaded, bulk: Sequence[Note], answer: dict[str, Any]) -> None:
    loaded.accepted += answer["accepted"]
    loaded.rejected += len(answer["rejected"])
    problems = [f"{bulk[item['position']].id}: {item['message']}" for item in answer["rejected"]]
    loaded.problems = (*loaded.problems, *problems)[:_SHOWN]


def _element(note: Note) -> dict[str, Any]:
    return {
        "note_id": note.id,
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "category": note.category,
        "exposure": note.exposure,
    }


def _retry_after_s(response: httpx.Response) -> float:
    seconds = response.headers.get("Retry-After", "1")
    return float(seconds) if seconds.isdigit() else 1.0


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _hint(response: httpx.Response) -> str:
    return "; give one with --key or NOTELLM_KEY" if response.status_code in _KEY_REFUSED else ""


def _bar(what: str, total: int) -> "tqdm[Any]":
    return tqdm(total=total, desc=what, unit=" notes", file=sys.stderr, disable=None)
