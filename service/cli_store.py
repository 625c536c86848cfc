"""The store as a command reaches it: what goes wrong with it is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from service.cli_settings import read_settings

if TYPE_CHECKING:
    from redis import Redis as SyncRedis


@contextmanager
def store(*, make: bool = False) -> "Iterator[SyncRedis]":
    """A client of the store; see `private_redis.reached`. Mistakes become ClickException."""
    settings = read_settings()
    from service.changes import open_sync_redis
    from service.private_redis import reached

    with store_mistakes(), reached(settings, make=make) as url, open_sync_redis(url) as redis:
        yield redis


@contextmanager
def store_mistakes() -> Iterator[None]:
    """What a person can mend of settings, disk and Redis becomes one line."""
    from service.errors import StoreUnavailable
    from service.settings import SetupError

    try:
        yield
    except (SetupError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except StoreUnavailable as error:
        raise click.ClickException(f"{error}; NOTELLM_REDIS_URL says where it is") from error
