"""Calls between our processes: msgpack over TCP or a unix socket, many in flight on one connection.

A frame is a 4-byte big-endian length and that many bytes of msgpack: ``[id, method, params]`` one way,
``[id, true, result]`` or ``[id, false, reason]`` the other, in any order. ``[id, nil, nil]`` gives a call up, and
is not answered. A call that belongs to a trace has a ``traceparent`` among its params. An address is ``host:port``, or
the path of a unix socket (whatever holds a slash). There is no authentication: bind to private networks only.

::

    RpcError
     ├── RpcBroken     no connection, or it broke: the call may have run or not
     ├── RpcTimeout    no answer in time
     └── RpcRefused    the server's answer was an error; str() is its reason
"""

import asyncio
import logging
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any, cast

import msgpack

from indexer import trace

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_CALLS = 1024
UNANSWERED_MS = 5000


class RpcError(Exception):
    """A call has no result."""


class RpcBroken(RpcError):
    """No connection could be made, or it broke. A sent call is never sent again."""


class RpcTimeout(RpcError):
    """No answer within the time the caller gave."""


class RpcRefused(RpcError):
    """The server refused. A handler raises it to choose the reason, which the caller reads with str()."""


class _Malformed(Exception):
    """The peer does not speak this protocol."""


class _Connection(asyncio.Protocol):
    """Cuts the byte stream into messages; a malformed one ends this connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._buffer = bytearray()
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        _tune(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while (message := self._cut()) is not None:
                self.received(message)
        except _Malformed as error:
            log.warning("rpc_malformed", extra={"reason": str(error)})
            self._buffer.clear()
            self.transport.abort()

    def received(self, message: tuple[int, Any, Any]) -> None:
        raise NotImplementedError

    def send(self, frame: bytes) -> None:
        """Write with all else that is sent in this turn of the event loop: a system call costs more than a frame."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write)
        self._unsent.append(frame)

    def _write(self) -> None:
        frames, self._unsent = self._unsent, []
        if not self.transport.is_closing():
            self.transport.write(b"".join(frames))

    def _cut(self) -> tuple[int, Any, Any] | None:
        if len(self._buffer) < 4:
            return None
        end = 4 + int.from_bytes(self._buffer[:4], "big")
        if end - 4 > MAX_FRAME_BYTES:
            raise _Malformed("frame too large")
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[4:end])
        del self._buffer[:end]
        return _decode(frame)


class _Serving(_Connection):
    """The server's end: one task a call."""

    def __init__(self, handlers: Mapping[str, Handler], connections: "set[_Serving]") -> None:
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
        # A peer that reads no answers gets no more calls in.
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def received(self, message: tuple[int, Any, Any]) -> None:
        call, method, params = message
        if method is None and params is None:
            self._give_up(call)
            return
        if not isinstance(method, str) or not isinstance(params, dict) or call in self._tasks:
            raise _Malformed("not a call")
        handler = self._handlers.get(method)
        if handler is None:
            self.send(_encode(call, False, "unknown method"))
            return
        if len(self._tasks) >= MAX_CALLS:
            self.send(_encode(call, False, "busy"))
            return
        task = asyncio.get_running_loop().create_task(self._answer(call, method, handler, params))
        self._tasks[call] = task
        task.add_done_callback(lambda _: self._tasks.pop(call))

    def _give_up(self, call: int) -> None:
        # It may have been answered while its caller's word was on the way.
        if task := self._tasks.get(call):
            task.cancel()

    async def _answer(self, call: int, method: str, handler: Handler, params: dict[str, Any]) -> None:
        parent = params.pop("traceparent", None)
        try:
            with trace.around(method, parent) if isinstance(parent, str) else nullcontext():
                frame = _encode(call, True, await handler(params))
        except RpcRefused as refusal:
            frame = _encode(call, False, str(refusal))
        except Exception as error:  # one call never harms the others
            # The message may quote a note: only its type and place are logged.
            place = traceback.extract_tb(error.__traceback__)[-1]
            extra = {"error": type(error).__name__, "at": f"{place.filename}:{place.lineno}"}
            log.error("rpc_handler_failed", extra=extra)  # noqa: TRY400
            frame = _encode(call, False, "internal")
        self.send(frame)


class RpcServer:
    """A listening server; made by `serve`."""

    def __init__(self, address: str, server: asyncio.Server, connections: set[_Serving]) -> None:
        self.address = address
        self._server = server
        self._connections = connections

    async def close(self) -> None:
        """Stop listening, break every connection, cancel what runs."""
        self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        await self._server.wait_closed()


