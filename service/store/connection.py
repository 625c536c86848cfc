"""Connections to Redis, and what a Redis says that cannot serve, as an error of ours."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.errors import StoreUnavailable
from service.settings import Settings, SetupError
from service.store.schema import DEAD

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

# What a Redis says that is there but cannot serve: no memory, read-only replica, full disk, loading, busy.
CANNOT_SERVE = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "BUSY ", "MASTERDOWN ", "NOREPLICAS ", "NOAUTH ")
# What a script is told that does what the user may not: by Redis up to 7.0, and later.
DENIED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
REMEDY = "give it the rights that deploy/redis/users.acl lists"
_COMMAND = re.compile(r"no permissions to run the '([\w|]+)' command")

_OUTCOMES = ("aof_last_write_status", "aof_last_bgrewrite_status")


@dataclass(frozen=True, slots=True)
class RedisState:
    """Redis' own figures. It is ``persistent`` while it keeps an append-only file and its last writes succeeded."""

    dead_letters: int
    memory_bytes: int
    memory_limit_bytes: int
    aof_bytes: int
    persistent: bool


async def redis_state(redis: "Redis") -> RedisState:
    """As of now. Without a ``maxmemory``, the limit is the memory of its machine. Raises StoreUnavailable."""
    with redis_errors():
        dead_letters = await redis.xlen(DEAD)
        memory: Mapping[str, Any] = await redis.info("memory")
        disk: Mapping[str, Any] = await redis.info("persistence")
    return RedisState(
        dead_letters,
        memory["used_memory"],
        memory["maxmemory"] or memory["total_system_memory"],
        disk.get("aof_current_size", 0),
        bool(disk["aof_enabled"]) and all(disk[outcome] == "ok" for outcome in _OUTCOMES),
    )


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what a dead, full, read-only or denying Redis says into StoreUnavailable; our own mistakes pass through."""
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
    """What the user of Redis may not do, as far as the error says; empty when it is about something else.

    No more of it than the command: the keys, and what redis-py quotes of a pipeline, may be text of a note.
    """
    from redis.exceptions import NoPermissionError

    said = str(error)
    if not (isinstance(error, NoPermissionError) or any(words in said for words in DENIED_IN_SCRIPT)):
        return ""
    command = _COMMAND.search(said)
    return f"the command {command[1].upper()}" if command else "a command or a key, which ACL LOG names"


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
