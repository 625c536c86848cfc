"""A TCP proxy before a unix socket: it can speak TLS to its clients, and do to connections what networks do."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Literal, Self

Fault = Literal["none", "pause", "cut", "slow", "half-open", "reset", "lose replies"]
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger: close sends RST


class Wire:
    """Passes on what comes to ``port``, in a thread with a plain event loop of its own.

    ``none``: as a network should. ``pause``: nothing gets through, all of it comes later. ``cut``: connections end, no
    other is accepted. ``slow``: every piece comes ``slow_s`` later. ``half-open``: the connections of before are dead
    for ever, and nobody says so; new ones work. ``reset``: every connection ends with RST after its next piece. ``lose
    replies``: what was asked is passed on, and instead of its reply comes RST; ``losses`` counts down, see `lose`.
    """

    def __init__(self, target: Path, tls: ssl.SSLContext | None = None, slow_s: float = 0.3) -> None:
        self.port = 0
        self.losses = 0
        self._target = target
        self._tls = tls
        self._slow_s = slow_s
        self._fault: Fault = "none"
        self._flowing = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """Of the Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def set(self, fault: Fault) -> None:
        """From now on; ``none`` mends everything but half-open connections."""
        self._do(self._set(fault))

    def lose(self, count: int) -> None:
        """So many of the next replies, and no others."""
        self.losses = count
        self.set("lose replies")

    def reset(self) -> None:
        """Reset every connection that is open, once."""
        self._do(self._reset())

    def _do(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set(self, fault: Fault) -> None:
        self._fault = fault
        if fault == "pause":
            self._flowing.clear()
        else:
            self._flowing.set()
        if fault == "half-open":
            self._dead |= self._open
        if fault == "cut":
            await self._end()  # and nobody listens
        elif self._server is None:
            await self._listen()

    async def _reset(self) -> None:
        for writer in list(self._open):
            _end_by_reset(writer)

    async def _listen(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._flowing.set()
        if self._server:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()
        while self._open:
            await asyncio.sleep(0.01)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_unix_connection(self._target)
        except OSError:  # Redis is away
            writer.transport.abort()
            return
        self._open.add(writer)
        pumps = [
            asyncio.create_task(self._pump(reader, to_writer, writer, replies=False)),
            asyncio.create_task(self._pump(to_reader, writer, writer, replies=True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        writer.transport.abort()
        to_writer.transport.abort()
        await asyncio.wait(pumps)
        self._open.discard(writer)
        self._dead.discard(writer)

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, client: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await source.read(65536):
                if self._fault == "slow":
                    await asyncio.sleep(self._slow_s)
                await self._flowing.wait()
                if client in self._dead:
                    continue
                if self._fault == "reset" or (replies and self._fault == "lose replies" and self.losses > 0):
                    self.losses -= replies
                    _end_by_reset(client)
                    return
                to.write(piece)
                await to.drain()


def _end_by_reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