async def serve(address: str, handlers: Mapping[str, Handler]) -> RpcServer:
    """Answer calls at an address; port 0 takes a free one, and the server's ``address`` says which.

    A handler that raises `RpcRefused` refuses with that reason; any other exception is logged and refused as
    ``internal``. Handlers are cancelled when their caller's connection ends, or the caller gives the call up: it was
    cancelled or has waited long enough.

    Raises:
        OSError: if the address cannot be bound.
        ValueError: if it is not an address.
    """
    loop = asyncio.get_running_loop()
    connections: set[_Serving] = set()

    def accept() -> _Serving:
        return _Serving(handlers, connections)

    if "/" in address:
        server = await loop.create_unix_server(accept, address)
        return RpcServer(address, server, connections)
    host, port = _host_and_port(address)
    server = await loop.create_server(accept, host, port)
    bound = server.sockets[0].getsockname()[1]
    return RpcServer(f"{address.rpartition(':')[0]}:{bound}", server, connections)


class _Calling(_Connection):
    """The client's end: one future a call."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.closed = asyncio.Event()
        self._ids = count()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.closed.set()
        self._writable.set()
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(RpcBroken("the connection broke"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def received(self, message: tuple[int, Any, Any]) -> None:
        call, success, body = message
        if not isinstance(body, dict if success is True else str):
            raise _Malformed("not an answer")
        future = self.waiting.get(call)
        if future is None or future.done():
            return  # its caller gave up
        if isinstance(body, dict):
            future.set_result(body)
        else:
            future.set_exception(RpcRefused(body))

    @property
    def takes(self) -> bool:
        """Whether a call can be sent without waiting for the peer to read the ones before."""
        return self._writable.is_set() and not self.closed.is_set()

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._writable.wait()
        if self.closed.is_set():
            raise RpcBroken("the connection broke")
        return await self.begin(method, params)

    def begin(self, method: str, params: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        call = next(self._ids)
        frame = _encode(call, method, params)
        future = asyncio.get_running_loop().create_future()
        self.waiting[call] = future
        future.add_done_callback(partial(self._end, call))
        self.send(frame)
        return future

    def _end(self, call: int, future: asyncio.Future[dict[str, Any]]) -> None:
        del self.waiting[call]
        if future.cancelled() and not self.transport.is_closing():
            self.send(_encode(call, None, None))


class RpcClient:
    """Calls one server. Connects on the first call, and again on the first call after a broken connection."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection: _Calling | None = None
        self._connecting = asyncio.Lock()

    @property
    def pending(self) -> int:
        """Calls sent and not yet answered."""
        return len(self._connection.waiting) if self._connection else 0

    async def call(self, method: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The handler's result. ``timeout_s`` covers connecting, too.

        Raises:
            RpcError: see the module's tree.
            ValueError: if the call does not fit into a frame.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connected()
                return await connection.call(method, _traced(params))
        except TimeoutError:
            raise RpcTimeout(f"no answer from {self.address} within {timeout_s} s") from None
        except OSError as error:
            raise RpcBroken(f"cannot connect to {self.address}: {error.strerror or error}") from None

    def begin(self, method: str, params: dict[str, Any]) -> asyncio.Future[dict[str, Any]] | None:
        """`call` without a task or a timer: the future ends with a result, RpcRefused or RpcBroken, or never.

        Whoever cancels it gives the call up. None when there is no connection that would take the call at once.
        Raises ValueError if the call does not fit into a frame.
        """
        connection = self._connection
        return connection.begin(method, _traced(params)) if connection and connection.takes else None

    async def close(self) -> None:
        """Break the connection; calls in flight fail with RpcBroken."""
        if self._connection:
            self._connection.transport.abort()
            await self._connection.closed.wait()

    async def _connected(self) -> _Calling:
        if self._connection and not self._connection.closed.is_set():
            return self._connection
        async with self._connecting:
            if self._connection is None or self._connection.closed.is_set():
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Calling:
        loop = asyncio.get_running_loop()
        if "/" in self.address:
            _, connection = await loop.create_unix_connection(_Calling, self.address)
        else:
            _, connection = await loop.create_connection(_Calling, *_host_and_port(self.address))
        return connection


def _traced(params: dict[str, Any]) -> dict[str, Any]:
    parent = trace.TRACEPARENT.get()
    return {**params, "traceparent": parent} if parent else params


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"neither host:port nor the path of a socket: {address!r}")
    return host.strip("[]"), int(port)


def _tune(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        # A peer whose machine is gone would otherwise look connected for many minutes.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MS)


def _encode(call: int, second: Any, third: Any) -> bytes:
    body: bytes = msgpack.packb((call, second, third))
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES} fit")
    return len(body).to_bytes(4, "big") + body


def _decode(frame: bytes) -> tuple[int, Any, Any]:
    try:
        message = msgpack.unpackb(frame, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise _Malformed(type(error).__name__) from error
    match message:
        case [int(call), second, third]:
            return call, second, third
    raise _Malformed("not a message")
