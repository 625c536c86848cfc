"""HTTP over real sockets, byte by byte: an application behind the gateway's protocol, and a client without manners."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
from starlette.types import ASGIApp

from service.protocol import BoundedProtocol


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
async def listening(app: ASGIApp) -> AsyncIterator[int]:
    """The port of the application, served in this event loop."""
    config = uvicorn.Config(app, port=0, http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def exchange(port: int, *parts: bytes, pause_s: float = 0.02) -> bytes:
    """Everything that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def ask(port: int, method: str, path: str, *headers: bytes, body: bytes = b"") -> Answer:
    """One request on a connection of its own; ``headers`` are whole lines, of any bytes."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: a", b"Connection: close", *headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return parse(await exchange(port, b"\r\n".join(lines) + b"\r\n\r\n" + body, pause_s=0))


def parse(raw: bytes) -> Answer:
    """The first response of what came back."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), {name.lower(): value for name, value in fields}, body)
