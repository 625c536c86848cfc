"""HTTP over real sockets, byte by byte: an application behind the gateway's server, and a client without manners."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import ASGIApp

from service.server.admission import Admission
from service.server.server import GatewayServer
from service.setting_groups import LimitSettings


@dataclass(frozen=True)
class Answer:
    """One response as it came over the wire; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return orjson.loads(self.body)


@asynccontextmanager
async def listening(app: ASGIApp, origins: Collection[str] = ()) -> AsyncIterator[int]:
    """The port of the application, served in this event loop; it may come with an admission, else all are let in."""
    admission = app if isinstance(app, Admission) else Admission(app, LimitSettings())
    server = GatewayServer(admission, origins=origins)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await server.startup([listener])
    ticking = asyncio.create_task(server.main_loop())
    try:
        yield listener.getsockname()[1]
    finally:
        ticking.cancel()
        await server.shutdown([listener])


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(port: int, *parts: bytes, pause_s: float = 0.02) -> bytes:
    """Everything that comes back until the connection ends, while the parts are sent one after the other."""
    received = bytearray()
    async with connected(port) as (reader, writer):
        reading = asyncio.create_task(_read_into(received, reader))
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
        await reading
    return bytes(received)


async def hold(port: int, said: bytes = b"", drip: bytes = b"", every_s: float = 0.5) -> float:
    """Connect, say something, hold on, drop by drop; seconds until the service ended the connection."""
    start_s = time.perf_counter()
    async with connected(port) as (reader, writer):
        dripping = asyncio.create_task(_drip(writer, drip, every_s))
        writer.write(said)
        await _read_into(bytearray(), reader)
        dripping.cancel()
    return time.perf_counter() - start_s


async def _drip(writer: asyncio.StreamWriter, drip: bytes, every_s: float) -> None:
    while drip and not writer.is_closing():
        await asyncio.sleep(every_s)
        writer.write(drip)


async def _read_into(received: bytearray, reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            received += part


async def ask(port: int, method: str, path: str, *headers: bytes, body: bytes = b"") -> Answer:
    """One request on a connection of its own; ``headers`` are whole lines, of any bytes. A body is JSON."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: localhost", b"Connection: close", *headers]
    if body:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return parse(await exchange(port, b"\r\n".join(lines) + b"\r\n\r\n" + body, pause_s=0))


def parse(raw: bytes) -> Answer:
    """The first response of what came back."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), {name.lower(): value for name, value in fields}, body)
