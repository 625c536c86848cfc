"""Bodies that are packed with gzip, decoded as they come."""

import asyncio
import zlib

from starlette.types import Message, Receive

from service.errors import BadRequest

# A few bytes can unpack to megabytes: no more than this at once, so that every limit counts them before there are more.
_PART_BYTES = 256 * 1024
_MOST_STREAMS = 1000
_GZIP = 16 + zlib.MAX_WBITS  # gzip's header and checksum, no other form


class Gunzip:
    """What ``receive`` brings, unpacked: a `Receive` of parts of a request's body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._streams = 0
        self._begin()
        self._packed = b""
        self._is_received = False

    async def __call__(self) -> Message:
        """The next part. Raises BadRequest when the body is not gzip, or not all of it."""
        while not (part := self._unpack()):
            if self._is_received:
                if not self._inflate.eof:
                    raise BadRequest("the body is not whole: its gzip stream has no end")
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed += message.get("body", b"")
            self._is_received = not message.get("more_body", False)
        await asyncio.sleep(0)  # other requests come in between
        return {"type": "http.request", "body": part, "more_body": True}

    def _unpack(self) -> bytes:
        """The next part of what came so far; empty when there is none."""
        while True:
            if self._inflate.eof:
                if not self._packed:
                    return b""
                self._begin()  # several streams in a row are one
            try:
                part = self._inflate.decompress(self._packed, _PART_BYTES)
            except zlib.error:
                raise BadRequest("the body is not gzip, as its Content-Encoding has it") from None
            self._packed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if part or not self._packed:
                return part

    def _begin(self) -> None:
        if self._streams == _MOST_STREAMS:
            raise BadRequest(f"the body is more than {_MOST_STREAMS} gzip streams")
        self._streams += 1
        self._inflate = zlib.decompressobj(_GZIP)
