"""Requests of pages of other origins, as browsers send them, over real sockets: preflights, answers and refusals."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.gateway import MemoryGateway
from support.http import Answer, ask, exchange, listening, parse

from service.keys import Keyring, create_key
from service.server.admission import Admission
from service.setting_groups import LimitSettings

APP, OTHER = "https://app.example", "https://other.example"
EXPOSED = {"ETag", "X-Request-ID", "Retry-After"}
TAKEN = {"authorization", "content-type", "if-match", "idempotency-key", "x-answer-id", "x-reader-id"}
NOTE = b'{"title": "Harbor tram"}'


def origin(text: str) -> bytes:
    return f"Origin: {text}".encode()


def asks(method: str, headers: str = "") -> list[bytes]:
    """What a browser adds to a preflight."""
    more = [f"Access-Control-Request-Headers: {headers}".encode()] if headers else []
    return [f"Access-Control-Request-Method: {method}".encode(), *more]


def words(answer: Answer, header: str) -> set[str]:
    return {word.strip() for word in answer.headers.get(header, "").split(",")}


def may_be_read_by(answer: Answer, page: str) -> bool:
    """As a browser decides; a cache keeps answers for several origins apart."""
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == "*" or "Origin" in words(answer, "vary")
    assert "access-control-allow-credentials" not in answer.headers
    if allowed:
        assert words(answer, "access-control-expose-headers") == EXPOSED
    return allowed in (page, "*")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A gateway without keys that lists two origins."""
    origins = (APP, "http://localhost:5173")
    async with listening(MemoryGateway(cors_origins=origins).app, origins) as port:
        yield port


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_preflight_of_a_listed_origin_names_methods_and_headers(port, method):
    wanted = asks(method, ",".join(TAKEN))
    for path in ("/notes/n1", "/nowhere"):
        answer = await ask(port, "OPTIONS", path, origin(APP), *wanted)

        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == APP
        assert words(answer, "access-control-allow-methods") == {"GET", "POST", "PUT", "PATCH", "DELETE"}
        assert {word.lower() for word in words(answer, "access-control-allow-headers")} >= TAKEN
        assert "Origin" in words(answer, "vary")
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("page", [OTHER, "null", f"{APP}.evil.example", f"{APP}:8443", "http://app.example", ""])
async def test_a_preflight_of_another_origin_is_a_request_like_any_other(port, page):
    answer = await ask(port, "OPTIONS", "/notes/n1", origin(page), *asks("PUT", "content-type"))

    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-methods" not in answer.headers


async def test_options_without_a_question_are_a_request_like_any_other(port):
    answer = await ask(port, "OPTIONS", "/notes/n1", origin(APP))
    assert answer.status == 405
    assert may_be_read_by(answer, APP)


async def test_a_listed_page_writes_and_reads_and_sees_the_headers(port):
    written = await ask(port, "PUT", "/notes/n1", origin(APP), body=NOTE)
    read = await ask(port, "GET", "/notes/n1", origin("http://localhost:5173"))
    assert (written.status, written.headers["etag"]) == (202, '"1"')
    assert may_be_read_by(written, APP)
    assert (read.status, read.json()["title"]) == (200, "Harbor tram")
    assert may_be_read_by(read, "http://localhost:5173")


async def test_errors_of_the_application_can_be_read(port):
    for method, path, body in (("GET", "/notes/never", b""), ("PUT", "/notes/n1", b"{"), ("GET", "/nowhere", b"")):
        answer = await ask(port, method, path, origin(APP), body=body)
        assert answer.status >= 400
        assert may_be_read_by(answer, APP)


async def test_the_page_of_another_origin_is_answered_as_before(port):
    for method, body in (("GET", b""), ("PUT", NOTE)):
        answer = await ask(port, method, "/notes/n1", origin(OTHER), body=body)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "forbidden")
        assert not may_be_read_by(answer, OTHER)


