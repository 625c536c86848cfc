"""HTTP/1.1 with the bounds that uvicorn does not set: on heads, bodies, silence, connections and requests under way.

A connection always waits for something, until it is due: a head, a body, or the client's next request. The server
looks after all of them with one timer: one for each would cost more than what silent clients do. What is refused here
is answered with bytes that were made before, without a task, in the one shape that all errors have.
"""

import asyncio
import math
import random
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service import metrics
from service.api.responses import error_body
from service.errors import HeadTooLarge, Malformed, NoteLLMError
from service.server.admission import Admission

_MAX_PIPELINED = 256
_ANSWER_S = 0.5  # a route that waits for a body tells the sender that it is late, before the connection ends
_ID = "0123456789abcdef"  # stands for a request id in an answer that is made once


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, gate: Admission, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gate = gate
        self._limits = gate.limits
        self._is_between = True
        self._in_head = True
        self._in_body = False
        self._ends = False  # behind this request
        self._head_bytes = 0
        self.due_s = math.inf  # when what it waits for must have come, by the clock of the loop

    def connection_made(self, transport: Any) -> None:
        """The first head is due from now on."""
        super().connection_made(cast(asyncio.Transport, _Coalescing(transport, self.loop)))
        self.due_s = self.loop.time() + self._limits.head_s
        self._gate.silent[self] = None
        if len(self.connections) > self._limits.connections:
            # The one that is silent the longest; the new one, if all the others are at work.
            next(iter(self._gate.silent)).drop("crowded")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._gate.silent.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Turn away what comes in vain, then count what belongs to a head; a body is bounded by who reads it."""
        if self._is_between and not self.flow.write_paused and (refusal := self._gate.turn_away(data)):
            self._answer(refusal, ends=self._gate.draining)
            self._rest()
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._limits.head_bytes:
            metrics.HTTP_DROPPED.labels("endless").inc()
            self._answer(HeadTooLarge("the request line and the headers are too large"), ends=True)

    def on_message_begin(self) -> None:
        """A first or next request."""
        super().on_message_begin()
        self._is_between = False
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0
            self.due_s = self.loop.time() + self._limits.head_s

    def on_headers_complete(self) -> None:
        """The head is there; a body is due, if there is one."""
        if self.transport.is_closing():
            return
        self._in_head, self._in_body = False, True
        self.due_s = self.loop.time() + self._limits.body_s + _ANSWER_S
        self._gate.silent.pop(self, None)
        super().on_headers_complete()
        if len(self.pipeline) > _MAX_PIPELINED:
            self.drop("unread")

    def on_message_complete(self) -> None:
        """The request is there as a whole; how long its answer takes is the route's business."""
        self._in_body = False
        self.due_s = math.inf
        super().on_message_complete()
        if self.cycle.response_complete:
            self._rest()

    def on_response_complete(self) -> None:
        """The answer is out. A body that still comes is read over, and stays due.

        In the place of uvicorn's own, which sets and clears a timer for each request.
        """
        self.flow.resume_reading()
        if self.pipeline:
            # Soon and not now: the request that ends here still holds its permit.
            self.loop.call_soon(self._start_asgi_task, *self.pipeline.pop())
        elif not (self._in_head or self._in_body):
            self._rest()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self._answer(Malformed(msg), ends=True)

    def drop_if_due(self, now_s: float) -> None:
        """End the connection if it has waited long enough."""
        if now_s >= self.due_s:
            self.drop("silent" if self._is_between else "slow")

    def drop(self, reason: str) -> None:
        """End the connection at once."""
        metrics.HTTP_DROPPED.labels(reason).inc()
        if self.cycle:
            self.cycle.disconnected = True  # what still runs must not write from now on
        self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            # It asks again and does not read: the next answer would wait for it, with a permit in its hand.
            self.drop("unread")
            return
        admitted = self._gate.admit(cycle.scope)  # type: ignore[arg-type]
        if isinstance(admitted, NoteLLMError):
            self._refuse(cycle, admitted)
            return
        if self._gate.draining:
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, partial(admitted.run, app))

    def _refuse(self, cycle: RequestResponseCycle, refusal: NoteLLMError) -> None:
        # Behind a head with Expect, nobody knows whether a body comes now or another head.
        expects = cycle.waiting_for_100_continue
        cycle.response_complete = True
        self._ends = not cycle.keep_alive or self._gate.draining
        self._answer(
            refusal,
            ends=self._ends or expects,
            # A connection that is closed with a body unread takes the answer with it.
            later=self._in_body and not expects,
            is_head=cycle.scope["method"] == "HEAD",
        )
        self.on_response_complete()

    def _answer(self, error: NoteLLMError, *, ends: bool, later: bool = False, is_head: bool = False) -> None:
        """Write it; when the connection ends with it, close, if not ``later``."""
        if self.transport.is_closing():
            return
        before, between, after = _parts(error.status, error.code, str(error), error.retry_after_s, ends)
        request_id = b"%016x" % random.getrandbits(64)
        dated = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        parts = (before, *dated, b"x-request-id: ", request_id, b"\r\n\r\n")
        self.transport.write(b"".join(parts if is_head else (*parts, between, request_id, after)))
        if ends and not later:
            self.transport.close()

    def _rest(self) -> None:
        """Between two requests, or at the end."""
        if self._ends:
            self.transport.close()
        if self.transport.is_closing():
            return
        self._is_between, self._in_head = True, False
        self.due_s = self.loop.time() + self._limits.idle_s
        self._gate.silent.pop(self, None)
        self._gate.silent[self] = None


class _Coalescing:
    """A transport that writes once in a turn of the event loop: a system call costs as much as a search in the caches.

    uvicorn writes the head of an answer and its body one after the other.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._unsent: list[bytes] = []
        self.is_closing = transport.is_closing  # asked several times for each request

    def write(self, data: bytes) -> None:
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self.is_closing():
            self._transport.write(b"".join(unsent))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@lru_cache(maxsize=64)
def _parts(status: int, code: str, message: str, retry_after_s: int | None, ends: bool) -> tuple[bytes, bytes, bytes]:
    """An answer around its request id: the head without it, and the body before and behind it."""
    body = error_body(code, message, _ID)
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *([] if retry_after_s is None else [f"retry-after: {retry_after_s}"]),
        *(["connection: close"] if ends else []),
    ]
    between, after = body.split(_ID.encode())
    return "".join(f"{line}\r\n" for line in lines).encode(), between, after
