"""The link that leads to the checkpoint of the model that answers, so that what starts anew starts with it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from model.network.checkpoint import CheckpointError, described
from service.cli.common import load_settings
from service.cli.learn.trial import active_model
from service.cli.learn.turn import Turn, lead

CURRENT = "current"


def follow(turns: Path) -> str | None:
    """Let ``turns/current`` lead to the model that answers; its fingerprint, where it led to another one before.

    Nothing is done where no service answers, or none of the known checkpoints is of that model: those of the turns,
    those that they began with, and NOTELLM_CHECKPOINT.
    """
    with suppress(click.ClickException):
        active, link = active_model(), turns / CURRENT
        folder = next((folder for folder in _known(turns) if fingerprint_in(folder) == active), None)
        if active is not None and folder is not None and fingerprint_in(link) != active:
            lead(link, folder)
            return active
    return None


def _known(turns: Path) -> Iterator[Path]:
    for path in sorted(turns.glob("turn-*/turn.json"), reverse=True):
        with suppress(ValueError):  # of a release to come
            turn = Turn.load(path.parent)
            yield from (turn.checkpoint, turn.serving)
    yield load_settings().checkpoint.resolve()


def fingerprint_in(folder: Path) -> str | None:
    """That of the checkpoint in a folder, None without one."""
    try:
        return described(folder).fingerprint
    except CheckpointError:
        return None
