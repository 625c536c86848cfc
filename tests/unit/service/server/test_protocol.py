"""HTTP over real sockets, well-formed and not."""

import json
import re
from collections.abc import AsyncIterator

import pytest
from support.http import exchange, listening, parse

HEAD_BYTES = 64 * 1024
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def echo(scope, receive, send):
    """Answers with the number of bytes of the body, or at once with what the path says, and reads no body."""
    if scope["path"] != "/":
        body = b"x" * int(scope["path"][1:])
    else:
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


def error_of(raw: bytes) -> tuple[int, str]:
    """Status and code; the answer has the one shape of errors, and the id of its request in both places."""
    answer = parse(raw)
    error = json.loads(answer.body)["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", error["request_id"])
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.headers["content-type"] == "application/json"
    return answer.status, error["code"]


class TestRequests:
    async def test_on_one_connection_are_all_answered(self, port):
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"

        answer = await exchange(port, request, request, LAST)

        assert answer.count(b"200 OK") == 3
        assert answer.count(b"\r\n\r\n3") == 2

    async def test_sent_in_one_piece_are_all_answered_in_order(self, port):
        answer = await exchange(port, b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET + GET + LAST)

        assert re.findall(rb"\r\n\r\n(x|0)", answer) == [b"x", b"0", b"0", b"0"]

    async def test_may_have_bodies_longer_than_a_head(self, port):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (4 * HEAD_BYTES)

        assert (await exchange(port, head, b"x" * (4 * HEAD_BYTES))).endswith(b"%d" % (4 * HEAD_BYTES))

    async def test_may_ask_before_they_send_a_body(self, port):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"

        answer = await exchange(port, head, b"abc")

        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
        assert answer.endswith(b"3")

    async def test_that_are_no_http_are_told_so_in_the_shape_of_every_error(self, port):
        for garbage in (
            b"\x16\x03\x01\x02\x00\x01",
            b"GET\r\n\r\n",
            b"GET / HTTP/1.1\r\nBad Header: 1\r\n\r\n",
            b"\0" * 9,
        ):
            assert error_of(await exchange(port, garbage)) == (400, "bad_request")

    @pytest.mark.parametrize("over", [-1, 1])
    @pytest.mark.parametrize("at_once", [True, False])
    async def test_have_heads_up_to_the_limit_and_no_longer(self, port, over, at_once):
        """At every length above the limit, in one piece or in several, whatever comes behind the head."""
        frame = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Long: \r\n\r\n"
        head = frame.replace(b"\r\n\r\n", b"x" * (HEAD_BYTES - len(frame) + over) + b"\r\n\r\n")
        parts = [head + b"x" * 100] if at_once else [head[:40_000], head[40_000:]]

        told = await exchange(port, *parts)

        assert told.startswith(b"HTTP/1.1 431 " if over > 0 else b"HTTP/1.1 200 OK")

    async def test_may_be_long_together(self, port):
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000

        assert (await exchange(port, request * 5 + LAST)).count(b"200 OK") == 6

    @pytest.mark.parametrize("before", [b"", GET])
    async def test_with_a_head_without_end_are_told_so_and_cut_off(self, port, before):
        endless = [b"GET / HTTP/1.1\r\nX-Long: ", *[b"x" * (HEAD_BYTES // 4)] * 6]
        told = await exchange(port, *([before] if before else []), *endless)

        assert error_of(told[told.rindex(b"HTTP/1.1 ") :]) == (431, "head_too_large")
        assert told.count(b"200 OK") == bool(before)
