"""Connections to Redis, and the errors of a Redis that cannot serve as StoreUnavailable."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.errors import StoreUnavailable
from service.settings import Settings, SetupError

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

# Errors of a Redis that runs but cannot serve: no memory, read-only replica, full disk, loading, busy.
CANNOT_SERVE = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "BUSY ", "MASTERDOWN ", "NOREPLICAS ", "NOAUTH ")
# Errors of a script that lacks rights: of Redis up to 7.0, and later.
DENIED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
REMEDY = "give it the rights that deploy/redis/users.acl lists"
_COMMAND = re.compile(r"no permissions to run the '([\w|]+)' command")


def redis_url(settings: Settings) -> str:
    """With its password. Raises SetupError when there is none, or it is no URL of a Redis."""
    from redis.connection import parse_url

    if settings.redis_url is None:
        raise SetupError("NOTELLM_REDIS_URL is not set; `notellm serve` starts a private Redis by itself")
    url = settings.redis_url.get_secret_value()
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        # The message may quote the password.
        raise SetupError("NOTELLM_REDIS_URL is not a redis://, rediss:// or unix:// URL") from None
    return url


def open_redis(url: str, *, timeout_s: float = 5.0, connections: int = 64) -> "Redis":
    """A client that never retries by itself (a lost reply must not become a second write) and never hangs.

    A call waits for a free connection at most ``timeout_s``, and as long again for the answer.
    """
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return Redis.from_pool(pool)


def open_sync_redis(url: str, *, timeout_s: float = 10.0) -> "SyncRedis":
    """A blocking client that never retries by itself. ``timeout_s`` must exceed every ``block_s``."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn the errors of a dead, full, read-only or denying Redis into StoreUnavailable; others pass through."""
    from redis.exceptions import ConnectionError as ConnectionFailed
    from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
    from redis.exceptions import TimeoutError as TimedOut

    try:
        yield
    except (ConnectionFailed, TimedOut, OSError) as error:
        raise StoreUnavailable("the store does not answer") from error
    except ResponseError as error:
        if denied := _denied(error):
            log.error("redis_denied", extra={"denied": denied, "remedy": REMEDY})  # noqa: TRY400 - no outline is needed
            raise StoreUnavailable(f"Redis denies its user {denied}: {REMEDY}") from error
        # redis-py strips the prefix it knows, and a script's error carries it in the middle.
        if isinstance(error, (OutOfMemoryError, ReadOnlyError)) or any(word in f"{error} " for word in CANNOT_SERVE):
            raise StoreUnavailable("the store takes no writes") from error
        raise


def _denied(error: Exception) -> str:
    """The denied command, as far as the error names it; empty when the error is another.

    Nothing else of the error: keys, and the pipeline that redis-py quotes, may be text of a note.
    """
    from redis.exceptions import NoPermissionError

    message = str(error)
    if not (isinstance(error, NoPermissionError) or any(words in message for words in DENIED_IN_SCRIPT)):
        return ""
    command = _COMMAND.search(message)
    return f"the command {command[1].upper()}" if command else "a command or a key, which ACL LOG names"
