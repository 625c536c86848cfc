"""The calling side. See `indexer.rpc.frames`."""

import asyncio
from functools import partial
from itertools import count
from typing import Any

from indexer.rpc import secret, trace
from indexer.rpc.frames import Connection, Malformed, RpcBroken, RpcRefused, RpcTimeout, encode, host_and_port


class _Connection(Connection):
    """The client's side of a connection: one future a call."""

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
            raise Malformed("not a response")
        future = self.waiting.get(call)
        if future is None or future.done():
            return  # the call was cancelled
        if isinstance(body, dict):
            future.set_result(body)
        else:
            future.set_exception(RpcRefused(body))

    @property
    def writable(self) -> bool:
        """Whether a call can be sent without waiting for the peer to read the earlier ones."""
        return self._writable.is_set() and not self.closed.is_set()

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._writable.wait()
        if self.closed.is_set():
            raise RpcBroken("the connection broke")
        return await self.begin(method, params)

    def begin(self, method: str, params: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        call = next(self._ids)
        frame = encode(call, method, params)
        future = asyncio.get_running_loop().create_future()
        self.waiting[call] = future
        future.add_done_callback(partial(self._finish, call))
        self.send(frame)
        return future

    def _finish(self, call: int, future: asyncio.Future[dict[str, Any]]) -> None:
        del self.waiting[call]
        if future.cancelled() and not self.transport.is_closing():
            self.send(encode(call, None, None))


class RpcClient:
    """Calls one server. Connects on the first call, and again on the first call after a broken connection."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    @property
    def pending(self) -> int:
        """Number of calls in flight."""
        return len(self._connection.waiting) if self._connection else 0

    async def call(self, method: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The handler's result. ``timeout_s`` includes connecting.

        Raises:
            RpcError: see `indexer.rpc.frames`.
            ValueError: if the call does not fit into a frame.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connected()
                return await connection.call(method, _traced(params))
        except TimeoutError:
            raise RpcTimeout(f"no response from {self.address} within {timeout_s} s") from None
        except OSError as error:
            raise RpcBroken(f"cannot connect to {self.address}: {error.strerror or error}") from None

    def begin(self, method: str, params: dict[str, Any]) -> asyncio.Future[dict[str, Any]] | None:
        """`call` without a task or a timer: the future ends with a result, RpcRefused or RpcBroken, or never.

        Cancelling it cancels the call. None unless a connection can send the call at once.
        Raises ValueError if the call does not fit into a frame.
        """
        connection = self._connection
        return connection.begin(method, _traced(params)) if connection and connection.writable else None

    async def close(self) -> None:
        """Break the connection; calls in flight fail with RpcBroken."""
        if self._connection:
            self._connection.transport.abort()
            await self._connection.closed.wait()

    async def _connected(self) -> _Connection:
        if self._connection and not self._connection.closed.is_set():
            return self._connection
        async with self._connecting:
            if self._connection is None or self._connection.closed.is_set():
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if "/" in self.address:
            return (await loop.create_unix_connection(_Connection, self.address))[1]
        _, connection = await loop.create_connection(_Connection, *host_and_port(self.address))
        if secret.SECRET is not None:
            try:
                await self._meet(connection, secret.SECRET)
            except BaseException:
                connection.transport.abort()
                raise
        return connection

    async def _meet(self, connection: _Connection, shared: bytes) -> None:
        """`indexer.rpc.secret`, from this side."""
        own = secret.number()
        try:
            answer = await connection.call("hello", {"number": own})
        except RpcRefused:
            raise RpcBroken(f"{self.address} asks for no secret, and we have one") from None
        match answer:
            case {"number": theirs, "proof": proof} if secret.is_number(theirs):
                if secret.proves(proof, shared, "server", own, theirs):
                    await connection.call("prove", {"proof": secret.proof(shared, "client", own, theirs)})
                    return
        raise RpcBroken(f"{self.address} has another secret")


def _traced(params: dict[str, Any]) -> dict[str, Any]:
    parent = trace.TRACEPARENT.get()
    return {**params, "traceparent": parent} if parent else params
