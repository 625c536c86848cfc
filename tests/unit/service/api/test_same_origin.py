"""Without keys: what a browser sends on behalf of a page of another site is refused, and everybody else is served."""

import pytest
from starlette.datastructures import Headers
from support.gateway import MemoryGateway
from support.http import ask, exchange, listening, parse

from service.api.auth import policy_of
from service.api.same_origin import SameOrigin
from service.errors import Forbidden
from service.keys import Keyring, create_key

NOTE = b'{"title": "Harbor tram"}'
ADDRESSES = [
    ("127.0.0.1", "localhost", True),
    ("127.0.0.1", "LOCALHOST.:8000", True),
    ("127.0.0.1", "notes.localhost", True),
    ("127.0.0.1", "127.0.0.1:8000", True),
    ("127.0.0.1", "127.0.0.2", True),
    ("127.0.0.1", "[::1]:8000", True),
    ("127.0.0.1", "own.example", True),
    ("127.0.0.1", "Own.Example.:443", True),
    ("127.0.0.1", "rebound.example", False),
    ("127.0.0.1", "localhost.example", False),
    ("127.0.0.1", "127.0.0.1.example", False),
    ("127.0.0.1", "mylocalhost", False),
    ("127.0.0.1", "203.0.113.7", False),
    ("127.0.0.1", "evil@localhost", False),
    ("127.0.0.1", "localhost:8000:9000", False),
    ("127.0.0.1", "localhost\u00e9", False),
    ("127.0.0.1", "", False),
    ("192.0.2.1", "192.0.2.1:8000", True),
    ("192.0.2.1", "203.0.113.7", False),
    ("0.0.0.0", "192.0.2.1:8000", True),  # of whichever interface
    ("0.0.0.0", "rebound.example", False),
    ("::", "[2001:db8::1]", True),
    ("notes.example", "notes.example", True),
]


@pytest.fixture(scope="module")
def gateway() -> MemoryGateway:
    return MemoryGateway()


def answered(method: str = "GET", address: str = "127.0.0.1", **headers: str) -> bool:
    """Whether a service at this address lets the request in."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    try:
        SameOrigin(address, ["own.example"]).check(method, Headers(raw=raw))
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(("address", "host", "is_own"), ADDRESSES)
def test_the_service_answers_to_its_own_names_alone(address, host, is_own):
    for method in ("GET", "PUT", "DELETE"):
        assert answered(method, address, host=host) == is_own


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        ("http://localhost:8000", True),
        ("https://localhost:8000", True),  # behind a proxy that ends TLS
        ("http://localhost:5173", False),
        ("http://127.0.0.1:8000", False),
        ("http://attacker.example", False),
        ("http://localhost:8000.attacker.example", False),
        ("null", False),
        ("", False),
        ("file://localhost:8000", False),
    ],
)
def test_no_page_of_another_origin_is_answered(origin, is_own):
    assert answered("PUT", host="localhost:8000", origin=origin) == is_own


def test_the_port_of_a_scheme_need_not_be_named():
    assert answered(host="localhost", origin="http://localhost")
    assert answered(host="localhost:443", origin="https://localhost")
    assert not answered(host="localhost:443", origin="http://localhost")


async def test_every_route_with_data_asks_and_the_pages_do_not(gateway):
    """The console holds no note."""
    guarded = [
        (method, route.path.replace("{note_id}", "n1"))
        for route in gateway.app.routes
        if policy_of(route).scope
        for method in route.methods
    ]
    assert ("POST", "/related/batch") in guarded
    async with gateway.client() as client:
        for method, path in guarded:
            for headers in ({"Host": "rebound.example"}, {"Origin": "http://attacker.example"}):
                answer = await client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), (method, path)
        assert (await client.get("/", headers={"Host": "rebound.example"})).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; x=y", ""])
async def test_a_body_that_a_form_can_send_is_refused_and_nothing_stored(gateway, kind):
    """What a no-cors request of a page may declare; a browser asks before it declares JSON to another site."""
    browser = {"Sec-Fetch-Site": "cross-site", "Content-Type": kind}
    async with gateway.client() as client:
        for method, path in (("POST", "/notes"), ("PUT", "/notes/new"), ("POST", "/events"), ("POST", "/notes/tags")):
            answer = await client.request(method, path, content=NOTE, headers=browser)
            assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert await gateway.store.get(["new"]) == [None]


@pytest.mark.parametrize("name", ["Sec-Fetch-Site", "Referer", "Origin"])
async def test_each_header_of_a_browser_gives_it_away(gateway, name):
    headers = {"Content-Type": "application/x-www-form-urlencoded", name: "http://localhost"}
    async with gateway.client() as client:
        assert (await client.put("/notes/new", content=NOTE, headers=headers)).status_code == 415


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; x=y"])
async def test_a_body_that_is_declared_as_something_else_is_refused_from_anybody(gateway, kind):
    async with gateway.client() as client:
        assert (await client.put("/notes/new", content=NOTE, headers={"Content-Type": kind})).status_code == 415


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", ""])
async def test_a_program_that_declares_nothing_as_curl_does_is_served(gateway, kind):
    async with gateway.client() as client:
        assert (await client.put("/notes/new", content=NOTE, headers={"Content-Type": kind})).status_code == 202


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/x-ndjson"])
async def test_declared_bodies_are_taken(gateway, kind):
    body = b'{"note_id": "new", "title": "Harbor tram"}'
    async with gateway.client() as client:
        answer = await client.post("/notes", content=body, headers={"Content-Type": kind})
    assert answer.json() == {"accepted": 1, "rejected": []}


async def test_with_keys_the_key_is_enough(tmp_path):
    secret = create_key(tmp_path / "keys.json", ["write"])[1]
    gateway = MemoryGateway(Keyring(tmp_path / "keys.json"))
    headers = {"Host": "notes.example", "Origin": "https://app.example", "Content-Type": "text/plain"}
    async with gateway.client() as client:
        answer = await client.put("/notes/new", content=NOTE, headers={**headers, "Authorization": f"Bearer {secret}"})
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nhost: localhost\r\n", 400),
        (b"GET /nowhere HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET / HTTP/1.0\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", 200),
    ],
)
async def test_a_request_names_its_host_once(gateway, head, status):
    async with listening(gateway.app) as port:
        answer = parse(await exchange(port, head + b"Connection: close\r\n\r\n"))
    assert answer.status == status


async def test_no_browser_guesses_what_an_answer_is(gateway):
    async with listening(gateway.app) as port:
        for path in ("/notes/n1", "/notes/unknown", "/nowhere", "/status", "/openapi.json", "/"):
            assert (await ask(port, "GET", path)).headers["x-content-type-options"] == "nosniff"
