"""Clients of a service under faults: threads that write and read, and put down honestly what they were answered."""

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from support.ledger import Ledger
from support.service import until

from service.client import NoteLLMClient

# Longer than every deadline: that a request ends at all is for the service to see to.
TIMEOUT_S = 30.0
# These say that nothing was stored. Any other 5xx, and no answer at all, leaves a write unknown.
_REFUSED = ("overloaded", "queue_full")
KEPT = [f"kept{number}" for number in range(10)]
_SERIAL = itertools.count()


@dataclass(frozen=True, slots=True)
class Answered:
    """One request and its answer; status 0 when the connection ended without one. ``at`` is when it went out."""

    kind: str
    at: float
    seconds: float
    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """A 2xx, and no degraded one."""
        return 200 <= self.status < 300 and b'"degraded":true' not in self.body


class Clients:
    """Writers, each of notes of its own, and readers of all or of those ``asked``, until the end of the block.

    Each thread repeats its seed's requests; ``pause_s`` lies between two of one thread.
    """

    def __init__(
        self,
        api: str,
        ledger: Ledger,
        seed: int,
        *,
        writers: int = 3,
        readers: int = 0,
        notes: int = 30,
        pause_s: float = 0.01,
        asked: Sequence[str] = (),
    ) -> None:
        self.answers: list[Answered] = []
        self._api = api
        self._ledger = ledger
        self._pause_s = pause_s
        self._ids = [[f"w{writer}-{number}" for number in range(notes)] for writer in range(writers)]
        self._asked = asked or list(itertools.chain(*self._ids))
        self._stop = threading.Event()
        self._errors: list[Exception] = []
        steps = [self._write] * writers + [self._read] * readers
        self._threads = [
            threading.Thread(target=self._run, args=(step, number, random.Random(f"{seed}-{number}")))
            for number, step in enumerate(steps)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors and error is None:
            raise self._errors[0]

    def worked(self, kind: str, since: float) -> bool:
        """Whether a request of this kind that went out since then was answered in full."""
        return any(answer.ok for answer in list(self.answers) if answer.kind == kind and answer.at >= since)

    def _run(
        self, step: Callable[[httpx.Client, random.Random, int], None], number: int, chance: random.Random
    ) -> None:
        with httpx.Client(base_url=self._api, timeout=TIMEOUT_S, trust_env=False) as http:
            while not self._stop.wait(self._pause_s):
                try:
                    step(http, chance, number)
                except Exception as error:  # of this class or the ledger: raised at the end of the block
                    self._errors.append(error)
                    return

    def _write(self, http: httpx.Client, chance: random.Random, writer: int) -> None:
        note_id = chance.choice(self._ids[writer])
        match chance.choices(["put", "patch", "delete", "bulk", "events"], [45, 15, 15, 5, 20])[0]:
            case "put":
                self._put(http, note_id, chance)
            case "patch":
                self._patch(http, note_id, chance)
            case "delete":
                self._delete(http, note_id)
            case "bulk":
                self._bulk(http, chance.sample(self._ids[writer], 5), chance)
            case "events":
                self._record(http, note_id)

    def _put(self, http: httpx.Client, note_id: str, chance: random.Random) -> None:
        title = new_title(chance)
        self._ledger.begin(note_id, title)
        answer = self._send(http, "put", "PUT", f"/notes/{note_id}", {"title": title})
        if 200 <= answer.status < 300:
            self._ledger.acknowledge(note_id, title, json.loads(answer.body)["version"])
        elif _refused(answer):
            self._ledger.refuse(note_id, title)

    def _patch(self, http: httpx.Client, note_id: str, chance: random.Random) -> None:
        """Half of them leave the text alone, so that no worker has a part in them."""
        entry = self._ledger.notes.get(note_id)
        if entry is None or entry.title is None or entry.unknown:
            self._put(http, note_id, chance)
            return
        title = chance.choice([entry.title, new_title(chance)])
        self._ledger.begin(note_id, title)
        body = {"title": title, "attributes": {"number": chance.random()}}
        answer = self._send(http, "patch", "PATCH", f"/notes/{note_id}", body)
        if 200 <= answer.status < 300:
            self._ledger.acknowledge(note_id, title, json.loads(answer.body)["version"])
        elif _refused(answer):
            self._ledger.refuse(note_id, title)

    def _delete(self, http: httpx.Client, note_id: str) -> None:
        self._ledger.begin(note_id, None)
        answer = self._send(http, "delete", "DELETE", f"/notes/{note_id}")
        if answer.status == 204:
            self._ledger.acknowledge(note_id, None)
        elif answer.status == 404 and self._ledger.notes[note_id].low:
            self._ledger.problems.append(f"lost: {note_id} was never seen, says its delete")
        elif _refused(answer):
            self._ledger.refuse(note_id, None)

    def _bulk(self, http: httpx.Client, note_ids: list[str], chance: random.Random) -> None:
        titles = {note_id: new_title(chance) for note_id in note_ids}
        for note_id, title in titles.items():
            self._ledger.begin(note_id, title)
        body = [{"note_id": note_id, "title": title} for note_id, title in titles.items()]
        answer = self._send(http, "bulk", "POST", "/notes", body)
        for note_id, title in titles.items():
            if 200 <= answer.status < 300:
                self._ledger.acknowledge(note_id, title)
            elif _refused(answer):
                self._ledger.refuse(note_id, title)

    def _record(self, http: httpx.Client, note_id: str) -> None:
        event_ids = [f"e{next(_SERIAL)}" for _ in range(3)]
        self._ledger.begin_events(event_ids)
        events = [
            {"event_id": one, "user_id": "u", "note_id": note_id, "type": "click", "ts": 1.0} for one in event_ids
        ]
        if self._send(http, "events", "POST", "/events", {"events": events}).ok:
            self._ledger.acknowledge_events(event_ids)

    def _read(self, http: httpx.Client, chance: random.Random, number: int) -> None:
        gone = self._ledger.gone()
        answer = self._send(http, "related", "GET", f"/notes/{chance.choice(self._asked)}/related?k=100")
        if answer.status == 200:
            self._ledger.saw((item["note_id"] for item in json.loads(answer.body)["items"]), gone)

    def _send(self, http: httpx.Client, kind: str, method: str, path: str, body: object = None) -> Answered:
        start = time.monotonic()
        try:
            response = http.request(method, path, json=body)
            status, content = response.status_code, response.content
        except httpx.ConnectError:
            status, content = 0, b"nobody listens"
        except httpx.HTTPError:
            status, content = 0, b""
        answer = Answered(kind, start, time.monotonic() - start, status, content)
        self.answers.append(answer)
        return answer


def new_title(chance: random.Random) -> str:
    """A title that no other note ever has."""
    return f"{chance.choice(['Kyoto', 'Ramen', 'Dune', 'Crochet', 'Sonata'])} {next(_SERIAL)} {chance.random():.6f}"


def keep(notellm: NoteLLMClient, ledger: Ledger) -> None:
    """Store the notes `KEPT`, wait until they are searchable, and ask for each once, so that a gateway knows it."""
    for note_id in KEPT:
        ledger.begin(note_id, title := f"Title of {note_id}")
        ledger.acknowledge(note_id, title, notellm.put(note_id, {"title": title}, wait_s=10).version)
    until(lambda: all(len(notellm.related(note_id).items) >= len(KEPT) - 1 for note_id in KEPT))


def _refused(answer: Answered) -> bool:
    if not answer.status:
        return answer.body == b"nobody listens"
    return answer.status < 500 or json.loads(answer.body)["error"]["code"] in _REFUSED
