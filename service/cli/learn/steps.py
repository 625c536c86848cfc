"""A turn from step to step, until one waits or the turn is over."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from click import ClickException

from model.data.events import load_events
from model.data.notes import has_notes, load_notes
from service.cli.common import echo, on_one_line
from service.cli.learn import lessons, trial
from service.cli.learn.lessons import Done
from service.cli.learn.summary import STEPS
from service.cli.learn.trial import Waits
from service.cli.learn.turn import Turn

if TYPE_CHECKING:
    from model.training.distributed import Strategy

_LOOK_EVERY_S = 2.0


def go_on(turn: Turn, wait_s: float, processes: int, strategy: "Strategy") -> None:
    """The steps that are not done, one after the other; for the index it waits ``wait_s`` seconds."""
    work = _work(turn, processes, strategy)
    for name in STEPS:
        if name in turn.steps:
            continue
        echo(f"{turn.folder.name}: {name}, {STEPS[name]}", err=True)
        trial.tell(turn, runs=name)
        started = time.monotonic()
        with _told_of_failures(turn):
            done = work[name]()
            while isinstance(done, Waits) and name == "index" and time.monotonic() - started < wait_s:
                if done.for_what != turn.waits_for:
                    _wait(turn, done)
                time.sleep(_LOOK_EVERY_S)
                done = work[name]()
        if isinstance(done, Waits):
            _wait(turn, done)
            echo(f"{turn.folder.name} waits for {done.for_what}")
            return
        turn.record(name, time.monotonic() - started, done.inputs, done.found, done.outcome, done.why)
        if name == "gate":
            echo((turn.folder / lessons.GATE).read_text(encoding="utf-8"))
        if turn.outcome:
            trial.tell(turn)
            echo(f"{turn.folder.name} is over, {turn.outcome}: {turn.why}")
            return


def _wait(turn: Turn, done: Waits) -> None:
    turn.wait(done.for_what)
    trial.tell(turn)


@contextmanager
def _told_of_failures(turn: Turn) -> Iterator[None]:
    """Who looks at the turn elsewhere hears why a step did not end."""
    try:
        yield
    except Exception as error:
        trial.tell(turn, failed=on_one_line(error.message if isinstance(error, ClickException) else str(error)))
        raise


def _work(turn: Turn, processes: int, strategy: "Strategy") -> dict[str, Callable[[], Done | Waits]]:
    return {
        "data": partial(_gather, turn),
        "train": partial(lessons.train, turn, processes, strategy),
        "calibrate": partial(lessons.calibrate, turn),
        "gate": partial(lessons.gate, turn),
        "index": partial(trial.index, turn),
        "experiment": partial(trial.experiment, turn),
        "decision": partial(_decide, turn),
    }


def _gather(turn: Turn) -> Done:
    if turn.asked["data"] is None:
        trial.export_events(_exported(turn))
        if not any(_exported(turn).glob("dt=*/*.parquet")):
            raise ValueError("the service has no events to learn from: applications report them by POST /events")
        events = load_events(_exported(turn))
    else:
        events = load_events(Path(turn.asked["data"]))
    given = Path(turn.asked["data"] or turn.folder)
    if not has_notes(given):
        given = turn.folder
        trial.export_notes(given / "notes.parquet")
    return lessons.gather(turn, load_notes(given), events)


def _decide(turn: Turn) -> Done | Waits:
    return trial.decision(turn, _exported(turn), exports=turn.asked["data"] is None)


def _exported(turn: Turn) -> Path:
    """The folder of exported events and answers: ours, if none was given."""
    if turn.asked["data"] is None:
        return turn.folder.parent / "events"
    given = Path(turn.asked["data"])
    return given / "events" if (given / "events").is_dir() else given
