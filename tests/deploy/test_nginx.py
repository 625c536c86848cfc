"""deploy/nginx/nginx.conf in a real nginx, before a real gateway: slow and greedy clients end here."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.http import connected, exchange, hold, parse
from support.nginx import Proxy
from support.service import Service, running

from service.processes.state import free_port

SLOW_S = 1  # instead of the nine seconds of the file
QUICK = {"_timeout 9s": f"_timeout {SLOW_S}s", "clients 512": "clients 40"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    tiny_checkpoint(folder / "checkpoint")
    with running(Service(folder, folder / "checkpoint")) as service:
        yield service


@pytest.fixture(scope="module")
def proxy(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path_factory.mktemp("nginx"), int(service.api.rsplit(":", 1)[1]), QUICK)
    yield proxy
    proxy.stop()


def connections(service: Service) -> int:
    """Those that the gateway has."""
    port = (service.state / "run" / "gateway.ops").read_text()
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return int(float(re.search(r"^notellm_http_connections (\S+)", metrics, re.MULTILINE)[1]))


def error_of(raw: bytes) -> tuple[int, str]:
    answer = parse(raw)
    error = json.loads(answer.body)["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    return answer.status, error["code"]


def test_requests_and_answers_pass_as_they_are(service, proxy):
    note = {"title": "Night train"}
    written = httpx.put(f"{proxy.url}/notes/n%3A1?wait=10", json=note, headers={"X-Request-ID": "mine"}, timeout=30)
    assert (written.status_code, written.headers["x-request-id"]) == (200, "mine")
    assert written.headers["etag"] == '"1"'
    assert httpx.get(f"{proxy.url}/notes/n:1").json()["title"] == "Night train"

    direct, through = (httpx.get(f"{url}/notes/nowhere/related") for url in (service.api, proxy.url))
    assert through.status_code == direct.status_code == 404
    assert through.json()["error"]["code"] == direct.json()["error"]["code"]
    assert httpx.get(f"{proxy.url}/").text == httpx.get(f"{service.api}/").text


async def test_a_head_or_body_that_does_not_come_ends_here_and_never_reaches_the_gateway(service, proxy):
    before = connections(service)
    put = b"PUT /notes/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n{"
    held = [
        asyncio.create_task(hold(proxy.port, said))
        for said in (b"", b"GET / HT", b"GET /status HTTP/1.1\r\nX-Half: ", put)
        for _ in range(5)
    ]
    await asyncio.sleep(SLOW_S / 2)
    assert connections(service) <= before + 1

    ended = await asyncio.gather(*held)
    assert max(ended) < 10 * SLOW_S


async def test_silent_clients_cost_the_others_nothing(service, proxy):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(30):
            await stack.enter_async_context(connected(proxy.port))
        started = time.monotonic()
        async with httpx.AsyncClient() as client:
            answers = [(await client.get(f"{proxy.url}/status")).status_code for _ in range(20)]

    assert answers == [200] * 20
    assert time.monotonic() - started < 10


async def test_one_address_gets_no_more_connections_than_it_may(proxy):
    async def ask() -> bytes:
        async with connected(proxy.port) as (reader, writer):
            writer.write(b"PUT /notes/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
            return await reader.read(4096)

    answers = await asyncio.gather(*(ask() for _ in range(60)))

    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
    assert 15 <= len(refused) <= 25
    assert {error_of(answer) for answer in refused} == {(503, "overloaded")}
    assert all(parse(answer).headers["retry-after"] == "1" for answer in refused)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET\r\n\r\n", (400, "bad_request")),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n", (431, "head_too_large")),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", (431, "head_too_large")),
        (b"POST /notes HTTP/1.1\r\nHost: a\r\nContent-Length: 34000000\r\n\r\n", (413, "too_large")),
    ],
)
async def test_what_nginx_refuses_has_the_shape_of_every_error(proxy, request_, expected):
    assert error_of(await exchange(proxy.port, request_)) == expected


def test_without_a_gateway_clients_are_told_to_come_again(tmp_path):
    proxy = Proxy(tmp_path, free_port("127.0.0.1", 0, ""))
    try:
        answer = httpx.get(f"{proxy.url}/status")
    finally:
        proxy.stop()

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"