async def test_a_listed_page_calls_the_service_by_its_own_name_and_declares_its_bodies_as_others_do(port):
    lines = [b"PUT /notes/n1 HTTP/1.1", b"Connection: close", origin(APP), b"Content-Length: %d" % len(NOTE)]
    for more, status in (
        ([b"Host: rebound.example", b"Content-Type: application/json"], 403),
        ([b"Host: localhost", b"Content-Type: text/plain"], 415),
    ):
        answer = parse(await exchange(port, b"\r\n".join([*lines, *more]) + b"\r\n\r\n" + NOTE))
        assert answer.status == status


async def test_without_an_origin_the_answer_depends_on_it_all_the_same(port):
    answer = await ask(port, "GET", "/notes/never")
    assert "access-control-allow-origin" not in answer.headers
    assert "Origin" in words(answer, "vary")


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_head_that_is_too_long_can_be_read_about(port, at_once):
    head = b"GET /notes/n1 HTTP/1.1\r\nHost: localhost\r\norigin:%b\r\nX-Long: %b\r\n\r\n"
    for page, can in ((APP, True), (OTHER, False)):
        whole = head % (page.encode(), b"x" * 70_000)
        answer = parse(await exchange(port, *([whole] if at_once else [whole[:40_000], whole[40_000:]])))
        assert (answer.status, answer.json()["error"]["code"]) == (431, "head_too_large")
        assert ("access-control-allow-origin" in answer.headers) == can


async def test_an_origin_is_forgotten_with_its_request(port):
    first = b"GET /notes/never HTTP/1.1\r\nHost: localhost\r\nOrigin: %b\r\n\r\n" % APP.encode()
    told = await exchange(port, first, b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 70_000)
    last = parse(told[told.rindex(b"HTTP/1.1 ") :])
    assert last.status == 431
    assert "access-control-allow-origin" not in last.headers


@pytest.mark.parametrize("code", ["overloaded", "rate_limited"])
async def test_refusals_before_the_application_can_be_read_and_preflights_take_no_permit(tmp_path: Path, code):
    secret = create_key(tmp_path / "keys.json", ["read"])[1]
    keyring = Keyring(tmp_path / "keys.json")
    gateway = MemoryGateway(keyring, cors_origins=(APP,))
    limits = LimitSettings(rate_per_s=0.01, burst=1) if code == "rate_limited" else LimitSettings(reads=1)
    admission = Admission(gateway.app, limits, keyring, gateway.app.routes)
    key = f"Authorization: Bearer {secret}".encode()
    async with listening(admission, (APP,)) as port:
        if code == "overloaded":
            admission.enter("reads", None)
        else:
            assert (await ask(port, "GET", "/notes/never", origin(APP), key)).status == 404
        refused = await ask(port, "GET", "/notes/never", origin(APP), key)
        preflight = await ask(port, "OPTIONS", "/notes/never", origin(APP), *asks("GET", "authorization"))

    assert refused.json()["error"]["code"] == code
    assert refused.headers["retry-after"]
    assert may_be_read_by(refused, APP)
    assert preflight.status == 204


async def test_any_origin_is_allowed_by_a_star(tmp_path: Path):
    secret = create_key(tmp_path / "keys.json", ["read"])[1]
    gateway = MemoryGateway(Keyring(tmp_path / "keys.json"), cors_origins=("*",))
    async with listening(gateway.app, ("*",)) as port:
        preflight = await ask(port, "OPTIONS", "/status", origin(OTHER), *asks("GET", "authorization"))
        answer = await ask(port, "GET", "/status", origin(OTHER), f"Authorization: Bearer {secret}".encode())
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, "*")
    assert answer.status == 200
    assert may_be_read_by(answer, OTHER)


async def test_by_default_no_other_origin_is_answered():
    async with listening(MemoryGateway().app) as port:
        preflight = await ask(port, "OPTIONS", "/notes/n1", origin(APP), *asks("GET"))
        answer = await ask(port, "GET", "/openapi.json", origin(APP))
    assert preflight.status == 405
    assert not [name for name in (*preflight.headers, *answer.headers) if name.startswith("access-control")]
