"""An ASGI application on a real socket, behind the service's own protocol."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from service.protocol import BoundedProtocol


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[int]:
    """The port, on loopback."""
    config = uvicorn.Config(app, port=0, http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    yield server.servers[0].sockets[0].getsockname()[1]
    await server.shutdown()
