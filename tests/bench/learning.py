"""Two models of a real click log: the first learns from the first halves of the readers' clicks, `notellm learn` makes
the second of what they do while the first one serves.

The first model has the recipe of `model/mini`. The second half of the clicks is replayed: the reader is shown ten notes
related to the one before, for the last ``--replayed`` of them, and the events name that answer. `notellm learn`
makes a model of all this, and a gate judges both. Then each reader comes back for the last click, which nobody has
learned from, in an experiment of both models; visits and drafts go on while the decision falls. The same clicks are
ranked by both models, too.

``--sabotage`` then ships a model that does harm (`support.sabotage`), as an operator can past every gate, and goes on
with visits and drafts until the service has taken it back by itself; ``--guard`` changes its settings. With
``--visits 0`` there is no turn before, and the model is that of the demo. The last line is one JSON object.

    python tests/bench/learning.py [--data microlens50k] [--notes 4000] [--first steps=400 ...] [--set steps=150 ...]
                                   [--replayed 20000] [--visits 20000]
                                   [--sabotage slow ...] [--guard click_minutes=1 ...]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.history import Click, History, history
from support.sabotage import SABOTAGES
from support.service import NOTELLM, UNSET, Service, until
from support.visits import event, post, replay, traffic, visit_all

from model.data.events import load_events
from model.data.notes import load_notes, write_notes
from model.evaluation.baselines import Embeddings
from model.evaluation.metrics import bootstrap, paired_bootstrap
from model.evaluation.retrieval import truth_ranks
from model.inference.many import embed_all
from model.inference.open import open_backend
from model.network.checkpoint import load_manifest
from model.note import Note
from service.client import NoteLLMClient
from service.settings import MINI

DATA = Path(os.environ.get("NOTELLM_DATA_DIR", Path(__file__).parents[2].parent / "shared" / "data"))
HOLDOUT = "0.1"
KS = (10, 100)
# Lists and drafts of the model before, to compare with.
BEFORE, BEFORE_DRAFTS = 3000, 210


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="microlens50k", help="a data set in NOTELLM_DATA_DIR")
    parser.add_argument("--notes", type=int, default=4000, help="the notes that were clicked most")
    parser.add_argument("--first", action="append", default=[], help="a field of the first model's recipe")
    parser.add_argument("--set", action="append", default=[], help="a field of the second one's, as of `notellm learn`")
    parser.add_argument("--replayed", type=int, default=20_000, help="clicks of the second half that follow a list")
    parser.add_argument("--visits", type=int, default=20_000, help="readers who come back in the experiment")
    parser.add_argument("--sabotage", action="append", default=[], choices=SABOTAGES, help="a model to be taken back")
    parser.add_argument("--guard", action="append", default=[], help="a setting of the guard, such as minutes=2")
    options = parser.parse_args()
    notes, past = read(DATA / options.data, options.notes)
    visits = [click for click in past.last if click.here != click.note]
    random.Random(0).shuffle(visits)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        serving = first_model(folder / "first", notes, past, options.first) if options.visits else MINI
        service = Service(folder, serving)
        try:
            report = filled(service, notes, past)
            if options.visits:
                report["replay"] = replay(service.api, past.second, options.replayed)
                report |= turn(service, folder, options.set, visits[: options.visits], notes)
                second = folder / "turns" / "turn-0001" / "checkpoint"
                report["last_clicks"] = last_clicks(serving, second, notes, visits)
                print(report, file=sys.stderr)
                if "over, shipped" in report["decision"]:
                    serving = second
            service.environment |= guard_settings(options.guard)
            for kind in options.sabotage:
                stop(service)
                report[kind] = way_back(service, folder, serving, kind, visits, notes)
        finally:
            stop(service)
    print(json.dumps(report | {"minutes": round((time.monotonic() - began) / 60, 1)}))


def stop(service: Service) -> None:
    """If it runs."""
    if service.process.poll() is None:
        service.stop()


def read(folder: Path, most: int) -> tuple[list[Note], History]:
    """The notes that were clicked most, and the clicks on them of readers who have three or more."""
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
    return notes, history({reader: own for reader, own in clicks.items() if len(own) > 2}, time.time())


def first_model(folder: Path, notes: Sequence[Note], past: History, fields: Sequence[str]) -> Path:
    """The checkpoint that `notellm train` makes of the first halves, with the recipe of `model/mini`."""
    folder.mkdir()
    write_notes(folder / "notes.parquet", [note for note in notes if note.id in past.old])
    columns = {
        "user_id": [click.reader for click in past.first],
        "note_id": [click.note for click in past.first],
        "ts": [click.ts for click in past.first],
        "event": ["click"] * len(past.first),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")
    pairs, checkpoint = folder / "pairs.parquet", folder / "checkpoint"
    asked = [word for field in fields for word in ("--set", field)]
    for command in (
        ["pairs", folder, "--holdout", HOLDOUT, "--out", pairs],
        ["train", folder, "--pairs", pairs, "--recipe", "mini", "--out", checkpoint, *asked],
    ):
        subprocess.run([*NOTELLM, *map(str, command)], env=UNSET, stdout=sys.stderr, check=True)
    return checkpoint


def filled(service: Service, notes: Sequence[Note], past: History) -> dict[str, Any]:
    """Let the service read the notes and hear of the first half of the clicks."""
    service.start()
    with service.client() as client:
        for answer in client.put_all(map(body, notes)):
            assert not answer.rejected
        until(lambda: client.status().notes.searchable == len(notes), 1800)
    events = post(service.api, (event(click.reader, click.note, "click", click.ts) for click in past.first))
    return {"notes": len(notes), "old": len(past.old), "readers": len(past.last), "first": events}


def turn(
    service: Service, folder: Path, fields: Sequence[str], visits: Sequence[Click], notes: Sequence[Note]
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
    report["experiment"] = visit_all(service.api, visits)
    with traffic(service.api, visits, notes) as load:
        report["decision"] = learn(service, folder, *asked)
        time.sleep(3)
    report["load"] = load
    return report


def last_clicks(first: Path, second: Path, notes: Sequence[Note], visits: Sequence[Click]) -> dict[str, Any]:
    """Recall@k of the last clicks among all notes, percent, with the 95% interval of a bootstrap over readers."""
    places = {note.id: place for place, note in enumerate(notes)}
    targets, truths = (np.array([places[getattr(click, end)] for click in visits]) for end in ("here", "note"))
    ranks = [
        truth_ranks(Embeddings(name, embed_all(open_backend("hf", folder), notes)), targets, truths, len(notes))
        for name, folder in (("first", first), ("second", second))
    ]
    found: dict[str, Any] = {"readers": len(visits)}
    for k in KS:
        hits = [(one < k).astype(np.float64) for one in ranks]
        intervals = {"first": bootstrap(hits[0]), "second": bootstrap(hits[1]), "change": paired_bootstrap(*hits[::-1])}
        found[f"recall@{k}"] = {
            name: [round(100 * value, 2) for value in (one.mean, one.low, one.high)] for name, one in intervals.items()
        }
    return found


def way_back(
    service: Service, folder: Path, serving: Path, kind: str, visits: Sequence[Click], notes: Sequence[Note]
) -> dict[str, Any]:
    """Ship a model that does harm, and wait until it is taken back; what readers got meanwhile."""
    bad, good = SABOTAGES[kind](serving, folder / kind).fingerprint, load_manifest(serving).fingerprint
    service.environment |= {"NOTELLM_CHECKPOINT": str(serving), "NOTELLM_CANDIDATE": str(folder / kind)}
    service.start()
    until(lambda: is_whole(service, bad), 1800)
    with service.client() as client, traffic(service.api, visits, notes) as load:
        until(lambda: load["lists"][good] > BEFORE and load["drafts"][good] > BEFORE_DRAFTS, 900)
        notellm(service, "experiment", "start", kind, "--arms", f"A={good}", f"B={bad}", "--share", "0.002")
        notellm(service, "experiment", "ship", kind, "B")
        began = time.monotonic()
        until(lambda: taken_back(client, bad), 1500)
        seconds, late = time.monotonic() - began, load["lists"][bad]
        time.sleep(3)
        watch = client.status().watch
        assert watch is not None
        assert (watch.model, watch.before) == (bad, good)
        report = {"seconds": round(seconds), "reason": watch.reason, "detail": watch.detail}
        load["per_minute"] = {name: round(60 * load[name][bad] / seconds, 1) for name in ("lists", "drafts")}
        report["lists_of_it_afterwards"] = load["lists"][bad] - late
    return report | load


def guard_settings(settings: Sequence[str]) -> dict[str, str]:
    """``minutes=2`` and the like, as the environment has them."""
    named = (setting.partition("=") for setting in settings)
    return {f"NOTELLM_GUARD__{name.upper()}": value for name, _, value in named}


def taken_back(client: NoteLLMClient, fingerprint: str) -> bool:
    """Whether the guard has this model taken back."""
    watch = client.status().watch
    return watch is not None and (watch.model, watch.state) == (fingerprint, "taken_back")


def is_whole(service: Service, fingerprint: str) -> bool:
    """Whether the index of a model that is not active lacks nothing, by `notellm model list`."""
    listed = notellm(service, "model", "list")
    lacks = [line.split()[-1] for line in listed.splitlines() if line.startswith(fingerprint)]
    print(f"{fingerprint} lacks {lacks or 'all'}", file=sys.stderr)
    return lacks == ["0"]


def body(note: Note) -> dict[str, Any]:
    return {"note_id": note.id, "title": note.title, "content": note.content, "hashtags": list(note.hashtags)}


def learn(service: Service, folder: Path, *options: str) -> str:
    """One run of the command; the last line of what it said."""
    said = notellm(service, "learn", "--turns", str(folder / "turns"), *options).strip()
    print(said, file=sys.stderr)
    return said.splitlines()[-1]


def notellm(service: Service, *words: str) -> str:
    """A command of whoever runs the service; what it said."""
    environment = {name: value for name, value in service.environment.items() if name != "NOTELLM_CANDIDATE"}
    return subprocess.run([*NOTELLM, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
