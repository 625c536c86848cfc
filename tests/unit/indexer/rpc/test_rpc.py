"""The RPC over real sockets: many calls at once, and every way in which the other side can fail."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.rpc.client import RpcClient
from indexer.rpc.frames import (
    MAX_CALLS,
    MAX_FRAME_BYTES,
    UNACKNOWLEDGED_MS,
    Connection,
    Malformed,
    RpcBroken,
    RpcError,
    RpcRefused,
    RpcTimeout,
    check_address,
)
from indexer.rpc.server import RpcServer, serve

Params = dict[str, Any]


async def echo(params: Params) -> Params:
    return params


async def sleep(params: Params) -> Params:
    await asyncio.sleep(params["s"])
    return params


async def refuse(params: Params) -> Params:
    raise RpcRefused("queue full")


async def fail(params: Params) -> Params:
    raise ValueError("text of a note")


async def large(params: Params) -> Params:
    return {"data": b"x" * (MAX_FRAME_BYTES + 1)}


HANDLERS = {"echo": echo, "sleep": sleep, "refuse": refuse, "fail": fail, "large": large}


@pytest.fixture(params=["tcp", "unix"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RpcServer]:
    server = await serve("127.0.0.1:0" if request.param == "tcp" else str(tmp_path / "s"), HANDLERS)
    yield server
    await server.close()


@pytest.fixture
async def client(server: RpcServer) -> AsyncIterator[RpcClient]:
    client = RpcClient(server.address)
    yield client
    await client.close()


async def opened(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if "/" in address:
        return await asyncio.open_unix_connection(address)
    host, port = address.split(":")
    return await asyncio.open_connection(host, int(port))


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def frame(message: Any) -> bytes:
    return framed(msgpack.packb(message))


async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the server ends the connection within some seconds; afterwards it is closed."""
    try:
        async with asyncio.timeout(3):
            return await reader.read(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.close()


async def test_a_frame_that_does_not_end_in_time_ends_its_connection(server, client, monkeypatch):
    monkeypatch.setattr("indexer.rpc.server.FRAME_S", 0.3)
    reader, writer = await opened(server.address)
    quiet, silent = await opened(server.address)
    dripping = asyncio.create_task(drip(writer, frame([1, "echo", {"data": b"x" * 10_000}])[:-1]))
    assert await ended(reader, writer)
    dripping.cancel()
    # Who begins no frame may stay, and so may who ends each in time, however many there are.
    for _ in range(8):
        await asyncio.sleep(0.05)
        await client.call("echo", {"data": b"x" * 500_000}, timeout_s=5)
    silent.write(frame([1, "echo", {}]))
    assert await quiet.read(1)
    silent.close()


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)


async def test_unfinished_frames_take_a_bounded_amount_of_memory_together(server, client, monkeypatch):
    monkeypatch.setattr("indexer.rpc.server.MAX_UNFINISHED_BYTES", 1_000_000)
    most, ends = 0, []
    for _ in range(30):
        reader, writer = await opened(server.address)
        writer.write(framed(b"x" * 100_000)[:-1])
        await asyncio.sleep(0.005)
        most = max(most, sum(len(connection._buffer) for connection in server._connections))
        ends.append(ended(reader, writer))
    assert 800_000 < most <= 1_000_000
    assert sum(await asyncio.gather(*ends)) >= 20
    assert await client.call("echo", {"n": 1}, timeout_s=5) == {"n": 1}


async def test_connections_are_bounded_and_the_ones_that_are_there_go_on(server, client, monkeypatch):
    monkeypatch.setattr("indexer.rpc.server.MAX_CONNECTIONS", 3)
    await client.call("echo", {}, timeout_s=5)
    others = [await opened(server.address) for _ in range(4)]
    assert [await ended(*other) for other in others[2:]] == [True, True]
    assert await client.call("echo", {"n": 1}, timeout_s=5) == {"n": 1}
    for _, writer in others[:2]:
        writer.close()
    await asyncio.sleep(0.1)
    late = RpcClient(server.address)
    assert await late.call("echo", {"n": 2}, timeout_s=5) == {"n": 2}
    await late.close()


