"""The server of a gateway: uvicorn behind a gate, leaving in order."""

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from service import metrics
from service.server.admission import Admission
from service.server.protocol import BoundedProtocol

log = logging.getLogger(__name__)

BACKLOG = 2048
_GRACE_S = 25  # a draft that came in the last moment has the time of its body and its own
_SPARE_FILES = 128
_DOORS = 32


class GatewayServer(uvicorn.Server):
    """Serves one application.

    On SIGTERM or SIGINT it calls ``on_leave`` at once, goes on for ``drain_s`` with answers that close their
    connections, stops listening, finishes what is under way and returns.
    """

    def __init__(self, app: ASGIApp, gate: Admission, on_leave: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, partial(BoundedProtocol, gate=gate)),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._gate = gate
        self._on_leave = on_leave
        self._leave_at_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came; a second one does not wait for the end of ``drain_s``."""
        if self._leave_at_s is not None:
            super().handle_exit(sig, frame)
            return
        self._on_leave()
        self._gate.draining = True
        self._leave_at_s = time.monotonic() + self._gate.limits.drain_s

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to stop listening."""
        metrics.HTTP_CONNECTIONS.set(len(self.server_state.connections))
        await self._drop_late()
        is_time = self._leave_at_s is not None and time.monotonic() >= self._leave_at_s
        return await super().on_tick(counter) or is_time

    async def _drop_late(self) -> None:
        """End the connections that have waited long enough. Many may have come together: requests go on in between."""
        clock = asyncio.get_running_loop().time
        now_s = clock()
        connections = cast(set[BoundedProtocol], self.server_state.connections)
        for late in [connection for connection in connections if connection.due_s <= now_s]:
            late.drop_if_due(clock())
            await asyncio.sleep(0)


def doors(listener: socket.socket) -> list[socket.socket]:
    """One listening socket several times: the event loop accepts one connection for each, every time around.

    With one alone, whoever connects to a gateway under load waits behind everybody who came before, for as many
    rounds of the loop.
    """
    return [listener, *(listener.dup() for _ in range(_DOORS - 1))]


def allow_connections(wanted: int) -> None:
    """Let this process open so many files, if the system lets it; says so when it does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        granted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
        if granted < needed:
            log.warning("too_few_open_files", extra={"open_files": granted, "connections": wanted})
