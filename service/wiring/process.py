"""What every process begins with: its checkpoint, its address, the secret, Redis and the port for operations."""

import asyncio
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
from service.errors import StoreUnavailable
from service.processes.health import Readiness, operations
from service.processes.redis_check import EVERY_S, RedisCheck
from service.setting_groups import OpsSettings, is_loopback
from service.settings import Settings, SetupError
from service.store.cells.ring import Cells, names
from service.store.cells.size import check_size
from service.store.connection import is_cluster, redis_url, redis_wait
from service.wiring.stores import open_cells

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
async def watched_cells(
    settings: Settings, readiness: Readiness, *, timeout_s: float = 5.0
) -> "AsyncIterator[Cells[Redis]]":
    """The cells of the store, whose Redis is looked at before and every minute.

    Raises SetupError if one is refused, or the store has another number of cells.
    """
    url = redis_url(settings)
    replicas = redis_wait(settings)
    # On one Redis all are on it.
    check = RedisCheck(url, readiness, replicas, names(settings.cells if is_cluster(url) else 1))
    await check.start()
    async with open_cells(url, settings.cells, timeout_s=timeout_s, replicas=replicas) as cells:
        await _agree(cells)
        async with every(EVERY_S, check.look):
            yield cells


async def _agree(cells: "Cells[Redis]") -> None:
    """Waits for Redis where there are several cells: a process with another number would look for notes elsewhere."""
    while True:
        try:
            return await check_size(cells.first, len(cells))
        except StoreUnavailable as error:
            if len(cells) == 1:
                return None
            log.warning("store_unavailable", extra={"reason": str(error)})
        await asyncio.sleep(LOOK_EVERY_S)


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
