"""Clients of a cell: those of redis-py, with the keys of the cell.

Only the asynchronous one sends a command again that no node has run, in half of the time that a call may take: what
threads do is repeated as a whole.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis import ConnectionPool
from redis import Redis as SyncRedis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.client import Pipeline
from redis.client import Pipeline as SyncPipeline

from service.store.cluster.connections import (
    AsyncCell,
    AsyncCellConnection,
    AsyncCellSSLConnection,
    Cell,
    CellConnection,
    CellSSLConnection,
    NotServed,
)
from service.store.cluster.keys import tagged, tagged_script, untagged
from service.store.cluster.nodes import Address
from service.store.cluster.replicas import StoreRedis

T = TypeVar("T")
C = TypeVar("C")

_PAUSE_S = 0.05
# A node that says nothing for so long is not the one.
_ASK_S = 1.0


def open_cell(urls: Sequence[str], name: str, **options: Any) -> "CellRedis":
    """A client of a cell on the cluster of these nodes; see `service.store.connection.open_redis`."""
    cell = AsyncCell(*_nodes(BlockingConnectionPool.from_url, urls, options), name)
    pool = BlockingConnectionPool.from_url(urls[0], cell=cell, **options)
    # Not as an argument: for rediss:// the class of the scheme would take its place.
    pool.connection_class = AsyncCellSSLConnection if _over_tls(urls) else AsyncCellConnection
    return _named(CellRedis, pool, name)


def open_sync_cell(urls: Sequence[str], name: str, **options: Any) -> "SyncCellRedis":
    """The same for threads."""
    cell = Cell(*_nodes(ConnectionPool.from_url, urls, options), name)
    kind = CellSSLConnection if _over_tls(urls) else CellConnection
    return _named(SyncCellRedis, ConnectionPool.from_url(urls[0], connection_class=kind, cell=cell, **options), name)


def open_cell_of_one(url: str, name: str, **options: Any) -> "CellRedis":
    """A client of a cell on one Redis, beside others."""
    return _named(CellRedis, BlockingConnectionPool.from_url(url, **options), name)


def open_sync_cell_of_one(url: str, name: str, **options: Any) -> "SyncCellRedis":
    """The same for threads."""
    return _named(SyncCellRedis, ConnectionPool.from_url(url, **options), name)


class CellRedis(StoreRedis):
    """A client of a cell for an event loop."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        _untag_scans(self)

    @property
    def cell(self) -> str:
        """The name in the keys."""
        return _name_of(self)

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        """See redis-py."""
        own = tagged(command, self.cell)
        return await self._served(lambda: super(CellRedis, self).execute_command(*own, **options))  # type: ignore[no-untyped-call]

    def register_script(self, script: Any) -> Any:
        """See redis-py."""
        return super().register_script(tagged_script(script, self.cell))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "CellPipeline":
        """See redis-py."""
        return CellPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    async def _served(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call returns; at the first try where a single connection is wanted, as for a scan."""
        return await (call() if self.single_connection_client else _until_served(call, self.connection_pool))


class CellPipeline(Pipeline):
    """A pipeline of a cell."""

    def execute_command(self, *command: Any, **options: Any) -> Any:
        """See redis-py."""
        return super().execute_command(*tagged(command, _name_of(self)), **options)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """See redis-py."""
        stack = self.command_stack

        async def call() -> list[Any]:
            self.command_stack = list(stack)
            return await super(CellPipeline, self).execute(raise_on_error)

        return await _until_served(call, self.connection_pool, whole=self.is_transaction)


class SyncCellRedis(SyncRedis):
    """A client of a cell for threads."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        _untag_scans(self)

    @property
    def cell(self) -> str:
        """The name in the keys."""
        return _name_of(self)

    def execute_command(self, *command: Any, **options: Any) -> Any:
        """See redis-py."""
        return super().execute_command(*tagged(command, _name_of(self)), **options)  # type: ignore[no-untyped-call]

    def register_script(self, script: Any) -> Any:
        """See redis-py."""
        return super().register_script(tagged_script(script, self.cell))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "SyncCellPipeline":
        """See redis-py."""
        return SyncCellPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class SyncCellPipeline(SyncPipeline):
    """A pipeline of a cell for threads."""

    def execute_command(self, *command: Any, **options: Any) -> Any:
        """See redis-py."""
        return super().execute_command(*tagged(command, _name_of(self)), **options)  # type: ignore[no-untyped-call]


async def _until_served(call: Callable[[], Awaitable[T]], pool: Any, *, whole: bool = False) -> T:
    """Repeats a call that no node has run: of several commands if none was, or all are run or none (``whole``)."""
    give_up = time.monotonic() + pool.timeout / 2
    while True:
        try:
            return await call()
        except NotServed as error:
            if not (whole or error.alone) or time.monotonic() + _PAUSE_S > give_up:
                raise
            await asyncio.sleep(_PAUSE_S)


def _named(kind: Callable[..., C], pool: Any, name: str) -> C:
    """A client that owns its pool, where the name of the cell is: all that is made of the client shares it."""
    pool.cell_name = name
    client = kind(connection_pool=pool)
    client.auto_close_connection_pool = True  # type: ignore[attr-defined]
    return client


def _name_of(client: Any) -> str:
    return str(client.connection_pool.cell_name)


def _untag_scans(client: Any) -> None:
    parse: Any = client.response_callbacks["SCAN"]

    def scan(answer: Any, **options: Any) -> tuple[int, list[bytes]]:
        cursor, keys = parse(answer, **options)
        return cursor, untagged(keys, _name_of(client))

    client.set_response_callback("SCAN", scan)


def _nodes(pool_of: Any, urls: Sequence[str], options: dict[str, Any]) -> tuple[list[Address], Any]:
    """The addresses of the nodes, and what connects to one whatever it serves."""
    pools = [pool_of(url, **options | {"socket_timeout": _ASK_S, "socket_connect_timeout": _ASK_S}) for url in urls]
    named = [pool.connection_kwargs for pool in pools]

    def connect(host: str, port: int) -> Any:
        return pools[0].connection_class(**{**named[0], "host": host, "port": port})

    return [(node.get("host", "localhost"), node.get("port", 6379)) for node in named], connect


def _over_tls(urls: Sequence[str]) -> bool:
    return urls[0].startswith("rediss:")
