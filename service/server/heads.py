"""The head of a simple request, read without a parser: for those that are refused, of which there may be very many."""

import re

# What may announce a body, or another protocol, or the end of the connection.
_NOT_PLAIN = re.compile(
    rb"\r\n(?:content-length|transfer-encoding|expect|upgrade|(?:proxy-)?connection:(?! ?keep-alive\r))", re.IGNORECASE
)
_AUTHORIZATION = re.compile(rb"\r\nauthorization:[ \t]*([^\r]*)", re.IGNORECASE)


def plain_get(data: bytes) -> tuple[str, list[bytes]] | None:
    """Path and Authorization headers of one whole GET that has no body and keeps its connection; else None.

    None is always safe: then the parser reads it. What is taken for a request ends where the parser would end it:
    at the only empty line, which is the end of the data, with nothing in the head that announces a body.
    """
    if not (data.startswith(b"GET /") and data.endswith(b"\r\n\r\n") and data.count(b"\r\n\r\n") == 1):
        return None
    if _NOT_PLAIN.search(data):
        return None
    target, _, version = data[4 : data.index(b"\r\n")].partition(b" ")
    path = target.partition(b"?")[0]
    if version != b"HTTP/1.1" or b"%" in path or not path.isascii():
        return None
    return path.decode("ascii"), _AUTHORIZATION.findall(data)
