"""HTTP/1.1 by uvicorn, with two things that it leaves open: how long a head may be, and the one shape of every error.

How long a client may take, and how many may connect, is the business of the proxy in front (`deploy/nginx`).
"""

import random
import re
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.responses import error_body
from service.errors import HeadTooLarge, Malformed, NoteLLMError
from service.server.cors import Cors

_HEAD_END = b"\r\n\r\n"
_ORIGIN = re.compile(rb"\r\norigin:[ \t]*([\x21-\x7e]*)[ \t]*\r\n", re.IGNORECASE)


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, head_bytes: int, cors: Cors | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limit_bytes = head_bytes
        self._cors = cors
        self._origin = ""  # of the request on its way, as far as it came
        self._head_bytes = 0  # of the head that is on its way
        self._in_head = True

    def data_received(self, data: bytes) -> None:
        """Refuse a head above the limit, whole or not; everything else goes to the parser."""
        if self._in_head:
            if self._cors and (origin := _ORIGIN.search(data)):
                self._origin = origin[1].decode()
            before, self._head_bytes = self._head_bytes, self._head_bytes + len(data)
            if self._head_bytes > self._limit_bytes and not self._ends_in(data, before):
                self._answer(HeadTooLarge("the request line and the headers are too large"))
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The head is there; what follows is a body, if there is one."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there as a whole; the next one begins with a head."""
        self._in_head, self._head_bytes, self._origin = True, 0, ""
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        self._answer(Malformed(msg))

    def _ends_in(self, data: bytes, before: int) -> bool:
        """Whether the head ends within the limit; long data may hold a body, or more requests, after it."""
        return data.find(_HEAD_END, 0, max(0, self._limit_bytes - before)) >= 0

    def _answer(self, error: NoteLLMError) -> None:
        """Write an error that no application sees, and close."""
        request_id = f"{random.getrandbits(64):016x}"
        body = error_body(error.code, str(error), request_id)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            "connection": "close",
        }
        if self._cors:
            headers |= self._cors.answer_headers(self._origin)
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join(lines).encode() + _HEAD_END + body)
        self.transport.close()
