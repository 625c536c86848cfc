"""Every route of the app, with every kind of key, over a real socket. The routes are the app's own: one that is
added is in the table at once, and one without a policy does not get that far.
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Route
from support.gateway import MemoryGateway
from support.http import Answer, ask, listening

from service.api.auth import GuardedRoute, needs, policy_of, public
from service.keys import Keyring, create_key, revoke_key

SCOPES = ("read", "write", "tags", "admin")
CONTRACT = {
    "GET /openapi.json": None,
    "HEAD /openapi.json": None,
    "GET /notes/{note_id}/related": "read",
    "POST /notes/tags": "tags",
    "POST /v1/embeddings": "read",
    "PUT /notes/{note_id}": "write",
    "PATCH /notes/{note_id}": "write",
    "POST /notes": "write",
    "POST /events": "write",
    "POST /notes/{note_id}/related": "read",
    "POST /related": "read",
    "POST /related/batch": "read",
    "GET /search": "read",
    "POST /search": "read",
    "GET /notes": "read",
    "GET /notes/{note_id}": "read",
    "DELETE /notes/{note_id}": "write",
    "DELETE /users/{user_id}": "admin",
    "GET /hashtags": "read",
    "GET /hashtags/trending": "read",
    "GET /hashtags/rules": "read",
    "PUT /hashtags/{tag}": "admin",
    "DELETE /hashtags/{tag}": "admin",
    "GET /outcomes": "read",
    "GET /experiments": "read",
    "GET /experiments/{name}": "read",
    "GET /learning": "read",
    "GET /status": "read",
}


def operations(app: FastAPI) -> dict[str, str | None]:
    """What each route of the app asks for, by method and template."""
    return {
        f"{method} {route.path_format}": policy_of(route).scope
        for route in app.routes
        for method in sorted(route.methods or ())
    }


ROUTES = operations(MemoryGateway().app)


class Service:
    """A gateway with keys, listening."""

    def __init__(self, port: int, keys: dict[str, str], revoked: str) -> None:
        self.port = port
        self.keys = keys
        self.revoked = revoked

    async def ask(self, operation: str, *headers: bytes) -> Answer:
        method, template = operation.split()
        path = re.sub(r"\{\w+\}", "n1", template)
        return await ask(self.port, method, path, *headers, body=b"{}" if method in {"PUT", "PATCH", "POST"} else b"")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    file = tmp_path / "keys.json"
    keys = {scope: create_key(file, [scope])[1] for scope in SCOPES}
    gone, revoked = create_key(file, ["admin"])
    keyring = Keyring(file)
    revoke_key(file, gone.id)
    keyring.refresh()
    async with listening(MemoryGateway(keyring).app) as port:
        yield Service(port, keys, revoked)


def is_refused(answer: Answer, status: int, code: str) -> bool:
    error = answer.json()["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(answer.body) <= 2048
    return (answer.status, error["code"]) == (status, code)


def test_the_scopes_are_those_of_the_contract():
    assert {name: scope for name, scope in ROUTES.items() if name in CONTRACT} == CONTRACT
    assert {name for name, scope in ROUTES.items() if scope} <= set(CONTRACT)


@pytest.mark.parametrize("operation", ROUTES)
async def test_each_scope_opens_its_own_routes_and_admin_all_of_them(service, operation):
    needed = ROUTES[operation]
    for scope, key in service.keys.items():
        answer = await service.ask(operation, b"Authorization: Bearer " + key.encode())
        if needed in {None, scope} or scope == "admin":
            assert answer.status not in {401, 403}
        else:
            assert is_refused(answer, 403, "forbidden")


NOT_KEYS = {
    "none": [],
    "empty": [b"Authorization:"],
    "scheme alone": [b"Authorization: Bearer"],
    "scheme and space": [b"Authorization: Bearer "],
    "garbage": [b"Authorization: Bearer garbage"],
    "not ASCII": [b"Authorization: Bearer caf\xc3\xa9"],
    "not UTF-8": [b"Authorization: Bearer \xff\xfe\x80"],
    "very long": [b"Authorization: Bearer " + b"a" * 30_000],
    "another scheme": [b"Authorization: Basic KEY"],
    "no scheme": [b"Authorization: KEY"],
    "long behind the key": [b"Authorization: Bearer KEY" + b"a" * 5000],
    "two keys in one": [b"Authorization: Bearer KEY, Bearer KEY"],
    "twice": [b"Authorization: Bearer KEY", b"Authorization: Bearer KEY"],
    "good and bad": [b"Authorization: Bearer KEY", b"Authorization: Bearer garbage"],
    "in other letters": [b"Authorization: Bearer KEY".swapcase()],
    "elsewhere": [b"X-Api-Key: KEY", b"Cookie: key=KEY", b"Proxy-Authorization: Bearer KEY"],
    "revoked": [b"Authorization: Bearer REVOKED"],
}


@pytest.mark.parametrize("operation", ROUTES)
async def test_without_a_live_key_only_what_is_public_answers(service, operation):
    key, revoked = service.keys["admin"].encode(), service.revoked.encode()

    answers = {
        name: await service.ask(operation, *(line.replace(b"KEY", key).replace(b"REVOKED", revoked) for line in lines))
        for name, lines in NOT_KEYS.items()
    }

    if ROUTES[operation] is None:
        assert {answer.status for answer in answers.values()} == {200}
    else:
        assert [name for name, answer in answers.items() if not is_refused(answer, 401, "unauthorized")] == []
        assert {answer.headers["www-authenticate"] for answer in answers.values()} == {"Bearer"}


async def test_a_key_is_asked_for_before_anything_else_is_looked_at(service):
    """Nobody without a key learns what a good request would be, or makes us read his body."""
    for path in ("/notes/n1?unknown=1", "/notes/%20", "/notes/n1?wait=x"):
        assert is_refused(await ask(service.port, "PUT", path, b"Content-Length: 99999999"), 401, "unauthorized")


async def test_what_is_no_route_tells_nothing_about_keys(service):
    assert is_refused(await ask(service.port, "GET", "/nowhere"), 404, "not_found")
    assert is_refused(await ask(service.port, "PATCH", "/status"), 405, "method_not_allowed")


async def test_the_scheme_is_written_in_any_case(service):
    key = service.keys["read"].encode()
    for header in (b"authorization: bearer " + key, b"AUTHORIZATION: BEARER   " + key + b" "):
        assert (await service.ask("GET /status", header)).status == 200


@pytest.mark.parametrize("operation", ROUTES)
async def test_without_a_keys_file_nobody_is_asked(operation):
    async with listening(MemoryGateway().app) as port:
        assert (await Service(port, {}, "").ask(operation)).status not in {401, 403}


async def nothing() -> Response:
    return Response()


def test_a_route_without_a_policy_cannot_be_made():
    router = APIRouter(route_class=GuardedRoute)

    with pytest.raises(TypeError, match="/new needs one dependency, its policy"):
        router.add_api_route("/new", nothing, response_class=Response)
    router.add_api_route("/new", nothing, response_class=Response, dependencies=[public])
    router.add_api_route("/newer", nothing, response_class=Response, dependencies=[needs("tags")])

    assert [policy_of(route).scope for route in router.routes] == [None, "tags"]


@pytest.mark.parametrize("second", [Depends(nothing), needs("read"), public])
def test_a_route_with_a_second_dependency_which_would_not_be_resolved_cannot_be_made(second):
    router = APIRouter(route_class=GuardedRoute, dependencies=[public])

    with pytest.raises(TypeError, match="/new needs one dependency, its policy"):
        router.add_api_route("/new", nothing, response_class=Response, dependencies=[second])


@pytest.mark.parametrize(
    "route", [Route("/new", nothing), APIRoute("/new", nothing), APIRoute("/new", nothing, dependencies=[public])]
)
def test_an_app_with_a_route_that_does_not_enforce_a_policy_does_not_start(route, monkeypatch):
    monkeypatch.setattr("service.api.app.ROUTES", [route])

    with pytest.raises(AssertionError, match="without a policy"):
        MemoryGateway()


async def test_the_openapi_document_says_which_scope_each_operation_needs():
    async with MemoryGateway().client() as client:
        document = (await client.get("/openapi.json")).json()

    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            scope = CONTRACT[f"{method.upper()} {path}"]
            assert operation["x-scope"] == scope
            assert operation["security"] == [{"key": [scope]}]
            assert {"401", "403"} <= set(operation["responses"])
