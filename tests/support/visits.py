"""Readers of a running service: they ask for a list, see all of it, and click what they clicked in a log."""

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import httpx
from support.history import Click
from tqdm import tqdm

from model.note import Note

SHOWN, AT_ONCE = 10, 1000
# Between two visits of one reader after the other, and between two drafts of an author.
_PAUSE_S, _THINKS_S = 0.01, 1.0
_TRIES = 30

Event = dict[str, Any]


def event(reader: str, note: str, kind: str, ts: float, **answer: object) -> Event:
    """An event as `POST /events` takes it."""
    return {"event_id": os.urandom(8).hex(), "user_id": reader, "note_id": note, "type": kind, "ts": ts, **answer}


def post(url: str, events: Iterable[Event]) -> int:
    """Post the events, a thousand at a time; how many they were."""
    waiting, count = iter(events), 0
    with httpx.Client(base_url=url, timeout=60) as client:
        while some := list(islice(waiting, AT_ONCE)):
            answer = client.post("/events", json={"events": some}).raise_for_status().json()
            assert answer["accepted"] == len(some), answer
            count += len(some)
    return count


def ask(client: httpx.Client, visit: Click) -> httpx.Response:
    """The list that a reader is shown."""
    return client.get(f"/notes/{visit.here}/related?k={SHOWN}", headers={"X-Reader-ID": visit.reader})


def patiently(client: httpx.Client, visit: Click) -> dict[str, Any]:
    """The same; a machine that other work holds up may need several tries."""
    for _ in range(_TRIES):
        if (response := ask(client, visit)).status_code == 200:
            break
        time.sleep(1)
    return dict(response.raise_for_status().json())


def seen(visit: Click, answer: dict[str, Any]) -> Iterator[Event]:
    """What a reader does with a list: they see all of it, and click the note that they clicked, if it is there."""
    for position, item in enumerate(answer["items"], 1):
        named = {"answer_id": answer["answer_id"], "position": position}
        yield event(visit.reader, item["note_id"], "impression", visit.ts, **named)
        if item["note_id"] == visit.note:
            yield event(visit.reader, item["note_id"], "click", visit.ts, **named)


def replay(url: str, clicks: Sequence[Click], most: int) -> dict[str, int]:
    """Each click as an event: with the answer in whose list it stands, where a list was asked for and has it.

    Readers ask for ``most`` lists, for those of the last clicks.
    """
    told = Counter(lists=0, events=0, clicks_in_lists=0)

    def events(client: httpx.Client) -> Iterator[Event]:
        for number, click in enumerate(tqdm(clicks, "replay", mininterval=10)):
            done: list[Event] = []
            if number >= len(clicks) - most and click.here not in (None, click.note):
                done = list(seen(click, patiently(client, click)))
                told["lists"] += 1
            named = any(one["type"] == "click" for one in done)
            told["clicks_in_lists"] += named
            yield from done
            if not named:
                yield event(click.reader, click.note, "click", click.ts)

    with httpx.Client(base_url=url, timeout=30) as client:
        told["events"] = post(url, events(client))
    return dict(told)


def visit_all(url: str, visits: Sequence[Click]) -> dict[str, Counter[str]]:
    """Readers come back: lists, shown items and clicks of each arm."""
    arms: dict[str, Counter[str]] = defaultdict(Counter)

    def events(client: httpx.Client) -> Iterator[Event]:
        for visit in tqdm(visits, "visits", mininterval=10):
            answer = patiently(client, visit)
            done, shown = list(seen(visit, answer)), len(answer["items"])
            arms[answer.get("arm") or "none"] += Counter(lists=1, shown=shown, clicks=len(done) - shown)
            yield from done

    with httpx.Client(base_url=url, timeout=30) as client:
        post(url, events(client))
    return dict(arms)


@contextmanager
def traffic(url: str, visits: Sequence[Click], notes: Sequence[Note], drafters: int = 2) -> Iterator[dict[str, Any]]:
    """Visits, and drafts of ``drafters`` authors, during the block: errors, and lists, clicks and drafts by model.

    A model's list for a note is always the same, as no note is written: one that differs is ``mixed``, of two models.
    Of two notes with the same text either may stand in it. Lists that say that a shard was silent are ``degraded``.
    ``arms`` are the lists by arm and model: each arm has one.
    """
    report: dict[str, Any] = {
        "errors": Counter(),
        "mixed": 0,
        "degraded": 0,
        "lists": Counter(),
        "arms": Counter(),
        "clicks": Counter(),
        "drafts": Counter(),
    }
    texts = {note.id: (note.title, note.content) for note in notes}
    known: dict[tuple[str | None, str], list[tuple[str, str]]] = {}
    over = threading.Event()

    def read() -> None:
        coming = cycle(visits)
        with httpx.Client(base_url=url, timeout=30) as client:
            while not over.is_set():
                events: list[Event] = []
                for visit in islice(coming, 200):
                    if over.wait(_PAUSE_S):
                        break
                    visit = visit._replace(ts=time.time())
                    answer = _answer(report, lambda visit=visit: ask(client, visit))
                    if answer is None:
                        continue
                    ids, model = [item["note_id"] for item in answer["items"]], answer["model"]
                    report["lists"][model] += 1
                    report["arms"][f"{answer.get('arm') or 'none'}: {model}"] += 1
                    if answer["degraded"]:  # a shard was silent
                        report["degraded"] += 1
                    else:
                        said = [texts[id_] for id_ in ids]
                        report["mixed"] += known.setdefault((visit.here, model), said) != said
                    done = list(seen(visit, answer))
                    report["clicks"][model] += len(done) - len(ids)
                    events += done
                post(url, events)

    def write() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for number, note in enumerate(cycle(notes)):
                if over.wait(_THINKS_S):
                    return
                draft = {"title": note.title, "content": f"{note.content} {number}"}
                answer = _answer(report, lambda draft=draft: client.post("/notes/tags", json=draft))
                if answer is not None:
                    report["drafts"][answer["model"]] += 1

    threads = [threading.Thread(target=work) for work in (read, *[write] * drafters)]
    for thread in threads:
        thread.start()
    try:
        yield report
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _answer(report: dict[str, Any], ask: Callable[[], httpx.Response]) -> dict[str, Any] | None:
    """The answer; None where there is none, which counts as an error of the name that the service gives it."""
    try:
        response = ask()
        if response.status_code == 200:
            return dict(response.json())
        name = f"{response.request.method} {response.status_code} {response.json()['error']['code']}"
    except (httpx.HTTPError, ValueError) as error:
        name = type(error).__name__
    report["errors"][name] += 1
    return None
