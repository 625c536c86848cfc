"""HTTP/1.1 with bounds that uvicorn does not set: how long a head may be, and how long it may take."""

import asyncio
import secrets
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import Malformed, error_body

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 10.0


class BoundedProtocol(HttpToolsProtocol):
    """Drops connections that send nothing, a head without end, or one drop by drop."""

    def connection_made(self, transport: Any) -> None:
        """Start the clock: the first head is due from now on."""
        self._head_bytes = 0
        self._in_head = True
        self._due: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head; a body is bounded by the route that reads it."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A next request on the same connection."""
        super().on_message_begin()
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is there; the request runs."""
        self._in_head = False
        self._head_came()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP never reaches the application; its answer has the shape of any other error."""
        request_id = secrets.token_hex(8)
        body = error_body(Malformed.code, msg, request_id)
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            f"X-Request-ID: {request_id}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _expect_head(self) -> None:
        self._due = self.loop.call_later(HEAD_S, self.transport.abort)

    def _head_came(self) -> None:
        if self._due:
            self._due.cancel()
            self._due = None
