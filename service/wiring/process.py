"""What every process begins with: its checkpoint, its address, the secret, Redis and the port for operations."""

import importlib.metadata
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from indexer.rpc import secret
from indexer.rpc.frames import host_and_port
from indexer.shards import replicas
from model.network.checkpoint import CheckpointError, Manifest, described
from service import metrics
from service.background import every
from service.processes.health import Readiness, operations
from service.processes.redis_check import EVERY_S, RedisCheck
from service.settings import OpsSettings, Settings, SetupError, is_loopback
from service.store.connection import open_redis, redis_url, redis_wait

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

FOLLOW_EVERY_S = 0.25
LOOK_EVERY_S = 2.0


def share_secret(settings: Settings) -> None:
    """Before any connection between processes; one beyond this machine without a secret is told to the operator."""
    addresses = chain(settings.worker.addresses, *map(replicas, settings.index.addresses))
    if settings.rpc_secret:
        secret.SECRET = settings.rpc_secret.get_secret_value().encode()
    elif any("/" not in address and not is_loopback(host_and_port(address)[0]) for address in addresses):
        log.warning("rpc_open", extra={"remedy": "set NOTELLM_RPC_SECRET_FILE in every process"})


def manifest_of(settings: Settings) -> Manifest:
    """Of the checkpoint that is set. Raises SetupError."""
    with setup_errors(CheckpointError):
        return described(settings.checkpoint)


def own_address(addresses: Sequence[str], number: int, variable: str) -> str:
    """The address of this process among those of its kind. Raises SetupError, which names the variable."""
    if number >= len(addresses):
        raise SetupError(f"{variable}={number}, but there are only {len(addresses)} addresses, from 0 on")
    return addresses[number]


@asynccontextmanager
async def watched_redis(settings: Settings, readiness: Readiness, *, timeout_s: float = 5.0) -> "AsyncIterator[Redis]":
    """Redis, whose settings are looked at before and every minute. Raises SetupError if they are refused."""
    url = redis_url(settings)
    replicas = redis_wait(settings)
    check = RedisCheck(url, readiness, replicas)
    await check.start()
    redis = open_redis(url, timeout_s=timeout_s, replicas=replicas)
    try:
        async with every(EVERY_S, check.look):
            yield redis
    finally:
        await redis.aclose()


@contextmanager
def observed(ops: OpsSettings, missing: Readiness, process: str, fingerprint: str) -> Iterator[None]:
    """The port for operations, with what is missing and the metrics, among them which build and model this is."""
    metrics.BUILD_INFO.labels(process, importlib.metadata.version("notellm"), fingerprint).set(1)
    with operations(ops, missing):
        yield


@contextmanager
def setup_errors(*kinds: type[Exception]) -> Iterator[None]:
    """These errors of the block become SetupError."""
    try:
        yield
    except kinds as error:
        raise SetupError(str(error)) from error
