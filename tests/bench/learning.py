"""A whole turn of `notellm learn` on a real click log: from the model of the demo to one that readers taught.

The model of `model/mini` serves the notes of the data set that were clicked most. The first half of each reader's
clicks is posted, `notellm learn` makes a model of it, and a gate judges both. Then the readers come back: for each
of their later clicks they ask for the notes related to the one before, are shown ten, and click where the note that
they clicked next stands among them. Related requests go on while the decision falls.

``--sabotage`` then activates a model that does harm (`support.sabotage`), as an operator can past every gate, and goes
on with visits and drafts until the service has taken it back by itself. With ``--visits 0`` there is no turn before,
and the model is that of the demo. The guard looks at two minutes instead of five, at clicks after one instead of 15,
and at 50 answers instead of 200. The last line is one JSON object.

    python tests/bench/learning.py [--data microlens50k] [--notes 4000] [--set steps=150 ...] [--visits 20000]
                                   [--sabotage shuffled] [--sabotage slow]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.sabotage import SABOTAGES
from support.service import NOTELLM, Service, until
from tqdm import tqdm

from model.data.events import load_events
from model.data.notes import load_notes
from model.network.checkpoint import load_manifest
from model.note import Note
from service.client import NoteLLMClient
from service.settings import MINI

DATA = Path(os.environ.get("NOTELLM_DATA_DIR", Path(__file__).parents[2].parent / "shared" / "data"))
DAY_S = 24 * 3600
SHOWN, AT_ONCE = 10, 1000
# Lists and drafts of the model before, to compare with; and seconds between two visits of one reader after the other.
BEFORE, BEFORE_DRAFTS, PAUSE_S = 3000, 250, 0.01
Visit = tuple[str, str, str]  # the reader, the note that they come from, the one that they clicked next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="microlens50k", help="a data set in NOTELLM_DATA_DIR")
    parser.add_argument("--notes", type=int, default=4000, help="the notes that were clicked most")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, as of `notellm learn`")
    parser.add_argument("--visits", type=int, default=20_000, help="visits of readers in the experiment")
    parser.add_argument("--sabotage", action="append", default=[], choices=SABOTAGES, help="a model to be taken back")
    options = parser.parse_args()
    notes, clicks = read(DATA / options.data, options.notes)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service, report = filled(folder, notes, clicks)
        serving = MINI
        if options.visits:
            report |= turn(service, folder, clicks, options.set, options.visits)
            if "over, shipped" in report["decision"]:
                serving = folder / "turns" / "turn-0001" / "checkpoint"
        if service.process.poll() is None:
            service.stop()
        for kind in options.sabotage:
            report[kind] = way_back(service, folder, serving, kind, list(future(clicks)), notes)
    print(json.dumps(report | {"minutes": round((time.monotonic() - began) / 60, 1)}))


def read(folder: Path, most: int) -> tuple[list[Note], dict[str, list[str]]]:
    """The notes that were clicked most, and of each reader the clicks on them, in order."""
    log = load_events(folder)
    times: dict[int, int] = defaultdict(int)
    for note in log.notes.tolist():
        times[note] += 1
    kept = {log.note_ids[note] for note in sorted(times, key=times.__getitem__, reverse=True)[:most]}
    notes = [note for note in load_notes(folder) if note.id in kept and note.title]
    ids, clicks = {note.id for note in notes}, defaultdict(list)
    for row in log.ts.argsort(kind="stable").tolist():
        if (note_id := log.note_ids[log.notes[row]]) in ids:
            clicks[f"u{log.users[row]}"].append(note_id)
    return notes, {reader: own for reader, own in clicks.items() if len(own) > 2}


def filled(folder: Path, notes: Sequence[Note], clicks: dict[str, list[str]]) -> tuple[Service, dict[str, Any]]:
    """The service with the model of the demo, which has read the notes, and the first half of the clicks."""
    service = Service(folder, MINI)
    service.start()
    with service.client() as client:
        for answer in client.put_all(map(body, notes)):
            assert not answer.rejected
        until(lambda: client.status().notes.searchable == len(notes), 1800)
        events = sum(1 for _ in posted(service.api, past(clicks)))
    return service, {"notes": len(notes), "readers": len(clicks), "events": events}


def turn(
    service: Service, folder: Path, clicks: dict[str, list[str]], fields: Sequence[str], visits: int
) -> dict[str, Any]:
    """Learn, experiment, decide."""
    report: dict[str, Any] = {}
    asked = ["--share", "1", *(word for field in fields for word in ("--set", field))]
    report["decision"] = learn(service, folder, *asked)
    report["gate"] = (folder / "turns" / "turn-0001" / "gate.md").read_text()
    print(report["gate"], file=sys.stderr)
    service.stop()
    if "refused" in report["decision"]:
        return report
    service.environment["NOTELLM_CANDIDATE"] = str(folder / "turns" / "candidate")
    service.start()
    learn(service, folder, *asked, "--wait", "1800")
    drawn = random.Random(0).sample(list(future(clicks)), visits)
    report["experiment"] = visit(service.api, drawn)
    with under_load(service.api, drawn) as load:
        report["decision"] = learn(service, folder, *asked)
        time.sleep(3)
    report["load"] = load
    return report


def way_back(
    service: Service, folder: Path, serving: Path, kind: str, visits: list[Visit], notes: Sequence[Note]
) -> dict[str, Any]:
    """Activate a model that does harm, and wait until it is taken back; what readers got meanwhile."""
    bad, good = SABOTAGES[kind](serving, folder / kind).fingerprint, load_manifest(serving).fingerprint
    service.environment |= {
        "NOTELLM_CHECKPOINT": str(serving),
        "NOTELLM_CANDIDATE": str(folder / kind),
        "NOTELLM_GUARD__MINUTES": "2",
        "NOTELLM_GUARD__ANSWERS": "50",
        "NOTELLM_GUARD__CLICK_MINUTES": "1",
    }
    service.start()
    random.Random(0).shuffle(visits)
    until(lambda: is_whole(service, bad), 1800)
    with service.client() as client, traffic(service.api, visits, notes) as load:
        until(lambda: load["lists"][good] > BEFORE and load["drafts"][good] > BEFORE_DRAFTS, 600)
        subprocess.run([*NOTELLM, "model", "activate", bad], env=service.environment, stdout=sys.stderr, check=True)
        began = time.monotonic()
        until(lambda: taken_back(client, bad), 600)
        seconds, late = time.monotonic() - began, load["lists"][bad]
        time.sleep(3)
        watch = client.status().watch
        assert watch is not None
        assert (watch.model, watch.before) == (bad, good)
        report = {"seconds": round(seconds), "reason": watch.reason, "detail": watch.detail}
        report["lists_of_it_afterwards"] = load["lists"][bad] - late
    service.stop()
    return report | load


def taken_back(client: NoteLLMClient, fingerprint: str) -> bool:
    """Whether the guard has this model taken back."""
    watch = client.status().watch
    return watch is not None and (watch.model, watch.state) == (fingerprint, "taken_back")


def is_whole(service: Service, fingerprint: str) -> bool:
    """Whether the index of a model that is not active lacks nothing, by `notellm model list`."""
    command = [*NOTELLM, "model", "list"]
    listed = subprocess.run(command, env=service.environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    lacks = [line.split()[-1] for line in listed.splitlines() if line.startswith(fingerprint)]
    print(f"{fingerprint} lacks {lacks or 'all'}", file=sys.stderr)
    return lacks == ["0"]


def past(clicks: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """The first half of each reader's clicks, in the 60 days until now.

    The data set has no times, only an order. Each note is drawn a day on which it was written, and each reader clicks
    within an hour, on the day after the last of their notes was.
    """
    draw, start_s = random.Random(0), time.time() - 60 * DAY_S
    written_s: dict[str, float] = defaultdict(lambda: start_s + draw.uniform(0, 58 * DAY_S))
    for reader, own in clicks.items():
        half = own[: len(own) // 2]
        came_s = max(map(written_s.__getitem__, half)) + draw.uniform(0, DAY_S)
        for place, note in enumerate(half):
            yield event(reader, note, "click", came_s + place)


def future(clicks: dict[str, list[str]]) -> Iterator[Visit]:
    """Each later click: the reader, the note that they come from, and the one that they clicked next."""
    for reader, own in clicks.items():
        yield from ((reader, here, there) for here, there in pairwise(own[len(own) // 2 - 1 :]) if here != there)


def body(note: Note) -> dict[str, Any]:
    return {"note_id": note.id, "title": note.title, "content": note.content, "hashtags": list(note.hashtags)}


def event(reader: str, note: str, kind: str, ts: float, **answer: object) -> dict[str, Any]:
    return {"event_id": os.urandom(8).hex(), "user_id": reader, "note_id": note, "type": kind, "ts": ts, **answer}


def posted(url: str, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Post the events, a thousand at a time; yields them."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while some := list(islice(events, AT_ONCE)):
            answer = client.post("/events", json={"events": some}).raise_for_status().json()
            assert answer["accepted"] == len(some), answer
            yield from some


def learn(service: Service, folder: Path, *options: str) -> str:
    """One run of the command; what it said."""
    command = [*NOTELLM, "learn", "--turns", str(folder / "turns"), *options]
    environment = service.environment | {"NOTELLM_CHECKPOINT": str(MINI)}
    environment.pop("NOTELLM_CANDIDATE", None)
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print(said, file=sys.stderr)
    return said.splitlines()[-1]


def visit(url: str, drawn: Sequence[Visit]) -> dict[str, dict[str, float]]:
    """Readers come back, are shown lists, and click what they clicked: shown items and clicks of each arm."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"lists": 0, "shown": 0, "clicks": 0})
    events: list[dict[str, Any]] = []
    with httpx.Client(base_url=url, timeout=30) as client:
        for one in tqdm(drawn, "visits"):
            answer = ask(client, one).raise_for_status().json()
            arm = found[answer.get("arm") or "none"]
            arm["lists"] += 1
            arm["shown"] += len(answer["items"])
            events += (seen := list(done(one, answer)))
            arm["clicks"] += len(seen) - len(answer["items"])
    for _ in posted(url, iter(events)):
        pass
    return found


