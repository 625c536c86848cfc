"""Connections that behave badly, over real sockets: what they get, and when they end."""

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import REGISTRY
from support.http import connected, exchange, listening, parse

from service.server.admission import Admission
from service.settings import LimitSettings

HEAD_BYTES = 64 * 1024
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SHORT = {"head_s": 0.2, "body_s": 0.2, "idle_s": 0.2}


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


@pytest.fixture
async def hasty() -> AsyncIterator[int]:
    """A port behind which nobody waits long."""
    async with listening(echo, Admission(LimitSettings(**SHORT))) as port:
        yield port


def segments_received(writer: asyncio.StreamWriter) -> int:
    """How many segments with data the kernel has received on a connection (`tcpi_data_segs_in` of linux/tcp.h)."""
    info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 156)
    return int.from_bytes(info[152:156], sys.byteorder)


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("notellm_http_connections_dropped_total", {"reason": reason}) or 0.0


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

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the segments of a connection")
    async def test_are_answered_in_one_piece_each(self, port):
        """Head and body in two would cost a system call more on either side."""
        async with connected(port) as (reader, writer):
            for answered in (1, 2, 3):
                writer.write(GET)
                await reader.readuntil(b"\r\n\r\n0")
                assert segments_received(writer) == answered

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

    @pytest.mark.parametrize("before", [b"", GET])
    async def test_with_a_head_without_end_are_told_so_and_cut_off(self, port, before):
        endless = [b"GET / HTTP/1.1\r\nX-Long: ", *[b"x" * (HEAD_BYTES // 4)] * 6]
        told = await exchange(port, *([before] if before else []), *endless)

        assert error_of(told[told.rindex(b"HTTP/1.1 ") :]) == (431, "head_too_large")
        assert told.count(b"200 OK") == bool(before)

    async def test_pipelined_without_measure_end_the_connection(self, port):
        before = dropped("unread")

        answer = await exchange(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", b"x" + GET * 2000)

        assert answer.count(b"200 OK") < 20
        assert dropped("unread") == before + 1

    async def test_of_one_who_never_reads_end_the_connection(self, port):
        """Each would wait with a permit in its hand until the answers before it are read."""

        async def ask_on() -> None:
            while True:
                writer.write(b"GET /1000000 HTTP/1.1\r\nHost: a\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)

        before = dropped("unread")
        async with connected(port) as (_, writer):
            writer.transport.pause_reading()
            with pytest.raises(ConnectionError):
                await ask_on()

        assert dropped("unread") == before + 1


class TestTime:
    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            (b"", "silent"),
            (b"GET / HT", "slow"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n", "slow"),
            (GET + b"GET", "slow"),
            (GET, "silent"),
        ],
    )
    async def test_a_head_that_does_not_come_ends_the_connection(self, hasty, said, reason):
        before = dropped(reason)

        answer = await exchange(hasty, said)

        assert answer.count(b"200 OK") == said.count(GET)
        assert dropped(reason) == before + 1

    async def test_a_head_that_comes_in_drops_ends_the_connection_all_the_same(self, hasty):
        drops = [bytes([byte]) for byte in b"GET / HTTP/1.1\r\nX-Slow: " + b"x" * 30]

        assert await exchange(hasty, *drops) == b""

    @pytest.mark.parametrize("length", [b"Content-Length: 6", b"Transfer-Encoding: chunked"])
    async def test_a_body_that_does_not_come_is_told_so_and_its_connection_ends(self, hasty, length):
        answer = await exchange(hasty, b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % length)

        assert b"200 OK" not in answer

    async def test_a_body_that_nobody_wants_any_more_is_due_all_the_same(self, hasty):
        head = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"

        answer = await exchange(hasty, head, *[b"x"] * 30)

        assert answer.count(b"200 OK") == 1

    async def test_what_a_body_that_nobody_wanted_leaves_is_a_connection_like_any_other(self, port):
        head = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"

        answer = await exchange(port, head, b"x" * 50_000, b"x" * 50_000, LAST)

        assert answer.count(b"200 OK") == 2

    async def test_between_requests_a_connection_may_rest_longer_than_a_head_may_take(self):
        async with listening(echo, Admission(LimitSettings(head_s=0.1, body_s=0.1, idle_s=60))) as port:
            answer = await exchange(port, GET, LAST, pause_s=0.3)

        assert answer.count(b"200 OK") == 2

    async def test_an_answer_may_take_longer_than_its_request(self):
        async def thinks(scope, receive, send):
            await asyncio.sleep(0.4)
            await echo(scope, receive, send)

        async with listening(thinks, Admission(LimitSettings(head_s=0.1, body_s=0.1, idle_s=0.1))) as port:
            assert b"200 OK" in await exchange(port, LAST)


@asynccontextmanager
async def opened(port: int, count: int) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """So many connections, one after the other."""
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(count):
            connections.append(await stack.enter_async_context(connected(port)))
            await asyncio.sleep(0.01)
        yield connections


class TestConnections:
    @pytest.fixture
    async def crowded(self) -> AsyncIterator[int]:
        async with listening(echo, Admission(LimitSettings(connections=5))) as port:
            yield port

    async def test_that_are_silent_the_longest_make_room_for_new_ones(self, crowded):
        async with opened(crowded, 8) as silent:
            assert (await exchange(crowded, LAST)).count(b"200 OK") == 1
            assert [reader.at_eof() for reader, _ in silent] == [True] * 4 + [False] * 4

    async def test_that_have_asked_lately_stay(self, crowded):
        async with opened(crowded, 5) as connections:
            reader, writer = connections[0]
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n0")

            await exchange(crowded, LAST)

            assert [reader.at_eof() for reader, _ in connections] == [False, True, False, False, False]

    async def test_at_work_are_not_cut_off_for_a_new_one(self):
        started, go_on = asyncio.Semaphore(0), asyncio.Event()

        async def works(scope, receive, send):
            started.release()
            await go_on.wait()
            await echo(scope, receive, send)

        async with listening(works, Admission(LimitSettings(connections=5))) as port:
            asked = [asyncio.create_task(exchange(port, LAST)) for _ in range(5)]
            for _ in asked:
                await started.acquire()
            assert await exchange(port, LAST) == b""
            go_on.set()
            answers = await asyncio.gather(*asked)

        assert [answer.count(b"200 OK") for answer in answers] == [1] * 5


async def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_a_connection_that_ends_leaves_nothing_behind():
    gate = Admission(LimitSettings())
    async with listening(echo, gate) as port:
        for parts in (
            (b"",),
            (b"GET",),
            (GET,),
            (LAST,),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",),
        ):
            async with connected(port) as (_, writer):
                writer.writelines(parts)
                await asyncio.sleep(0.02)
        await until(lambda: not gate.silent and not any(gate.in_flight.values()))

    assert gate.body_bytes == 0
