"""The server of a gateway: uvicorn, which leaves in order."""

import resource
import time
from collections.abc import Callable, Collection
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from service import metrics
from service.server.admission import Admission
from service.server.cors import Cors
from service.server.protocol import BoundedProtocol

BACKLOG = 2048
_GRACE_S = 25  # a draft that came in the last moment has the time of its body and its own


class GatewayServer(uvicorn.Server):
    """Serves one application behind its admission.

    Pages of ``origins`` may call it: `service.server.cors`.

    On SIGTERM or SIGINT it calls ``on_leave`` at once, goes on for ``drain_s`` with answers that close their
    connections, stops listening, finishes what is under way and returns.
    """

    def __init__(
        self, admission: Admission, on_leave: Callable[[], None] = lambda: None, origins: Collection[str] = ()
    ) -> None:
        limits = admission.limits
        cors = Cors(admission, origins) if origins else None
        super().__init__(
            uvicorn.Config(
                cors or admission,
                http=cast(Any, partial(BoundedProtocol, head_bytes=limits.head_bytes, cors=cors)),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=limits.idle_s,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._admission = admission
        self._on_leave = on_leave
        self._leave_at_s: float | None = None
        metrics.HTTP_CONNECTIONS.set_function(lambda: len(self.server_state.connections))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came; a second one does not wait for the end of ``drain_s``."""
        if self._leave_at_s is not None:
            super().handle_exit(sig, frame)
            return
        self._on_leave()
        self._admission.draining = True
        self._leave_at_s = time.monotonic() + self._admission.limits.drain_s

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to stop listening."""
        is_time = self._leave_at_s is not None and time.monotonic() >= self._leave_at_s
        return await super().on_tick(counter) or is_time


def allow_connections() -> None:
    """Let this process open as many files as the system lets it: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
