"""Connections to the node that serves the cell.

Each is made to the primary as it is known then, and goes elsewhere when that changes: after a failover, or a move of
the slot, nodes refuse commands for it. A refused command was not run, so that it may be sent again (`NotServed`).
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.connection import Connection, SSLConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import TimeoutError as TimedOut

from service.store.cluster.keys import FIRST, prefix
from service.store.cluster.nodes import Address, Nodes
from service.store.requirements import refusal

_REFUSED = (AskError, ClusterDownError, TryAgainError)  # a MovedError is an AskError, too
# Of a script. Those of ours begin with a look at a key that is not there, which a node refuses that gives the cell's
# keys away or does not have them all yet: none of them stops halfway.
_REFUSED_IN_SCRIPT = ("non local key", "while the cluster is down", "read only replica")
# Of a call that waited when its node ceased to be the primary: WAIT, so that nobody knows what became of the write.
_CEASED = "UNBLOCKED"


class NotServed(ConnectionFailed):
    """The node does not serve the cell, or not now, and did nothing.

    ``alone`` says that nothing that was sent with the command was answered before it.
    """

    def __init__(self, *, alone: bool) -> None:
        super().__init__("the node does not serve the cell")
        self.alone = alone


class AsyncCell:
    """The nodes, for the connections of one event loop; ``connect`` makes one to a node, whatever it serves."""

    def __init__(
        self, named: Sequence[Address], connect: Callable[[str, int], AsyncConnection], name: str = FIRST
    ) -> None:
        self.nodes = Nodes(named)
        self._connect = connect
        self._asked = _key_of(name)
        self._lock = asyncio.Lock()

    async def primary(self) -> Address:
        """The node that serves the cell. Raises ConnectionError, or what a node has against the user."""
        async with self._lock:
            for address in self.nodes.to_ask():
                self.nodes.told(address, await self._ask(address))
            return self.nodes.primary

    async def _ask(self, address: Address) -> Address | None:
        connection = self._connect(*address)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("EXISTS", self._asked)
            await connection.read_response()
        except (ConnectionFailed, TimedOut, ResponseError, OSError) as error:
            return _told(address, error)
        else:
            return address
        finally:
            await connection.disconnect()


class Cell:
    """The same for connections of threads."""

    def __init__(self, named: Sequence[Address], connect: Callable[[str, int], Connection], name: str = FIRST) -> None:
        self.nodes = Nodes(named)
        self._connect = connect
        self._asked = _key_of(name)
        self._lock = threading.Lock()

    def primary(self) -> Address:
        """See `AsyncCell`."""
        with self._lock:
            for address in self.nodes.to_ask():
                self.nodes.told(address, self._ask(address))
            return self.nodes.primary

    def _ask(self, address: Address) -> Address | None:
        connection = self._connect(*address)
        try:
            connection.connect()  # type: ignore[no-untyped-call]
            connection.send_command("EXISTS", self._asked)  # type: ignore[no-untyped-call]
            connection.read_response()
        except (ConnectionFailed, TimedOut, ResponseError, OSError) as error:
            return _told(address, error)
        else:
            return address
        finally:
            connection.disconnect()  # type: ignore[no-untyped-call]


class AsyncCellConnection(AsyncConnection):
    """A connection to the primary of a cell."""

    def __init__(self, *, cell: AsyncCell, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._cell = cell
        self._answers = 0

    async def connect(self) -> None:
        """To the primary of now, also if there is a connection to another node."""
        primary = await self._cell.primary()
        if self.is_connected and (self.host, self.port) == primary:
            return
        await self.disconnect()
        self.host, self.port = primary
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except (ConnectionFailed, TimedOut):
            self._cell.nodes.lost(primary)
            raise

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """See redis-py."""
        self._answers = 0
        await super().send_packed_command(*arguments, **options)

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """See redis-py. Raises NotServed for the errors that say so."""
        try:
            answer = await super().read_response(*arguments, **options)
        except (ConnectionFailed, TimedOut, ResponseError) as error:
            failed = _failed(error, alone=self._answers == 0)
            if failed is None:
                raise
            self._cell.nodes.lost((self.host, self.port))
            await self.disconnect()
            raise failed from None
        self._answers += 1
        return answer


class CellConnection(Connection):
    """A connection to the primary of a cell, for threads."""

    def __init__(self, *, cell: Cell, **arguments: Any) -> None:
        super().__init__(**arguments)  # type: ignore[no-untyped-call]
        self._cell = cell

    def connect(self) -> None:
        """See `AsyncCellConnection`."""
        primary = self._cell.primary()
        if self.is_connected and (self.host, self.port) == primary:
            return
        self.disconnect()  # type: ignore[no-untyped-call]
        self.host, self.port = primary
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except (ConnectionFailed, TimedOut):
            self._cell.nodes.lost(primary)
            raise

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """See `AsyncCellConnection`."""
        try:
            return super().read_response(*arguments, **options)
        except (ConnectionFailed, TimedOut, ResponseError) as error:
            failed = _failed(error, alone=False)
            if failed is None:
                raise
            self._cell.nodes.lost((self.host, self.port))
            self.disconnect()  # type: ignore[no-untyped-call]
            raise failed from None


class AsyncCellSSLConnection(AsyncCellConnection, AsyncSSLConnection):
    """The same over TLS."""


class CellSSLConnection(CellConnection, SSLConnection):
    """The same over TLS."""


def _key_of(name: str) -> str:
    """Any key of the cell."""
    return prefix(name) + "restoring"


def _told(by: Address, error: Exception) -> Address | None:
    """Which node serves the cell, by the error of one that was asked; an error that concerns the user is raised."""
    if isinstance(error, MovedError):
        return error.host or by[0], error.port
    if isinstance(error, AskError):  # the key is not there, and its slot is about to go
        return by
    if not isinstance(error, _REFUSED) and refusal(error):
        raise error
    return None


def _failed(error: Exception, *, alone: bool) -> ConnectionFailed | TimedOut | None:
    """What an error is for callers, if it tells of the node; None for one that tells of the command."""
    message = str(error)
    if isinstance(error, _REFUSED) or any(words in message for words in _REFUSED_IN_SCRIPT):
        return NotServed(alone=alone)
    if _CEASED in message:
        return ConnectionFailed("the node is no longer the primary")
    return error if isinstance(error, (ConnectionFailed, TimedOut)) else None
