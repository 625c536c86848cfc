"""Who may call over TCP: those that know the secret, and nobody who heard it being proved."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest

from indexer.rpc import secret
from indexer.rpc.client import RpcClient
from indexer.rpc.frames import RpcBroken, RpcError, RpcRefused
from indexer.rpc.server import RpcServer, serve

OURS, ANOTHER = b"a secret of all our processes", b"a secret of somebody else"
CALLED = []


async def echo(params: dict[str, Any]) -> dict[str, Any]:
    CALLED.append(params)
    return params


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RpcServer]:
    CALLED.clear()
    monkeypatch.setattr(secret, "SECRET", OURS)
    server = await serve("127.0.0.1:0", {"echo": echo})
    yield server
    await server.close()


async def call(address: str) -> dict[str, Any]:
    client = RpcClient(address)
    try:
        return await client.call("echo", {"n": 1}, timeout_s=5)
    finally:
        await client.close()


class Wire:
    """A peer that sends what it likes."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> "Wire":
        host, port = self._address.split(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def ask(self, *message: object) -> list[Any]:
        body = msgpack.packb(message)
        self._writer.write(len(body).to_bytes(4, "big") + body)
        return msgpack.unpackb(await self._reader.readexactly(int.from_bytes(await self._reader.readexactly(4), "big")))


async def test_who_knows_the_secret_may_call(server):
    assert await call(server.address) == {"n": 1}


async def test_who_does_not_may_not_and_is_told_what_is_asked_for(server, monkeypatch):
    monkeypatch.setattr(secret, "SECRET", None)

    with pytest.raises(RpcRefused, match="a secret is asked for here"):
        await call(server.address)
    assert CALLED == []


async def test_another_secret_is_found_out_by_the_client_which_tells_nothing_then(server, monkeypatch):
    monkeypatch.setattr(secret, "SECRET", ANOTHER)

    with pytest.raises(RpcBroken, match="has another secret"):
        await call(server.address)
    assert CALLED == []


async def test_a_server_without_a_secret_is_none_of_ours(monkeypatch):
    server = await serve("127.0.0.1:0", {"echo": echo})
    monkeypatch.setattr(secret, "SECRET", OURS)

    with pytest.raises(RpcBroken, match="asks for no secret"):
        await call(server.address)
    await server.close()


async def test_a_socket_of_the_file_system_asks_for_none(monkeypatch, tmp_path):
    monkeypatch.setattr(secret, "SECRET", OURS)
    server = await serve(str(tmp_path / "s"), {"echo": echo})
    monkeypatch.setattr(secret, "SECRET", None)

    assert await call(server.address) == {"n": 1}
    await server.close()


async def test_what_was_heard_of_one_connection_opens_no_other(server):
    own = secret.number()
    async with Wire(server.address) as first, Wire(server.address) as second:
        _, _, theirs = await first.ask(0, "hello", {"number": own})
        good = secret.proof(OURS, "client", own, theirs["number"])
        await second.ask(0, "hello", {"number": own})
        with pytest.raises(asyncio.IncompleteReadError):
            await second.ask(1, "prove", {"proof": good})

        assert await first.ask(1, "prove", {"proof": good}) == [1, True, {}]
        assert await first.ask(2, "echo", {"n": 2}) == [2, True, {"n": 2}]


async def test_the_servers_own_proof_sent_back_is_none(server):
    async with Wire(server.address) as wire:
        _, _, theirs = await wire.ask(0, "hello", {"number": secret.number()})
        with pytest.raises(asyncio.IncompleteReadError):
            await wire.ask(1, "prove", {"proof": theirs["proof"]})


@pytest.mark.parametrize(
    "message",
    [
        (0, "echo", {"n": 1}),
        (0, "prove", {"proof": b"\0" * 32}),
        (0, "prove", {}),
        (0, "hello", {}),
        (0, "hello", {"number": b"short"}),
        (0, "hello", {"number": 7}),
        (0, "hello", None),
        (0, 7, {}),
    ],
    ids=str,
)
async def test_anything_else_of_a_stranger_is_refused(server, message):
    async with Wire(server.address) as wire:
        assert await wire.ask(*message) == [0, False, "a secret is asked for here"]
    assert CALLED == []


async def test_a_stranger_sends_no_long_frame_and_stays_no_longer_than_it_takes(server, monkeypatch):
    async with Wire(server.address) as wire:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await wire.ask(0, "hello", {"number": b"x" * 200_000})

    monkeypatch.setattr("indexer.rpc.server.FRAME_S", 0.05)
    async with Wire(server.address) as wire:
        async with asyncio.timeout(5):
            assert await wire._reader.read() == b""


async def test_strangers_do_not_decide_how_much_is_logged(server, monkeypatch, caplog):
    monkeypatch.setattr("indexer.rpc.server.LINES_S", 0.5)
    wrong = b"\xff\xff\xff\xff", b"\0\0\0\1\xc1"
    for number in range(200):
        async with Wire(server.address) as wire:
            wire._writer.write(wrong[number % 2])
            with suppress(ConnectionError):
                await wire._reader.read()
    before = len(caplog.records)
    await asyncio.sleep(0.5)
    async with Wire(server.address) as wire:
        wire._writer.write(wrong[0])
        with suppress(ConnectionError):
            await wire._reader.read()

    assert before == 60
    assert {record.message for record in caplog.records} == {"rpc_malformed"}
    assert caplog.records[-1].untold == 140


async def test_a_friend_stays(server, monkeypatch):
    monkeypatch.setattr("indexer.rpc.server.FRAME_S", 0.05)
    client = RpcClient(server.address)
    await client.call("echo", {}, timeout_s=5)
    connection = client._connection
    await asyncio.sleep(0.15)

    assert await client.call("echo", {"n": 3}, timeout_s=5) == {"n": 3}
    assert client._connection is connection
    await client.close()


async def test_a_server_that_says_nothing_costs_no_more_than_the_timeout():
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    client = RpcClient(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secret, "SECRET", OURS)
        with pytest.raises(RpcError, match="no response"):
            await client.call("echo", {}, timeout_s=0.1)
    await ended.wait()
    listening.close()
    await listening.wait_closed()