async def test_a_call_returns_the_result_of_the_handler(client):
    params = {"vector": b"\0\1", "k": 3, "exclude": ["ä"], "nested": {"none": None, "f": 0.5}}

    assert await client.call("echo", params, timeout_s=5) == params


async def test_responses_find_their_callers_though_they_come_in_another_order(client):
    delays = [0.05, 0.0, 0.03, 0.01]

    results = await asyncio.gather(*(client.call("sleep", {"s": delay}, timeout_s=5) for delay in delays))

    assert [result["s"] for result in results] == delays


async def test_a_thousand_calls_share_one_connection(client):
    results = await asyncio.gather(*(client.call("echo", {"n": n}, timeout_s=20) for n in range(1000)))

    assert [result["n"] for result in results] == list(range(1000))


async def test_large_frames_travel_whole_in_both_directions(client):
    data = b"x" * (MAX_FRAME_BYTES - 100)

    results = await asyncio.gather(*(client.call("echo", {"data": data}, timeout_s=20) for _ in range(3)))

    assert all(result["data"] == data for result in results)


async def test_sockets_send_at_once_and_notice_a_dead_peer(server, client):
    await client.call("echo", {}, timeout_s=5)

    [connection] = server._connections
    for transport in (connection.transport, client._connection.transport):
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            if sys.platform == "linux":
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNACKNOWLEDGED_MS


async def test_a_call_larger_than_a_frame_is_the_callers_mistake_and_the_next_one_works(client):
    with pytest.raises(ValueError, match="frame"):
        await client.call("echo", {"data": b"x" * MAX_FRAME_BYTES}, timeout_s=5)

    assert await client.call("echo", {}, timeout_s=5) == {}


@pytest.mark.parametrize(
    ("method", "reason"),
    [("refuse", "queue full"), ("fail", "internal"), ("large", "internal"), ("absent", "unknown method")],
)
async def test_an_error_of_one_call_is_told_its_caller_only(client, method, reason):
    waiting = asyncio.create_task(client.call("sleep", {"s": 0.02}, timeout_s=5))

    with pytest.raises(RpcRefused, match=f"^{reason}$"):
        await client.call(method, {}, timeout_s=5)
    assert await waiting == {"s": 0.02}


async def test_the_log_of_a_failed_handler_holds_no_text_of_the_call(client, caplog):
    with pytest.raises(RpcRefused):
        await client.call("fail", {"title": "text of a note"}, timeout_s=5)

    [record] = caplog.records
    assert (record.message, record.error) == ("rpc_handler_failed", "ValueError")
    assert "text of a note" not in str(record.__dict__)


async def test_a_call_without_a_task_needs_a_connection_that_can_send_it_at_once(server, client):
    assert client.begin("echo", {"n": 1}) is None

    await client.call("echo", {}, timeout_s=5)
    assert await client.begin("echo", {"n": 1}) == {"n": 1}
    client._connection.pause_writing()
    assert client.begin("echo", {"n": 1}) is None
    client._connection.resume_writing()
    assert await client.begin("echo", {"n": 2}) == {"n": 2}

    await server.close()
    await client._connection.closed.wait()
    assert client.begin("echo", {"n": 1}) is None


async def test_a_late_response_reaches_nobody_and_later_calls_are_right(client):
    with pytest.raises(RpcTimeout):
        await client.call("sleep", {"s": 0.05}, timeout_s=0.01)

    assert client.pending == 0
    assert await client.call("sleep", {"s": 0.1}, timeout_s=5) == {"s": 0.1}


async def test_pending_counts_the_calls_in_flight(client):
    calls = [asyncio.create_task(client.call("sleep", {"s": 0.05}, timeout_s=5)) for _ in range(3)]
    await client.call("echo", {}, timeout_s=5)

    assert client.pending == 3
    await asyncio.gather(*calls)
    assert client.pending == 0


