"""Packed bodies at the door of a gateway: unpacked, counted as they come out, and refused when they are no gzip."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator

import pytest
from support.gateway import MemoryGateway
from support.http import Answer, exchange, listening, parse

from service.server.admission import Admission
from service.server.gunzip import Gunzip
from service.setting_groups import LimitSettings

NOTE = json.dumps({"title": "Harbor tram", "content": "京都 " * 100}).encode()
PACKED = gzip.compress(NOTE)
LIMIT = 100_000


@pytest.fixture
def gateway() -> MemoryGateway:
    return MemoryGateway(max_body_bytes=LIMIT)


@pytest.fixture
async def port(gateway: MemoryGateway) -> AsyncIterator[int]:
    async with listening(gateway.app) as port:
        yield port


async def send(port: int, body: bytes, coding: str = "gzip", *, method: str = "PUT", path: str = "/notes/n1") -> Answer:
    """One request, its body in pieces as a network brings them, with a byte of it alone at the end."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json", *([f"Content-Encoding: {coding}"] if coding else [])]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return parse(await exchange(port, head + body[:10], body[10:-1], body[-1:], pause_s=0.005))


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip"])
async def test_a_packed_body_is_what_it_unpacks_to(gateway, port, coding):
    assert (await send(port, PACKED, coding)).status == 202
    [stored] = await gateway.store.get(["n1"])
    assert stored.note.content == "京都 " * 100


@pytest.mark.parametrize("coding", ["", "identity"])
async def test_a_plain_body_may_say_that_it_is(port, coding):
    assert (await send(port, NOTE, coding)).status == 202


async def test_every_route_with_a_body_takes_it(port):
    event = {"event_id": "e", "user_id": "u", "note_id": "n1", "type": "view", "ts": 1}
    bodies = {
        "/notes": [{"note_id": "n2", "title": "tram"}],
        "/notes/tags": {"title": "tram"},
        "/events": {"events": [event]},
        "/v1/embeddings": {"input": "tram"},
    }
    for path, body in bodies.items():
        # A byte order mark before the body is skipped, packed or not.
        packed = gzip.compress(b"\xef\xbb\xbf" + json.dumps(body).encode())
        assert (await send(port, packed, method="POST", path=path)).status in (200, 202)


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip", "gzip, identity", "none"])
async def test_another_coding_is_415_and_named_is_what_is_taken(port, coding):
    answer = await send(port, PACKED, coding)
    assert (answer.status, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "gzip" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        NOTE,
        PACKED[:-9],
        PACKED[:1],
        PACKED + b"more",
        PACKED[:-8] + b"\0" * 8,
        zlib.compress(NOTE),
        PACKED + PACKED[:20],
    ],
    ids=["plain", "cut", "a byte", "followed", "checksum", "zlib", "cut in the second stream"],
)
async def test_what_is_no_gzip_is_refused(port, body):
    answer = await send(port, body)
    assert (answer.status, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert "Harbor" not in answer.body.decode()


async def test_streams_in_a_row_are_one_body(port):
    assert (await send(port, gzip.compress(NOTE[:7]) + gzip.compress(b"") + gzip.compress(NOTE[7:]))).status == 202
    many = b"".join(gzip.compress(bytes([byte])) for byte in b'{"title": "tram"}' + b" " * 1000)
    assert (await send(port, many)).status == 422


@pytest.mark.parametrize(("over", "status"), [(0, 202), (1, 413)])
async def test_the_limit_of_a_body_counts_what_comes_out(port, over, status):
    body = b'{"title": "tram"' + b" " * (LIMIT + over - len(NOTE[:16]) - 1) + b"}"
    assert len(body) == LIMIT + over
    assert (await send(port, gzip.compress(body))).status == status
    # Packed without any gain it is longer than the limit, and within it all the same.
    assert (await send(port, gzip.compress(body, compresslevel=0))).status == status


async def test_what_comes_out_counts_against_the_memory_of_all_bodies(gateway):
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 60_000
    admission = Admission(gateway.app, LimitSettings(bodies_bytes=60_000_000))
    async with listening(admission) as port:
        answer = await send(port, bomb)
        assert (answer.status, admission.body_bytes) == (413, 0)
        admission.limits = LimitSettings(bodies_bytes=50_000)
        assert (await send(port, bomb)).status == 503


async def test_it_unpacks_in_parts(gateway):
    messages = [{"type": "http.request", "body": gzip.compress(b"x" * 3_000_000), "more_body": False}]

    async def receive():
        return messages.pop()

    unpack, parts = Gunzip(receive), []
    while (message := await unpack())["more_body"]:
        parts.append(message["body"])
    assert b"".join(parts) == b"x" * 3_000_000
    assert max(map(len, parts)) <= 256 * 1024
    assert message == {"type": "http.request", "body": b"", "more_body": False}


async def test_it_passes_on_that_the_sender_is_gone():
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": PACKED[:30], "more_body": True}]

    async def receive():
        return messages.pop()

    unpack = Gunzip(receive)
    message = await unpack()
    while message["type"] == "http.request":
        message = await unpack()
    assert message == {"type": "http.disconnect"}
