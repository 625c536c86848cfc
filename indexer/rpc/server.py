"""The responding side. See `indexer.rpc.frames`."""

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any

from indexer.rpc import secret, trace
from indexer.rpc.frames import MAX_CALLS, Connection, Malformed, RpcRefused, encode, host_and_port

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512  # each gateway, worker and command holds one
FRAME_S = 10.0  # for a frame that has begun to arrive, and for a peer to prove that it knows the secret
LINES, LINES_S = 60, 60.0  # so many lines in so many seconds about connections that had to be ended
MAX_UNFINISHED_BYTES = 64 * 1024 * 1024  # of the frames that have begun to arrive, on all connections together

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class _Peers:
    """The connections of one server, how many bytes of unfinished frames they hold, and the secret they must know."""

    def __init__(self, shared: bytes | None) -> None:
        self.shared = shared
        self.connections: set[_Connection] = set()
        self.unfinished_bytes = 0
        self._lines = deque[float](maxlen=LINES)
        self._untold = 0

    def tell(self, event: str, reason: str) -> None:
        """Log why a connection ended, unless there were so many lines in the last minute; the next one counts those."""
        now_s = asyncio.get_running_loop().time()
        if len(self._lines) == LINES and now_s - self._lines[0] < LINES_S:
            self._untold += 1
            return
        self._lines.append(now_s)
        log.warning(event, extra={"reason": reason, "untold": self._untold})
        self._untold = 0


class _Connection(Connection):
    """The server's side of a connection: one task a call. What a peer begins and never ends is bounded."""

    def __init__(self, handlers: Mapping[str, Handler], peers: _Peers) -> None:
        super().__init__()
        self._handlers = handlers
        self._peers = peers
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unfinished_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._is_known = peers.shared is None
        self._numbers: tuple[bytes, bytes] | None = None
        self._stranger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._peers.connections) >= MAX_CONNECTIONS:
            self._end("too many connections")
            return
        self._peers.connections.add(self)
        if not self._is_known:
            later = asyncio.get_running_loop().call_later
            self._stranger = later(FRAME_S, self._end, "it did not prove in time that it knows the secret")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_known and len(self._buffer) > secret.MAX_BYTES:
            self._end("a long frame of a peer that has proved nothing")
            return
        self._count(len(self._buffer))
        if self._peers.unfinished_bytes > MAX_UNFINISHED_BYTES:
            self._end("too many bytes of unfinished frames")
        elif self._unfinished_bytes and self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(FRAME_S, self._end, "a frame did not end in time")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._peers.connections.discard(self)
        self._count(0)
        self._stop_deadline()
        self._stop_waiting()
        for task in self._tasks.values():
            task.cancel()

    def pause_writing(self) -> None:
        # Backpressure: a peer that reads no responses can send no calls.
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def received(self, message: tuple[int, Any, Any]) -> None:
        self._stop_deadline()
        call, method, params = message
        if not self._is_known:
            self._meet(call, method, params)
            return
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

    def _meet(self, call: int, method: Any, params: Any) -> None:
        """`indexer.rpc.secret`, from this side."""
        assert self._peers.shared
        match method, params:
            case "hello", {"number": theirs} if secret.is_number(theirs):
                self._numbers = theirs, secret.number()
                proof = secret.proof(self._peers.shared, "server", *self._numbers)
                self.send(encode(call, True, {"number": self._numbers[1], "proof": proof}))
            case "prove", {"proof": proof} if self._numbers:
                if not secret.proves(proof, self._peers.shared, "client", *self._numbers):
                    self._end("its secret is another one")
                    return
                self._is_known = True
                self._stop_waiting()
                self.send(encode(call, True, {}))
            case None, None:
                pass  # a call that was cancelled
            case _:
                self.send(encode(call, False, "a secret is asked for here"))

    def _stop_waiting(self) -> None:
        if self._stranger:
            self._stranger.cancel()

    def _count(self, unfinished_bytes: int) -> None:
        self._peers.unfinished_bytes += unfinished_bytes - self._unfinished_bytes
        self._unfinished_bytes = unfinished_bytes

    def _stop_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def end(self, event: str, reason: str) -> None:
        self._peers.tell(event, reason)
        self._buffer.clear()
        self._count(0)
        self.transport.abort()

    def _end(self, reason: str) -> None:
        self.end("rpc_ended", reason)

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

    def __init__(self, address: str, server: asyncio.Server, peers: _Peers) -> None:
        self.address = address
        self._server = server
        self._connections = peers.connections

    async def close(self) -> None:
        """Stop listening, break every connection, cancel running handlers."""
        self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        await self._server.wait_closed()


async def serve(address: str, handlers: Mapping[str, Handler]) -> RpcServer:
    """Listen at an address; port 0 takes a free one, and the server's ``address`` says which.

    On TCP, peers have to know `indexer.rpc.secret.SECRET`, if there is one.
    A handler that raises `RpcRefused` refuses with that reason; any other exception is logged and refused as
    ``internal``. A handler is cancelled when its caller disconnects, is cancelled or times out.

    Raises:
        OSError: if the address cannot be bound.
        ValueError: if it is not an address.
    """
    loop = asyncio.get_running_loop()
    peers = _Peers(None if "/" in address else secret.SECRET)

    def accept() -> _Connection:
        return _Connection(handlers, peers)

    if "/" in address:
        server = await loop.create_unix_server(accept, address)
        return RpcServer(address, server, peers)
    host, port = host_and_port(address)
    server = await loop.create_server(accept, host, port)
    bound = server.sockets[0].getsockname()[1]
    return RpcServer(f"{address.rpartition(':')[0]}:{bound}", server, peers)