async def test_more_calls_than_a_connection_may_hold_are_refused_at_once(client):
    waiting = [asyncio.create_task(client.call("sleep", {"s": 60}, timeout_s=90)) for _ in range(MAX_CALLS)]
    await asyncio.sleep(0)

    with pytest.raises(RpcRefused, match="busy"):
        await client.call("echo", {}, timeout_s=30)
    await client.close()
    assert {type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} == {RpcBroken}


async def test_calls_in_flight_fail_at_once_when_the_server_goes(server, client):
    waiting = asyncio.create_task(client.call("sleep", {"s": 60}, timeout_s=60))
    await client.call("echo", {}, timeout_s=5)

    await server.close()

    with pytest.raises(RpcBroken):
        await asyncio.wait_for(waiting, 10)


async def test_a_call_that_waits_to_be_sent_fails_when_the_connection_breaks(server, client):
    await client.call("echo", {}, timeout_s=5)
    client._connection.pause_writing()
    waiting = asyncio.create_task(client.call("echo", {}, timeout_s=60))
    await asyncio.sleep(0)

    await server.close()

    with pytest.raises(RpcBroken):
        await asyncio.wait_for(waiting, 10)


async def test_a_client_connects_again_to_a_server_that_came_back(tmp_path):
    address = str(tmp_path / "s")
    client = RpcClient(address)
    with pytest.raises(RpcBroken):
        await client.call("echo", {}, timeout_s=5)
    for _ in range(2):
        server = await serve(address, HANDLERS)
        assert await client.call("echo", {"n": 1}, timeout_s=5) == {"n": 1}
        await server.close()
        with pytest.raises(RpcBroken):
            await client.call("echo", {}, timeout_s=5)


async def test_handlers_of_a_disconnected_caller_are_cancelled(tmp_path):
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(params: Params) -> Params:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return {}

    server = await serve(str(tmp_path / "s"), {"wait": wait})
    client = RpcClient(server.address)
    call = asyncio.create_task(client.call("wait", {}, timeout_s=60))
    await started.wait()
    await client.close()

    await asyncio.wait_for(cancelled.wait(), 10)
    with pytest.raises(RpcBroken):
        await call
    await server.close()


@pytest.mark.parametrize("how", ["cancelled", "out of time"])
async def test_the_handler_of_an_abandoned_call_is_cancelled_and_no_other(server, client, how):
    stays = asyncio.create_task(client.call("sleep", {"s": 0.3}, timeout_s=60))
    abandoned = asyncio.create_task(client.call("sleep", {"s": 60}, timeout_s=60 if how == "cancelled" else 0.1))
    await client.call("echo", {}, timeout_s=60)
    if how == "cancelled":
        abandoned.cancel()
    await asyncio.wait([abandoned])
    await client.call("echo", {}, timeout_s=60)

    [serving] = server._connections
    assert len(serving._tasks) <= 1
    assert await stays == {"s": 0.3}
    assert abandoned.cancelled() or isinstance(abandoned.exception(), RpcTimeout)


async def test_two_calls_of_one_id_end_the_connection(server):
    reader, writer = await opened(server.address)
    writer.write(2 * frame([1, "sleep", {"s": 60}]))

    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\0",
        b"\0\0\0\1\xc1",
        frame([1, "echo", {}])[:-1] + b"\xc1",
        frame("not a list"),
        frame([1, "echo"]),
        frame(["id", "echo", {}]),
        frame([1, 2, {}]),
        frame([1, "echo", []]),
        frame([1, "echo", {1: 2}]),
        framed(b"\x93\x01\xa4echo\x81\xa1t\xd4\xff\x78"),  # a timestamp of one byte
        frame([1, "echo", {}]) + frame(None),
    ],
)
async def test_a_malformed_frame_ends_its_own_connection_only(server, client, data):
    waiting = asyncio.create_task(client.call("sleep", {"s": 0.02}, timeout_s=5))
    reader, writer = await opened(server.address)
    writer.write(data)

    with suppress(ConnectionResetError):
        assert len(await asyncio.wait_for(reader.read(), 10)) < 50
    assert await waiting == {"s": 0.02}
    writer.close()


