"""Clients of Redis or of a Redis Cluster, and the errors of a Redis that cannot serve as StoreUnavailable."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from service import metrics
from service.errors import StoreUnavailable
from service.settings import Settings, SetupError
from service.store.cluster.keys import FIRST
from service.store.requirements import refusal

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

# Errors of a Redis that runs but cannot serve: no memory, read-only replica, full disk, loading, busy.
CANNOT_SERVE = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "BUSY ", "NOREPLICAS ")
# What uvloop says, with a RuntimeError, when a connection that was reset is written to.
CLOSED = "the handler is closed"


# redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT/?OPTIONS, as for one Redis, but for the nodes.
_CLUSTER = re.compile(r"(rediss?)\+cluster://((?:[^/?#]*@)?)([^/?#@]*)(.*)", re.DOTALL)


def redis_url(settings: Settings) -> str:
    """With its password. Raises SetupError when there is none, or it is no URL of a Redis."""
    if settings.redis_url is None:
        raise SetupError("NOTELLM_REDIS_URL is not set; `notellm serve` starts a private Redis by itself")
    url = settings.redis_url.get_secret_value()
    for one in node_urls(url) or [url]:
        if wrong := _wrong_in(one):
            # Nothing of the URL: it may be the password.
            raise SetupError(f"NOTELLM_REDIS_URL {wrong}")
    nodes = [_arguments(one) for one in node_urls(url)]
    if not all("host" in node for node in nodes):
        raise SetupError("NOTELLM_REDIS_URL has no host where a node of the cluster belongs: write HOST:PORT,HOST:PORT")
    if any(node.get("db") for node in nodes):
        raise SetupError("NOTELLM_REDIS_URL names a database, and a cluster has none but 0")
    return url


def redis_wait(settings: Settings) -> int:
    """How many replicas have to have a write before it is acknowledged: one on a cluster, unless it is set."""
    if settings.redis_wait is None:
        return int(settings.redis_url is not None and is_cluster(settings.redis_url.get_secret_value()))
    return settings.redis_wait


def is_cluster(url: str) -> bool:
    """Whether a URL names a Redis Cluster."""
    return _CLUSTER.fullmatch(url) is not None


def node_urls(url: str) -> list[str]:
    """A URL for each node of the cluster that is named; none of a single Redis."""
    if not (parts := _CLUSTER.fullmatch(url)):
        return []
    scheme, user, nodes, rest = parts.groups()
    return [f"{scheme}://{user}{node}{rest}" for node in nodes.split(",")]


def _arguments(url: str) -> dict[str, Any]:
    from redis.connection import parse_url

    return dict(parse_url(url))  # type: ignore[no-untyped-call]


def _wrong_in(url: str) -> str:
    """What is wrong with a URL, or with how redis-py would read it; empty when nothing is."""
    from redis.connection import ConnectionPool
    from redis.exceptions import RedisError

    try:
        arguments = _arguments(url)
    except ValueError as error:
        if "Invalid value" in str(error):
            return "has an option whose value cannot be read, such as ?db= without a number"
        return "is not a redis://, rediss://, unix:// or redis+cluster:// URL"
    parts = urlsplit(url)
    if parts.fragment or "@" in parts.path + parts.query:
        return "has a #, / or ? where none belongs: in a password they are written %23, %2F and %3F"
    if parts.scheme != "unix" and not re.fullmatch(r"/?|/\d+", parts.path):
        return f"names the database {parts.path.strip('/')[:20]!r}, which is no number"
    if arguments.get("db", 0) < 0:
        return "names a database with a negative number"
    if (file := arguments.get("ssl_ca_certs")) and not Path(file).is_file():
        return "names a file of certificates (ssl_ca_certs) that is not there"
    try:
        ConnectionPool.from_url(url).make_connection()
    except (TypeError, ValueError, RedisError):
        return "has an option behind the ? that redis-py does not know"
    return ""


def open_redis(
    url: str, *, timeout_s: float = 5.0, connections: int = 64, replicas: int = 0, cell: str = FIRST
) -> "Redis":
    """A client that never repeats what may have been done (a lost reply must not become a second write) nor hangs.

    A call waits for a free connection at most ``timeout_s``, and as long again for the answer. What is told to clients
    as done waits for ``replicas`` (`service.store.cluster.replicas`). On one Redis, the keys of the first cell have no
    tag.
    """
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    from service.store.cluster.clients import open_cell, open_cell_of_one
    from service.store.cluster.replicas import StoreRedis

    options = _options(timeout_s) | {"retry": Retry(NoBackoff(), 0), "max_connections": connections}
    if nodes := node_urls(url):
        client: StoreRedis = open_cell(nodes, cell, timeout=timeout_s, **options)
    elif cell != FIRST:
        client = open_cell_of_one(url, cell, timeout=timeout_s, **options)
    else:
        pool = BlockingConnectionPool.from_url(url, timeout=timeout_s, **options)
        client = cast(StoreRedis, StoreRedis.from_pool(pool))
    client.replicas = replicas
    return client


def open_sync_redis(url: str, *, timeout_s: float = 10.0, cell: str = FIRST) -> "SyncRedis":
    """A blocking client that never repeats anything. ``timeout_s`` must exceed every ``block_s``."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from service.store.cluster.clients import open_sync_cell, open_sync_cell_of_one

    options = _options(timeout_s) | {"retry": Retry(NoBackoff(), 0)}
    if nodes := node_urls(url):
        return open_sync_cell(nodes, cell, **options)
    return Redis.from_url(url, **options) if cell == FIRST else open_sync_cell_of_one(url, cell, **options)


def _options(timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn the errors of a dead, refusing, full, read-only or denying Redis into StoreUnavailable; others pass through.

    Its ``cause`` is that of `service.store.requirements`, where there is one.
    """
    from redis.exceptions import ConnectionError as ConnectionFailed
    from redis.exceptions import InvalidResponse, NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError
    from redis.exceptions import TimeoutError as TimedOut

    try:
        yield
    except (ConnectionFailed, TimedOut, OSError, ResponseError, InvalidResponse, RuntimeError) as error:
        if problem := refusal(error):
            if problem.cause == "right":
                metrics.REDIS_DENIED.inc()
                log.error("redis_denied", extra={"problem": problem.line})  # noqa: TRY400 - no outline is needed
            raise StoreUnavailable(problem.line, problem.cause) from error
        if isinstance(error, RuntimeError) and not str(error).endswith(CLOSED):
            raise
        # A script that is unknown although it was just loaded: another Redis answers now.
        if not isinstance(error, ResponseError) or isinstance(error, NoScriptError):
            raise StoreUnavailable("the store does not answer") from error
        # redis-py strips the prefix it knows, and a script's error carries it in the middle.
        if isinstance(error, (OutOfMemoryError, ReadOnlyError)) or any(word in f"{error} " for word in CANNOT_SERVE):
            raise StoreUnavailable("the store takes no writes") from error
        raise
