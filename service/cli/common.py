"""Shared by commands: options, settings, the store, and errors as one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pydantic import ValidationError
    from redis import Redis as SyncRedis

    from service.settings import Settings

Command = Callable[..., None]
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
SPLIT = "Keep it the same in `pairs` and `evaluate`, or a model is judged on notes that it was trained on."


def holdout_options(command: Command) -> Command:
    """The two options of the split by note."""
    share = click.option(
        "--holdout", default=0.3, show_default=True, help=f"Share of the notes kept for evaluation. {SPLIT}"
    )
    seed = click.option("--split-seed", default=0, show_default=True, help="Which notes those are.")
    return share(seed(command))


@contextmanager
def mistakes() -> Iterator[None]:
    """Errors that a person can mend become one line: wrong files, a wrong checkpoint, a missing package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed; this command needs: pip install 'notellm[train]'"
        ) from error
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def load_settings() -> "Settings":
    """The settings of the environment. Raises ClickException, naming every variable that is wrong."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        raise click.ClickException(_explain(error)) from None
    except SettingsError as error:
        raise click.ClickException(
            f"{error}: a list is written as JSON, as in NOTELLM_WORKER__ADDRESSES='[\"127.0.0.1:9100\"]'"
        ) from None


def _explain(error: "ValidationError") -> str:
    """Every problem with its variable, in one line, without the values: one may be a password."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        place, rule = detail["loc"], detail["msg"].removeprefix("Value error, ")
        name = "NOTELLM_" + "__".join(str(part) for part in place).upper()
        if detail["type"] == "extra_forbidden":
            rule = f"unknown setting {name}; `notellm settings` lists the known ones"
        problems.append(f"{name}: {rule}" if place and "NOTELLM_" not in rule else rule)
    return "; ".join(problems)


@contextmanager
def store(*, make: bool = False) -> "Iterator[SyncRedis]":
    """A client of the store; see `service.processes.local_redis.reached`. Mistakes become ClickException."""
    settings = load_settings()
    from service.processes.local_redis import reached
    from service.store.connection import open_sync_redis

    with store_mistakes(), reached(settings, make=make) as url, open_sync_redis(url) as redis:
        yield redis


@contextmanager
def store_mistakes() -> Iterator[None]:
    """Errors of settings, disk and Redis become one line."""
    from service.errors import StoreUnavailable
    from service.settings import SetupError

    try:
        yield
    except (SetupError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except StoreUnavailable as error:
        raise click.ClickException(f"{error}; NOTELLM_REDIS_URL says where it is") from error