class Saying(asyncio.Protocol):
    """A server that responds to anything with the same bytes."""

    def __init__(self, data: bytes, transports: list[asyncio.BaseTransport]) -> None:
        self.data = data
        self.transports = transports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.data)


@asynccontextmanager
async def server_that_says(data: bytes) -> AsyncIterator[str]:
    transports: list[asyncio.BaseTransport] = []
    server = await asyncio.get_running_loop().create_server(lambda: Saying(data, transports), "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for transport in transports:
        transport.abort()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "data", [b"\xff" * 8, frame([0, True, "not a map"]), frame([0, False, {}]), frame([0, 1, {}]), frame([0])]
)
async def test_a_server_that_speaks_another_language_breaks_the_connection(data):
    async with server_that_says(data) as address:
        client = RpcClient(address)

        with pytest.raises(RpcBroken):
            await client.call("echo", {}, timeout_s=10)
        await client.close()


async def test_a_response_without_a_call_is_ignored():
    async with server_that_says(frame([7, True, {}]) + frame([0, True, {"n": 1}])) as address:
        client = RpcClient(address)

        assert await client.call("echo", {}, timeout_s=10) == {"n": 1}
        await client.close()


async def test_a_silent_server_costs_the_timeout_and_no_more():
    async with server_that_says(b"") as address:
        client = RpcClient(address)

        with pytest.raises(RpcTimeout):
            await client.call("echo", {}, timeout_s=0.05)
        await client.close()


async def test_a_caller_that_reads_no_responses_is_not_read_either(server):
    """Otherwise the responses would pile up in memory; the server stays there for others."""
    _, writer = await opened(server.address)
    call = frame([1, "echo", {"data": b"x" * 1_000_000}])

    async def write_for_ever() -> None:
        while True:
            writer.write(call)
            await writer.drain()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(write_for_ever(), 1)
    assert max(connection.transport.get_write_buffer_size() for connection in server._connections) < 50_000_000

    other = RpcClient(server.address)
    assert await other.call("echo", {"n": 1}, timeout_s=10) == {"n": 1}
    await other.close()
    writer.transport.abort()


@pytest.mark.parametrize("address", ["[::1]:0", "::1:0", "localhost:0"])
async def test_an_address_may_be_of_either_family_or_a_name(address):
    server = await serve(address, HANDLERS)
    client = RpcClient(server.address)

    assert await client.call("echo", {"n": 1}, timeout_s=10) == {"n": 1}

    await client.close()
    await server.close()


async def test_a_port_out_of_range_and_a_path_that_no_socket_can_have_are_refused():
    with pytest.raises(ValueError, match="at most 65535"):
        await serve("127.0.0.1:65536", {})
    check_address("/" + "x" * 106)
    with pytest.raises(ValueError, match="at most 107 bytes"):
        check_address("/" + "x" * 107)


@pytest.mark.parametrize("address", ["", "nonsense", "host:", "host:http", ":9100", "host:\uff11"])
async def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="neither"):
        await serve(address, {})
    with pytest.raises(ValueError, match="neither"):
        await RpcClient(address).call("echo", {}, timeout_s=1)


class Collecting(Connection):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []

    def received(self, message: tuple[int, Any, Any]) -> None:
        self.messages.append(message)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 2**40), st.text(), st.dictionaries(st.text(), st.binary()))), st.data())
def test_frames_are_cut_right_however_the_bytes_arrive(messages, data):
    stream = b"".join(frame(message) for message in messages)
    connection = Collecting()
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        connection.data_received(stream[:size])
        stream = stream[size:]

    assert connection.messages == messages


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_malformed(body):
    connection = Collecting()
    connection._buffer += framed(body)
    with suppress(Malformed):
        while connection._next_message() is not None:
            pass


def test_all_errors_of_a_call_are_rpc_errors():
    assert all(issubclass(kind, RpcError) for kind in (RpcBroken, RpcTimeout, RpcRefused))