def ask(client: httpx.Client, one: Visit) -> httpx.Response:
    """The list that a reader is shown."""
    reader, here, _ = one
    return client.get(f"/notes/{here}/related?k={SHOWN}", headers={"X-Reader-ID": reader})


def done(one: Visit, answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What they do with it: they see all of it, and click the note that they clicked."""
    reader, _, there = one
    now = time.time()
    for position, item in enumerate(answer["items"], 1):
        named = {"answer_id": answer["answer_id"], "position": position}
        yield event(reader, item["note_id"], "impression", now, **named)
        if item["note_id"] == there:
            yield event(reader, item["note_id"], "click", now, **named)


def refusal(response: httpx.Response) -> str:
    """What was asked for, and why it was not answered."""
    return f"{response.request.method} {response.status_code} {response.json()['error']['code']}"


@contextmanager
def traffic(url: str, drawn: Sequence[Visit], notes: Sequence[Note]) -> Iterator[dict[str, Any]]:
    """Visits and drafts during the block: errors, lists and drafts by model, and lists that are no model's own.

    A model's list for a note is always the same, as no note is written: one that differs is a mixture of two.
    """
    report: dict[str, Any] = {
        "errors": Counter(),
        "mixed": 0,
        "lists": Counter(),
        "clicks": Counter(),
        "drafts": Counter(),
    }
    known: dict[tuple[str, str], list[str]] = {}
    over = threading.Event()

    def visits() -> None:
        coming = cycle(drawn)
        with httpx.Client(base_url=url, timeout=30) as client:
            while not over.is_set():
                events: list[dict[str, Any]] = []
                for one in islice(coming, 200):
                    if over.wait(PAUSE_S):
                        return
                    response = ask(client, one)
                    if response.status_code != 200:
                        report["errors"][refusal(response)] += 1
                        continue
                    answer = response.json()
                    ids = [item["note_id"] for item in answer["items"]]
                    report["lists"][answer["model"]] += 1
                    report["mixed"] += known.setdefault((one[1], answer["model"]), ids) != ids
                    events += (seen := list(done(one, answer)))
                    report["clicks"][answer["model"]] += len(seen) - len(ids)
                for _ in posted(url, iter(events)):
                    pass

    def drafts() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            for number, note in enumerate(cycle(notes)):
                if over.is_set():
                    return
                draft = {"title": note.title, "content": f"{note.content} {number}"}
                response = client.post("/notes/tags", json=draft)
                if response.status_code == 200:
                    report["drafts"][response.json()["model"]] += 1
                else:
                    report["errors"][refusal(response)] += 1

    threads = [threading.Thread(target=work) for work in (visits, drafts, drafts)]
    for thread in threads:
        thread.start()
    try:
        yield report
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def under_load(url: str, drawn: Sequence[Visit]) -> Iterator[dict[str, Any]]:
    """Related requests during the block, one after the other: how many, how many were no 200, whose lists they were."""
    report: dict[str, Any] = {"answers": 0, "errors": 0, "lists": defaultdict(int)}
    over = threading.Event()

    def requests() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            for one in cycle(drawn):
                if over.is_set():
                    return
                answer = ask(client, one)
                report["answers"] += 1
                if answer.status_code != 200:
                    report["errors"] += 1
                else:
                    said = answer.json()
                    report["lists"][f"{said.get('arm') or 'none'}:{said['model']}"] += 1

    thread = threading.Thread(target=requests)
    thread.start()
    try:
        yield report
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
