import json
from collections.abc import AsyncIterator

import pytest
from support.http import exchange, listening

from service import protocol
from service.protocol import MAX_HEAD_BYTES


async def echo(scope, receive, send):
    """Answers with the number of bytes of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with listening(echo) as port:
        yield port


async def test_requests_on_one_connection_are_answered(port):
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

    answer = await exchange(port, request, request, last)

    assert answer.count(b"200 OK") == 3
    assert answer.count(b"\r\n\r\n3") == 2


async def test_a_body_may_be_longer_than_a_head(port):
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (4 * MAX_HEAD_BYTES)

    answer = await exchange(port, head, b"x" * (4 * MAX_HEAD_BYTES))

    assert answer.endswith(b"%d" % (4 * MAX_HEAD_BYTES))


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_a_head_without_end_ends_the_connection(port, before):
    """It ends, and does not wait for more; what it says at last depends on the moment."""
    endless = [b"x" * (MAX_HEAD_BYTES // 4)] * 6

    assert (await exchange(port, before, b"GET / HTTP/1.1\r\nX-Long: ", *endless)).count(b"200 OK") <= bool(before)


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET / HTTP/1.1\r\n\r\nGET"])
async def test_a_head_that_does_not_come_ends_the_connection(port, monkeypatch, said):
    monkeypatch.setattr(protocol, "HEAD_S", 0.1)

    answer = await exchange(port, said)

    assert answer.count(b"200 OK") == (1 if said.endswith(b"GET") else 0)


async def test_a_slow_body_is_the_routes_business_and_not_cut(port, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_S", 0.05)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 6\r\n\r\n"

    assert (await exchange(port, head, *(b"x" for _ in range(6)))).endswith(b"6")


@pytest.mark.parametrize(
    "said",
    [
        b"x-mark-x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx-mark-x\r\n",
    ],
)
async def test_what_is_no_http_gets_an_error_like_any_other(port, said):
    head, _, body = (await exchange(port, said)).partition(b"\r\n\r\n")

    status, *lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    error = json.loads(body)["error"]
    assert status == "http/1.1 400 bad request"
    assert headers["content-type"] == "application/json"
    assert (error["code"], error["request_id"]) == ("bad_request", headers["x-request-id"])
    assert "x-mark-x" not in str(error)
