"""A whole turn of `notellm learn` on a real click log: from the model of the demo to one that readers taught.

The model of `model/mini` serves the notes of the data set that were clicked most. The first half of each reader's
clicks is posted, `notellm learn` makes a model of it, and a gate judges both. Then the readers come back: for each
of their later clicks they ask for the notes related to the one before, are shown ten, and click where the note that
they clicked next stands among them. Related requests go on while the decision falls. The last line is one JSON object.

    python tests/bench/learning.py [--data microlens50k] [--notes 4000] [--set steps=150 ...] [--visits 20000]
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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.service import NOTELLM, Service, until
from tqdm import tqdm

from model.data.events import load_events
from model.data.notes import load_notes
from model.note import Note
from service.settings import MINI

DATA = Path(os.environ.get("NOTELLM_DATA_DIR", Path(__file__).parents[2].parent / "shared" / "data"))
DAY_S = 24 * 3600
SHOWN, AT_ONCE = 10, 1000
Visit = tuple[str, str, str]  # the reader, the note that they come from, the one that they clicked next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="microlens50k", help="a data set in NOTELLM_DATA_DIR")
    parser.add_argument("--notes", type=int, default=4000, help="the notes that were clicked most")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, as of `notellm learn`")
    parser.add_argument("--visits", type=int, default=20_000, help="visits of readers in the experiment")
    options = parser.parse_args()
    notes, clicks = read(DATA / options.data, options.notes)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(turn(Path(name), notes, clicks, options.set, options.visits)))


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


def turn(
    folder: Path, notes: Sequence[Note], clicks: dict[str, list[str]], fields: Sequence[str], visits: int
) -> dict[str, Any]:
    """Serve, learn, experiment, decide."""
    began = time.monotonic()
    report: dict[str, Any] = {"notes": len(notes), "readers": len(clicks)}
    service = Service(folder, MINI)
    service.start()
    with service.client() as client:
        for answer in client.put_all(map(body, notes)):
            assert not answer.rejected
        until(lambda: client.status().notes.searchable == len(notes), 1800)
        report["events"] = sum(1 for _ in posted(service.api, past(clicks)))
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
    service.stop()
    return report | {"minutes": round((time.monotonic() - began) / 60, 1)}


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
        for reader, here, there in tqdm(drawn, "visits"):
            path = f"/notes/{here}/related?k={SHOWN}"
            answer = client.get(path, headers={"X-Reader-ID": reader}).raise_for_status().json()
            ids = [one["note_id"] for one in answer["items"]]
            arm, now = found[answer.get("arm") or "none"], time.time()
            arm["lists"] += 1
            arm["shown"] += len(ids)
            for position, note in enumerate(ids, 1):
                named = {"answer_id": answer["answer_id"], "position": position}
                events.append(event(reader, note, "impression", now, **named))
                if note == there:
                    arm["clicks"] += 1
                    events.append(event(reader, note, "click", now, **named))
    for _ in posted(url, iter(events)):
        pass
    return found


@contextmanager
def under_load(url: str, drawn: Sequence[Visit]) -> Iterator[dict[str, Any]]:
    """Related requests during the block, one after the other: how many, how many were no 200, whose lists they were."""
    report: dict[str, Any] = {"answers": 0, "errors": 0, "lists": defaultdict(int)}
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            for reader, here, _ in cycle(drawn):
                if over.is_set():
                    return
                answer = client.get(f"/notes/{here}/related?k={SHOWN}", headers={"X-Reader-ID": reader})
                report["answers"] += 1
                if answer.status_code != 200:
                    report["errors"] += 1
                else:
                    said = answer.json()
                    report["lists"][f"{said.get('arm') or 'none'}:{said['model']}"] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield report
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
