"""The commands of experiments: start, list, status, report, stop and ship."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from service.cli.common import FOLDER, echo, mistakes
from service.cli.rollout.checks import check_known, check_whole, run

if TYPE_CHECKING:
    from service.experiments.results import Results
    from service.store.experiments.records import Arm, Experiment
    from service.wiring.rollout import Rollout

# The rules of lists that an arm may have.
PARAMETERS = ("debias", "diversity", "duplicates", "group_by", "half_life_days", "min_score", "per_group")


@click.group()
def experiment() -> None:
    """Compare two models, or two rules for lists, on readers.

    A part of the readers is in the experiment, half of them in each arm, always the same: a hash of the reader decides,
    whom requests name with `for_user` or the header X-Reader-ID. Nobody is in two experiments. Answers say experiment
    and arm, and events that name their `answer_id` tell which arm is better.

    The commands need NOTELLM_REDIS_URL and NOTELLM_INDEX__ADDRESSES; without them they take the service that
    `notellm serve` runs in NOTELLM_STATE_DIR.

    \b
    Example:
      notellm experiment start winter-model --arms A=0a9b8c7d6e5f4a3b B=6f1d0c2ab3e49587 --share 0.5
      notellm events export --to ./data/events && notellm experiment report winter-model --data ./data/events
      notellm experiment ship winter-model B
    """


@experiment.command()
@click.argument("name")
@click.option(
    "--arms", nargs=2, required=True, metavar="A=MODEL[,RULE=VALUE...] B=MODEL[,...]",
    help=f"Two names, each with a fingerprint and rules for lists, of {', '.join(PARAMETERS)}.",
)  # fmt: skip
@click.option(
    "--share", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True,
    help="The share of all readers that are in it, in thousandths; half of them in each arm.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Even if an index lacks notes, or cannot be asked.")
def start(name: str, arms: tuple[str, str], share: float, force: bool) -> None:
    """Start the experiment NAME between two arms; the second is compared with the first.

    Both models must be registered, with indexes that hold every note that the active model's holds; their workers have
    to go on running. The rules of an arm hold for requests that do not give them themselves. Gateways follow within
    half a second. NAME is 1 to 40 of a-z 0-9 _ -, and was never used before.

    \b
    Examples:
      notellm experiment start winter-model --arms A=0a9b8c7d6e5f4a3b B=6f1d0c2ab3e49587 --share 0.5
      notellm experiment start spread --arms A=0a9b8c7d6e5f4a3b B=0a9b8c7d6e5f4a3b,diversity=0.3
    """
    from service.store.experiments.records import NAME

    if not NAME.fullmatch(name):
        raise click.ClickException("the name of an experiment is 1 to 40 of a-z 0-9 _ -, a letter or digit first")
    first, second = map(_arm, arms)
    if first.name == second.name:
        raise click.ClickException(f"both arms are named {first.name}: give them two names")
    run(lambda service: start_experiment(service, name, (first, second), share, force=force))


@experiment.command(name="list")
def list_experiments() -> None:
    """Show every experiment, by its start: whether it runs, its share of the readers, and its arms.

    \b
    Example:
      notellm experiment list
    """
    run(_list)


@experiment.command()
@click.argument("name")
def status(name: str) -> None:
    """Show the experiment NAME: since when, with which arms, and whether their models are able to answer.

    \b
    Example:
      notellm experiment status winter-model
    """
    run(lambda service: _status(service, name))


@experiment.command()
@click.argument("name")
@click.option("--data", type=FOLDER, required=True, help="The folder of `notellm events export`.")
@click.option("--memory", default="1GB", show_default=True, help="Memory of the joins; what does not fit goes to disk.")
def report(name: str, data: Path, memory: str) -> None:
    """Say what the experiment NAME shows so far: clicks and accepted hashtags, and what else changed.

    It may be looked at as often as you like: the changes hold at every look. Items are counted by the events that name
    their answer (`answer_id`), hashtags by the writes that do. The first line is the verdict. Gateways show the report
    from then on, as it is now: `GET /experiments/NAME`, and the console.

    \b
    Example:
      notellm events export --to ./data/events && notellm experiment report winter-model --data ./data/events
    """
    with mistakes():
        from service.experiments.report import format_report
        from service.experiments.results import results_of

        async def find(service: "Rollout") -> "tuple[Experiment, str]":
            one = await find_experiment(service, name)
            return one, await _since_shipped(service, one)

        found, since = run(find)
        results = results_of(found, data, memory)
        run(lambda service: tell_report(service, found, results))
        echo(format_report(found, results))
        if since:
            echo(f"\nSince it was shipped: {since}.")


@experiment.command()
@click.argument("name")
def stop(name: str) -> None:
    """End the experiment NAME: its readers get the active model again. Its record stays, for the report.

    \b
    Example:
      notellm experiment stop winter-model
    """
    run(lambda service: stop_experiment(service, name))


@experiment.command()
@click.argument("name")
@click.argument("arm")
@click.option("--force", is_flag=True, help="Even if its index lacks notes, or cannot be asked.")
def ship(name: str, arm: str, force: bool) -> None:
    """End the experiment NAME and activate the model of ARM for everybody, in one step.

    Rules for lists that the arm had end with the experiment: requests have to give them from then on.

    \b
    Example:
      notellm experiment ship winter-model B
    """
    run(lambda service: ship_arm(service, name, arm, force=force))


def _arm(text: str) -> "Arm":
    """An arm as it is typed. Raises ClickException."""
    from service.store.experiments.records import ARM, Arm

    name, _, rest = text.partition("=")
    model, *rules = rest.split(",")
    if not ARM.fullmatch(name) or not model:
        raise click.ClickException(
            "an arm is NAME=FINGERPRINT[,RULE=VALUE...], its name 1 to 20 of A-Z a-z 0-9 _ -: B=6f1d0c2a,debias=0.3"
        )
    return Arm(name, model, _parameters(name, dict(rule.partition("=")[::2] for rule in rules)))


def _parameters(arm: str, rules: dict[str, str]) -> dict[str, float | str]:
    from pydantic import ValidationError

    from service.api.validation import explain
    from service.contract.related import Rules

    if unknown := [rule for rule in rules if rule not in PARAMETERS]:
        raise click.ClickException(f"arm {arm}: rule {unknown[0]!r} is none of {', '.join(PARAMETERS)}")
    try:
        return Rules.model_validate_strings(rules).model_dump(include=set(rules))
    except ValidationError as error:
        raise click.ClickException(f"arm {arm}: {explain(error)}") from None


async def start_experiment(
    service: "Rollout", name: str, arms: "tuple[Arm, Arm]", share: float, *, force: bool
) -> None:
    """Start an experiment and say so. Raises ClickException, as the next ones do."""
    for model in dict.fromkeys(arm.model for arm in arms):
        check_known(service, model)
        if not force:
            await check_whole(service, model)
    match await service.experiments.start(name, arms, share):
        case "known":
            raise click.ClickException(f"there was an experiment {name} already: a new one needs a new name")
        case "crowded":
            left = 1 - sum(one.share for one in await service.experiments.all() if one.runs)
            raise click.ClickException(
                f"running experiments leave {left:.1%} of the readers: take a smaller --share, or `stop` one of them"
            )
        case "unregistered":
            raise click.ClickException("one of the models was retired a moment ago")
    echo(f"{name} runs with {share:.1%} of the readers: half get {arms[0]}, half {arms[1]}")


async def _list(service: "Rollout") -> None:
    line = "{:24}  {:14}  {:>7}  {:16}  {}"
    echo(line.format("experiment", "", "readers", "since", "arms"))
    for one in await service.experiments.all():
        arms = " ".join(map(str, one.arms))
        echo(line.format(one.name, _state(one), f"{one.share:.1%}", _time(one.started_at), arms))


async def _status(service: "Rollout", name: str) -> None:
    found = await find_experiment(service, name)
    until = "" if found.ended_at is None else f" until {_time(found.ended_at)}"
    echo(f"{name}: {_state(found)}, {found.share:.1%} of the readers, from {_time(found.started_at)}{until} UTC")
    for arm in found.arms:
        echo(f"  {arm}: {await _health(service, arm.model)}")
    if since := await _since_shipped(service, found):
        echo(f"  {since}")


async def _since_shipped(service: "Rollout", experiment: "Experiment") -> str:
    """What became of the model that was shipped, in a sentence; empty if another one was activated since."""
    shipped = experiment.shipped and experiment.arm(experiment.shipped)
    watch, _ = await service.watches.now()
    return str(watch) if shipped and watch and watch.model == shipped.model else ""


async def _health(service: "Rollout", model: str) -> str:
    if model not in service.registered.dims:
        return "its model is retired"
    active = "active, " if model == service.registered.active else ""
    waiting = f"{(await service.registry.progress(model)).waiting} notes wait for its workers"
    try:
        await check_whole(service, model)
    except click.ClickException:
        return f"{active}{waiting}, its index lacks notes or cannot be asked: see `notellm model list`"
    return f"{active}{waiting}, its index is whole"


async def stop_experiment(service: "Rollout", name: str) -> None:
    """End an experiment and say so."""
    if await service.experiments.stop(name) != "done":
        _refuse(await find_experiment(service, name))
    echo(f"{name} is over; its readers get the active model again")


async def ship_arm(service: "Rollout", name: str, arm: str, *, force: bool) -> None:
    """End an experiment, activate the model of an arm, and say so."""
    found = await find_experiment(service, name)
    shipped = found.arm(arm)
    if shipped is None:
        raise click.ClickException(f"{name} has no such arm: it has {' and '.join(one.name for one in found.arms)}")
    if not found.runs:
        _refuse(found)
    check_known(service, shipped.model)
    if not force:
        await check_whole(service, shipped.model)
    if await service.experiments.ship(name, arm) != "done":
        _refuse(await find_experiment(service, name))
    echo(f"{name} is over; {shipped.model} answers from now on")
    if shipped.parameters:
        rules = ", ".join(f"{rule}={value}" for rule, value in shipped.parameters.items())
        echo(f"{arm} was tried with {rules}: requests have to give that from now on")


async def tell_report(service: "Rollout", experiment: "Experiment", results: "Results") -> None:
    """Let gateways show the report."""
    import time

    from service.experiments.figures import report_out

    record = report_out(experiment, results, time.time()).model_dump_json()
    await service.findings.tell("experiment", experiment.name, record)


async def tell_reports(service: "Rollout", folder: "Path") -> None:
    """Let gateways show what the running experiments say by a folder of exported answers, if it holds some."""
    from service.experiments.results import results_of

    if any(folder.glob("_answers/dt=*/part-*.parquet")):
        for one in await service.experiments.all():
            if one.runs:
                await tell_report(service, one, results_of(one, folder))


async def find_experiment(service: "Rollout", name: str) -> "Experiment":
    """The experiment of a name."""
    for one in await service.experiments.all():
        if one.name == name:
            return one
    raise click.ClickException("there is no experiment of this name; `notellm experiment list` shows all")


def _refuse(found: "Experiment") -> NoReturn:
    raise click.ClickException(f"{found.name} does not run: {_state(found)}, {_time(found.ended_at or 0)} UTC")


def _state(found: "Experiment") -> str:
    return "runs" if found.runs else f"shipped {found.shipped}" if found.shipped else "stopped"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
