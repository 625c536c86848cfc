"""The commands of learning: a turn, its status, and how to abandon it."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from service.cli.common import FOLDER, TIME, Command, echo, load_settings, mistakes

if TYPE_CHECKING:
    from service.cli.learn.turn import Turn
    from service.contract.learning import UnseenOut


def turns_option(command: Command) -> Command:
    """The folder of turns."""
    return click.option(
        "--turns", type=FOLDER, default=Path("turns"), show_default=True,
        help="The folder in which turns are kept; a killed turn goes on in it.",
    )(command)  # fmt: skip


@click.group(invoke_without_command=True)
@click.option(
    "--data", type=FOLDER,
    help="The folder of `notellm events export`, or one that holds it as `events`, beside the notes if it has some. "
    "Default: events, and notes that are missing, are exported from the service.",
)  # fmt: skip
@click.option("--from", "since", type=TIME, help="Train on events from this time on: 2026-01-31. Default: all.")
@click.option(
    "--test-share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.2, show_default=True,
    help="The share of the notes, those that were seen last, that both models are judged by.",
)  # fmt: skip
@click.option(
    "--recall-at", type=click.IntRange(min=1), default=100, show_default=True, help="The k of the gate's Recall@k."
)
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE",
    help="Another value of a field of the serving model's recipe, e.g. steps=200, learning_rate=0.0001; repeatable.",
)  # fmt: skip
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), default=0.05, show_default=True,
    help="The share of the readers in the experiment; half of them get the new model.",
)  # fmt: skip
@click.option(
    "--days", type=click.FloatRange(min=0), default=14.0, show_default=True,
    help="The new model is taken back after so many days without a difference.",
)  # fmt: skip
@click.option(
    "--every", type=click.FloatRange(min=0), default=0.0, metavar="DAYS",
    help="Begin a turn so many days after the last one began, not earlier.",
)  # fmt: skip
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS",
    help="Wait so long for the new model's index, instead of ending.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Train in so many, each with a GPU."
)
@click.option(
    "--strategy", type=click.Choice(["ddp", "fsdp"]), default="ddp", show_default=True,
    help="With several: a copy of the weights in each, or a share of them.",
)  # fmt: skip
@turns_option
@click.pass_context
def learn(
    context: click.Context,
    data: Path | None,
    since: float | None,
    test_share: float,
    recall_at: int,
    settings: tuple[str, ...],
    share: float,
    days: float,
    every: float,
    wait_s: float,
    processes: int,
    strategy: Literal["ddp", "fsdp"],
    turns: Path,
) -> None:
    """Turn what readers did into a better model: one turn, from their events to an experiment and its end.

    \b
    data        notes and related pairs; the newest notes are held out
    train       a new model: begins as the serving one (NOTELLM_CHECKPOINT), with its recipe
    calibrate   makes its scores mean what they say
    gate        both models on the newest notes: the new one has to be surely better at Recall@k, and surely worse at
                nothing else, or the turn ends here
    index       waits for workers of TURNS/candidate, the new model, until its index lacks nothing
    experiment  gives the new model to half of --share of the readers, and the serving one to the other half
    decision    ships it when it surely gets more clicks and no guard falls; else takes it back

    Run it again, as a CronJob does: it goes on with the step at which it was killed or waited, and needs no process
    to stay alive in between. A new turn begins when the last one is over. What a turn found is in TURNS/turn-NUMBER.

    Events are those of `notellm events export`, with a ts. The service is the one of NOTELLM_REDIS_URL and
    NOTELLM_INDEX__ADDRESSES, or the one that `notellm serve` runs in NOTELLM_STATE_DIR.

    \b
    Examples:
      notellm learn --data ./data --from 2026-01-31
      NOTELLM_CHECKPOINT=turns/candidate NOTELLM_WORKER__NUMBER=1 notellm worker     # when it waits for one
      notellm learn status
    """
    if context.invoked_subcommand is not None:
        return
    asked = {
        "data": None if data is None else str(data.absolute()),
        "from": since,
        "test_share": test_share,
        "recall_at": recall_at,
        "set": list(settings),
        "share": share,
        "days": days,
    }
    with mistakes():
        from model.files import lock_folder
        from service.cli.learn.current import CURRENT, follow
        from service.cli.learn.steps import go_on

        turns.mkdir(parents=True, exist_ok=True)
        with lock_folder(turns):
            follow(turns)
            turn = _turn(turns, asked, every)
            if turn is not None:
                go_on(turn, wait_s, processes, strategy)
            if fingerprint := follow(turns):
                echo(
                    f"{turns / CURRENT} is {fingerprint} from now on: start workers and gateways anew with it", err=True
                )


@learn.command()
@turns_option
def status(turns: Path) -> None:
    """Show the last turn: its steps, for what it waits, the gate's table, and what the serving model never saw.

    \b
    Example:
      notellm learn status
    """
    with mistakes():
        echo(_status(_last(turns)))


@learn.command()
@turns_option
def abandon(turns: Path) -> None:
    """Remove the last turn without a trace: its experiment ends, its model is retired, its files are deleted.

    Refused while a worker of its model runs, and if its model answers. The store keeps the record of an experiment
    that has begun.

    \b
    Example:
      notellm learn abandon
    """
    with mistakes():
        from model.files import lock_folder
        from service.cli.learn import trial

        _last(turns)
        with lock_folder(turns):
            turn = _last(turns)
            trial.undo(turn)
            turn.remove()
            trial.forget(turn)
    echo(f"{turn.folder} is gone")


def _last(turns: Path) -> "Turn":
    from service.cli.learn.turn import Turn

    turn = Turn.last(turns)
    if turn is None:
        raise click.ClickException(f"{turns} holds no turn: `notellm learn` begins one")
    return turn


def _turn(turns: Path, asked: dict[str, Any], every: float) -> "Turn | None":
    """The turn to go on with, or a new one; None if it is too early for one."""
    from service.cli.learn.trial import forget
    from service.cli.learn.turn import Turn

    last = Turn.last(turns)
    if last is not None and last.outcome is None and last.steps:
        if different := [name for name, value in asked.items() if last.asked.get(name) != value]:
            raise click.ClickException(
                f"{last.folder} was begun with another --{different[0].replace('_', '-')}: give the same, or "
                "`notellm learn abandon` it"
            )
        return last
    if last is not None and last.outcome is None:
        last.remove()  # a mistake, or a kill, kept it from its first step
        forget(last)
        last = Turn.last(turns)
    if last is not None and (rest := every * 86_400 - (time.time() - last.begun_at)) > 0:
        echo(f"{last.folder} is over ({last.outcome}); the next turn begins in {rest / 86_400:.1f} days")
        return None
    if last is not None and last.outcome == "refused":
        shutil.rmtree(last.checkpoint, ignore_errors=True)  # its table stays
    return Turn.begin(turns, asked | _serving(turns), last)


def _serving(turns: Path) -> dict[str, str]:
    """The checkpoint that is set, which has to be that of the model that answers."""
    from model.network.checkpoint import described
    from service.cli.learn.current import CURRENT, fingerprint_in
    from service.cli.learn.trial import active_model

    folder = load_settings().checkpoint.resolve()  # of a link, what it leads to now
    fingerprint, active = described(folder).fingerprint, active_model()
    if active not in (None, fingerprint):
        hint = f", such as {turns / CURRENT}" if fingerprint_in(turns / CURRENT) == active else ""
        raise click.ClickException(
            f"{active} answers, and NOTELLM_CHECKPOINT is {fingerprint}: set it to the checkpoint of the model that "
            f"answers{hint}, here and for its workers"
        )
    return {"serving": str(folder), "fingerprint": fingerprint}


def _status(turn: "Turn") -> str:
    from service.cli.learn.lessons import GATE
    from service.cli.learn.summary import summary

    told = summary(turn)
    state = f"over, {turn.outcome}: {turn.why}" if turn.outcome else "not over"
    lines = [f"{turn.folder}, begun {_minute(told.begun)} UTC from {told.serving}: {state}", ""]
    for step in told.steps:
        when = {"done": _minute(step.at or ""), "open": ""}.get(step.state, step.state)
        says = f"for {step.says}" if step.state == "waits" else step.says or step.about
        lines.append(f"  {step.name:10}  {when:16}  {says}")
    if told.gate:
        lines += ["", (turn.folder / GATE).read_text(encoding="utf-8").rstrip()]
    if told.hashtags and told.categories:
        lines += ["", _unseen("hashtags", told.hashtags), _unseen("categories", told.categories)]
    return "\n".join(lines)


def _unseen(kind: str, found: "UnseenOut") -> str:
    if not found.new:
        return f"{kind.capitalize()} of the newest notes: none is new."
    most = ", ".join(found.most)
    return f"{kind.capitalize()} of the newest notes that are new: {found.new:,}, {found.share:.1%} of all: {most}"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
