"""The responding side. See `indexer.rpc.frames`."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any

from indexer.rpc import trace
from indexer.rpc.frames import MAX_CALLS, Connection, Malformed, RpcRefused, encode, host_and_port

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class _Connection(Connection):
    """The server's side of a connection: one task a call."""

    def __init__(self, handlers: Mapping[str, Handler], connections: "set[_Connection]") -> None:
        super().__init__()
        self._handlers = handlers
        self._connections = connections
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.discard(self)
        for task in self._tasks.values():
            task.cancel()

    def pause_writing(self) -> None:
        # Backpressure: a peer that reads no responses can send no calls.
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def received(self, message: tuple[int, Any, Any]) -> None:
        call, method, params = message
        if method is None and params is None:
            self._cancel(call)
            return
        if not isinstance(method, str) or not isinstance(params, dict) or call in self._tasks:
            raise Malformed("not a call")
        handler = self._handlers.get(method)
        if handler is None:
            self.send(encode(call, False, "unknown method"))
            return
        if len(self._tasks) >= MAX_CALLS:
            self.send(encode(call, False, "busy"))
            return
        task = asyncio.get_running_loop().create_task(self._respond(call, method, handler, params))
        self._tasks[call] = task
        task.add_done_callback(lambda _: self._tasks.pop(call))

    def _cancel(self, call: int) -> None:
        # The response and the cancellation may have crossed.
        if task := self._tasks.get(call):
            task.cancel()

    async def _respond(self, call: int, method: str, handler: Handler, params: dict[str, Any]) -> None:
        parent = params.pop("traceparent", None)
        try:
            with trace.around(method, parent) if isinstance(parent, str) else nullcontext():
                frame = encode(call, True, await handler(params))
        except RpcRefused as refusal:
            frame = encode(call, False, str(refusal))
        except Exception as error:  # one call never harms the others
            # The message may quote a note: only its type and place are logged.
            place = traceback.extract_tb(error.__traceback__)[-1]
            extra = {"error": type(error).__name__, "at": f"{place.filename}:{place.lineno}"}
            log.error("rpc_handler_failed", extra=extra)  # noqa: TRY400 - its message may quote a note
            frame = encode(call, False, "internal")
        self.send(frame)


class RpcServer:
    """A listening server; made by `serve`."""

    def __init__(self, address: str, server: asyncio.Server, connections: set[_Connection]) -> None:
        self.address = address
        self._server = server
        self._connections = connections

    async def close(self) -> None:
        """Stop listening, break every connection, cancel running handlers."""
        self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        await self._server.wait_closed()


async def serve(address: str, handlers: Mapping[str, Handler]) -> RpcServer:
    """Listen at an address; port 0 takes a free one, and the server's ``address`` says which.

    A handler that raises `RpcRefused` refuses with that reason; any other exception is logged and refused as
    ``internal``. A handler is cancelled when its caller disconnects, is cancelled or times out.

    Raises:
        OSError: if the address cannot be bound.
        ValueError: if it is not an address.
    """
    loop = asyncio.get_running_loop()
    connections: set[_Connection] = set()

    def accept() -> _Connection:
        return _Connection(handlers, connections)

    if "/" in address:
        server = await loop.create_unix_server(accept, address)
        return RpcServer(address, server, connections)
    host, port = host_and_port(address)
    server = await loop.create_server(accept, host, port)
    bound = server.sockets[0].getsockname()[1]
    return RpcServer(f"{address.rpartition(':')[0]}:{bound}", server, connections)
