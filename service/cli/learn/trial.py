"""The steps of a turn on the running service: the new model's index, the experiment, and what becomes of it."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.common import load_settings, store, store_cells
from service.cli.learn.lessons import Done
from service.cli.learn.summary import summary
from service.cli.learn.turn import Turn
from service.cli.rollout.checks import gap_of, run
from service.cli.rollout.experiments import find_experiment, ship_arm, start_experiment, stop_experiment, tell_report
from service.cli.rollout.models import retire_model

if TYPE_CHECKING:
    from service.store.experiments.records import Experiment
    from service.wiring.rollout import Rollout

SERVING, NEW = "A", "B"


@dataclass(frozen=True, slots=True)
class Waits:
    """A step that is not done yet, and for what it waits."""

    for_what: str


def index(turn: Turn) -> Done | Waits:
    """Whether the new model's workers have read every note, and its index lacks none that can be read."""
    link, fingerprint = turn.offer(), turn.found("train")["fingerprint"]

    async def look(service: "Rollout") -> Done | Waits:
        from indexer.types import ShardUnavailable

        if fingerprint not in service.registered.dims:
            return Waits(f"a worker of the new model, {fingerprint}: NOTELLM_CHECKPOINT={link} notellm worker")
        try:
            lacking = await gap_of(service, fingerprint)
        except ShardUnavailable as error:
            return Waits(f"the index: {error}")
        if lacking.notes > lacking.dead_lettered:
            waiting = (await service.registry.progress(fingerprint)).waiting
            return Waits(
                f"the new model's index: it lacks {lacking.notes:,} notes, and {waiting:,} wait for the workers of "
                f"{fingerprint}"
            )
        return Done({"fingerprint": fingerprint}, {"dead_lettered": lacking.dead_lettered})

    return run(look)


def experiment(turn: Turn) -> Done | Waits:
    """Both models on readers; one that a killed run has started is gone on with."""
    from service.store.experiments.records import Arm

    arms = Arm(SERVING, turn.asked["fingerprint"], {}), Arm(NEW, turn.found("train")["fingerprint"], {})

    async def start(service: "Rollout") -> Done:
        if all(one.name != turn.experiment for one in await service.experiments.all()):
            if service.registered.active != arms[0].model:
                raise click.ClickException(
                    f"{service.registered.active} was activated since the turn began with {arms[0].model}: the gate's "
                    "table is of another comparison; `notellm learn abandon` it, and begin another"
                )
            # The step before has looked at the index; notes that no worker can read keep no model from readers.
            await start_experiment(service, turn.experiment, arms, turn.asked["share"], force=True)
        return Done({arm.name: arm.model for arm in arms}, {"name": turn.experiment})

    return run(start)


def decision(turn: Turn, answers: Path, *, exports: bool) -> Done | Waits:
    """Ship the new model, take it back, or go on waiting, by the answers and events that were exported.

    Args:
        answers: the folder of `notellm events export`.
        exports: whether to bring it up to date.
    """
    from service.experiments.decision import decide
    from service.experiments.results import results_of

    found = run(lambda service: find_experiment(service, turn.experiment))
    if not found.runs:
        return _ended(turn, found)
    if exports:
        export_events(answers)
    if not any(answers.glob("_answers/dt=*/part-*.parquet")):
        return Waits(f"the experiment {found.name}: {answers} holds no answers yet")
    results = results_of(found, answers)
    run(lambda service: tell_report(service, found, results))
    decided = decide(found, results, time.time(), turn.asked["days"])
    if decided.do == "wait":
        return Waits(f"the experiment {found.name}: {decided.why}")
    inputs = {arm.name: arm.model for arm in found.arms}
    if decided.do == "ship":
        if isinstance(lacking := index(turn), Waits):
            return lacking  # its workers were away during the experiment
        run(lambda service: ship_arm(service, found.name, NEW, force=True))
        return Done(inputs, {"verdict": decided.why}, "shipped", decided.why)
    run(lambda service: stop_experiment(service, found.name))
    turn.withdraw()
    return Done(inputs, {"verdict": decided.why}, "taken back", decided.why)


def _ended(turn: Turn, found: "Experiment") -> Done:
    """Somebody has decided; or a run that was killed before it could say so."""
    outcome = "shipped" if found.shipped == NEW else "taken back"
    if outcome == "taken back":
        turn.withdraw()
    return Done({}, {"verdict": "its experiment was ended"}, outcome, f"the experiment {found.name} was ended")


def undo(turn: Turn) -> None:
    """End the turn's experiment and retire its model, if they got so far.

    Raises:
        ClickException: if the model is active, or one of its workers runs.
    """
    if "gate" not in turn.steps or turn.outcome == "refused":
        return
    fingerprint = turn.found("train")["fingerprint"]

    async def take_back(service: "Rollout") -> None:
        if any(one.name == turn.experiment and one.runs for one in await service.experiments.all()):
            await stop_experiment(service, turn.experiment)
        if fingerprint in service.registered.dims:
            if fingerprint == service.registered.active:
                raise click.ClickException(
                    f"{fingerprint} answers: `notellm model activate {turn.asked['fingerprint']}` first"
                )
            turn.withdraw()  # or its workers, once ended, would come back
            await retire_model(service, fingerprint)

    run(take_back)


def tell(turn: Turn, *, runs: str = "", failed: str = "") -> None:
    """Let gateways show the turn; see `summary`. Where no store answers, they show what they heard last."""
    record = summary(turn, runs=runs, failed=failed).model_dump_json()
    with suppress(click.ClickException):
        run(lambda service: service.findings.tell("turn", turn.experiment, record))


def forget(turn: Turn) -> None:
    """Let gateways show it no longer, if a store answers."""
    with suppress(click.ClickException):
        run(lambda service: service.findings.forget("turn", turn.experiment))


def export_events(folder: Path) -> None:
    """Bring the exported events and answers up to date."""
    from service.backup import events

    with store() as redis:
        events.export(redis, folder)


def export_notes(path: Path) -> None:
    """The notes of the service, as a file."""
    from service.backup.notes import export

    with store_cells() as cells:
        export(cells, path)


def active_model() -> str | None:
    """The model that answers; None where no service is set and none runs."""
    from service.processes.state import reach
    from service.settings import SetupError

    settings = load_settings()
    try:
        reach(settings)
    except SetupError:
        return None
    return run(_active)


async def _active(service: "Rollout") -> str | None:
    return service.registered.active
