"""Calls between our processes: msgpack over TCP or a unix socket, many in flight on one connection.

A frame is a 4-byte big-endian length and that many bytes of msgpack: ``[id, method, params]`` one way,
``[id, true, result]`` or ``[id, false, reason]`` the other, in any order. ``[id, nil, nil]`` cancels a call, and gets
no response. A call that belongs to a trace has a ``traceparent`` among its params. An address is ``host:port``, or
the path of a unix socket (it contains a slash). Who may call is what `indexer.rpc.secret` says; nothing is encrypted.

::

    RpcError
     ├── RpcBroken     no connection, or it broke: the call may have run or not
     ├── RpcTimeout    no response in time
     └── RpcRefused    the server responded with an error; str() is its reason
"""

import asyncio
import logging
import socket
import sys
from typing import Any, cast

import msgpack

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_CALLS = 1024
_MAX_PORT = 65_535
_MAX_PATH_BYTES = 107
UNACKNOWLEDGED_MS = 5000


class RpcError(Exception):
    """A call has no result."""


class RpcBroken(RpcError):
    """No connection could be made, or it broke. A sent call is never sent again."""


class RpcTimeout(RpcError):
    """No response within the caller's timeout."""


class RpcRefused(RpcError):
    """The server refused. A handler raises it to choose the reason, which is the caller's str()."""


class Malformed(Exception):
    """The peer does not speak this protocol."""


class Connection(asyncio.Protocol):
    """Splits the byte stream into messages; a malformed one ends this connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._buffer = bytearray()
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        _tune(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while (message := self._next_message()) is not None:
                self.received(message)
        except Malformed as error:
            self.end("rpc_malformed", str(error))

    def received(self, message: tuple[int, Any, Any]) -> None:
        """Handle one message; raises Malformed if the peer must not send it."""
        raise NotImplementedError

    def end(self, event: str, reason: str) -> None:
        """Break the connection, for the peer did what it must not."""
        log.warning(event, extra={"reason": reason})
        self._buffer.clear()
        self.transport.abort()

    def send(self, frame: bytes) -> None:
        """Write it together with all frames of this turn of the event loop: a system call costs more than a frame."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write)
        self._unsent.append(frame)

    def _write(self) -> None:
        frames, self._unsent = self._unsent, []
        if not self.transport.is_closing():
            self.transport.write(b"".join(frames))

    def _next_message(self) -> tuple[int, Any, Any] | None:
        if len(self._buffer) < 4:
            return None
        end = 4 + int.from_bytes(self._buffer[:4], "big")
        if end - 4 > MAX_FRAME_BYTES:
            raise Malformed("frame too large")
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[4:end])
        del self._buffer[:end]
        return decode(frame)


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of ``host:port``; an IPv6 address may have brackets. Raises ValueError if it is none."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()):
        raise ValueError(f"neither host:port nor the path of a socket: {address!r}")
    if int(port) > _MAX_PORT:
        raise ValueError(f"a port is at most {_MAX_PORT}: {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_address(address: str) -> None:
    """Raises ValueError if a text is no address."""
    if "/" not in address:
        host_and_port(address)
    elif len(address.encode()) > _MAX_PATH_BYTES:
        raise ValueError(f"the path of a socket has at most {_MAX_PATH_BYTES} bytes: {address!r}")


def _tune(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        # A peer whose machine died would otherwise look connected for many minutes.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


def encode(call: int, second: Any, third: Any) -> bytes:
    """The frame of a message. Raises ValueError if it is too large."""
    body: bytes = msgpack.packb((call, second, third))
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES} fit")
    return len(body).to_bytes(4, "big") + body


def decode(frame: bytes) -> tuple[int, Any, Any]:
    """The message of a frame without its length. Raises Malformed."""
    try:
        message = msgpack.unpackb(frame, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise Malformed(type(error).__name__) from error
    match message:
        case [int(call), second, third]:
            return call, second, third
    raise Malformed("not a message")
