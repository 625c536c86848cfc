"""The commands of a rollout: list, activate and retire models."""

from typing import TYPE_CHECKING

import click

from service.cli.common import echo
from service.cli.rollout.checks import check_known, check_whole, run

if TYPE_CHECKING:
    from service.wiring.rollout import Rollout

WORKER_RUNS_S = 15.0


@click.group()
def model() -> None:
    """Roll another model out, and go back.

    Start a worker of the new checkpoint, and keep those of the old one. It registers its model, every note is queued
    for it, and every indexer builds an index of it, while the old model goes on answering. When `list` says that
    the new one lacks nothing, `activate` lets it answer. As long as workers of the old model run, its index stays
    up to date, and `activate` goes back to it within a second. `retire` ends that and frees the memory.

    The commands need NOTELLM_REDIS_URL and NOTELLM_INDEX__ADDRESSES; without them they take the service that
    `notellm serve` runs in NOTELLM_STATE_DIR.

    \b
    Example:
      NOTELLM_CHECKPOINT=./new NOTELLM_WORKER__NUMBER=1 notellm worker
      notellm model list
      notellm model activate 6f1d0c2ab3e49587
      notellm model retire 0a9b8c7d6e5f4a3b
    """


@model.command(name="list")
def list_models() -> None:
    """Show every model: whether it answers, how far its workers are, and how many notes its index lacks.

    \b
    Example:
      notellm model list
    """
    run(_list)


@model.command()
@click.argument("fingerprint")
@click.option("--force", is_flag=True, help="Even if its index lacks notes, or cannot be asked.")
def activate(fingerprint: str, force: bool) -> None:
    """Let the model FINGERPRINT answer from now on.

    Refused unless its index holds every note, in its present version, that the index of the active model holds.
    Every gateway follows within half a second; each request is answered by one model from start to end. For a day it
    is watched: where its answers are clearly worse than before, the model before is activated again, as long as workers
    of it run (NOTELLM_GUARD__*).

    \b
    Example:
      notellm model activate 6f1d0c2ab3e49587
    """
    run(lambda service: _activate(service, fingerprint, force=force))


@model.command()
@click.argument("fingerprint")
def retire(fingerprint: str) -> None:
    """Delete the predictions of the model FINGERPRINT, and its indexes.

    Refused for the active model, for one in an experiment that runs, and while one of its workers runs: it would bring
    the model back.

    \b
    Example:
      notellm model retire 0a9b8c7d6e5f4a3b
    """
    run(lambda service: retire_model(service, fingerprint))


async def _list(service: "Rollout") -> None:
    from indexer.types import ShardUnavailable
    from service.store.rollout import gap

    active = service.registered.active
    line = "{:16}  {:6}  {:>10}  {:>13}  {:>10}  {:>10}"
    echo(line.format("fingerprint", "", "predicted", "dead-lettered", "waiting", "lacks"))
    for fingerprint in service.registered.dims:
        progress = await service.registry.progress(fingerprint)
        lacks: object = ""
        if active is not None and fingerprint != active:
            try:
                lacks = (await gap(service.registry, service.searcher, fingerprint, active)).notes
            except ShardUnavailable:
                lacks = "unknown"
        state = "active" if fingerprint == active else ""
        echo(line.format(fingerprint, state, progress.predicted, progress.dead_lettered, progress.waiting, lacks))
    watch, _ = await service.watches.now()
    if watch and watch.state in ("watching", "taken_back"):
        echo(str(watch))


async def _activate(service: "Rollout", fingerprint: str, *, force: bool) -> None:
    check_known(service, fingerprint)
    active = service.registered.active
    if fingerprint == active:
        echo(f"{fingerprint} is active already")
        return
    if not force:
        await check_whole(service, fingerprint)
    if not await service.registry.activate(fingerprint):
        raise click.ClickException(f"{fingerprint} was retired a moment ago")
    back = f"; `notellm model activate {active}` goes back" if active is not None else ""
    echo(f"{fingerprint} answers from now on{back}")


async def retire_model(service: "Rollout", fingerprint: str) -> None:
    """Retire a model and say so. Raises ClickException."""
    check_known(service, fingerprint)
    if used := [one.name for one in await service.experiments.all() if one.runs and fingerprint in one.models]:
        raise click.ClickException(f"{fingerprint} is in the experiment {used[0]}; `notellm experiment stop` it first")
    idle_s = (await service.registry.progress(fingerprint)).idle_s
    if fingerprint != service.registered.active and idle_s is not None and idle_s < WORKER_RUNS_S:
        raise click.ClickException(
            f"a worker of {fingerprint} asked for notes {idle_s:.1f} s ago; stop its workers, "
            f"and repeat this {WORKER_RUNS_S:.0f} s later"
        )
    if not await service.registry.retire(fingerprint):
        raise click.ClickException(
            f"{fingerprint} is active, or in an experiment since now; `notellm model activate` another one first"
        )
    echo(f"{fingerprint} is retired; every indexer removes its index within a second")
