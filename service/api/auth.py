"""Authorisation: which key a request carries, and what each route asks for.

A route declares its policy where it is declared, and cannot be made without one::

    router = APIRouter(route_class=GuardedRoute)

    @router.get("/notes/{note_id}", dependencies=[needs("read")])

What is asked for belongs to the route that matched, never to a path.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any, Literal, get_args

from fastapi import Request, params
from fastapi.security import HTTPBearer
from starlette.routing import BaseRoute

from service.errors import Forbidden, Unauthorized
from service.keys import Key, Keyring, Scope

Kind = Literal["related", "reads", "writes", "bulk", "tags", "public"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_KINDS: dict[Scope, Kind] = {"read": "reads", "write": "writes", "tags": "tags", "admin": "writes"}
_MAX_SECRET_BYTES = 256
_BEARER = b"bearer "


class Public:
    """The policy of what anybody may see."""

    scope: Scope | None = None
    kind: Kind = "public"

    async def __call__(self, request: Request) -> None:
        """Let everybody in."""


class Guard(HTTPBearer):
    """The policy of a route that asks for a key with one scope; everybody is let in while there are no keys.

    ``kind`` says which of the permits of `service.server.admission` the route's requests take.
    """

    def __init__(self, scope: Scope, kind: Kind) -> None:
        super().__init__(
            scheme_name="key",
            description="A key from `notellm keys create`. Needed while the service has a keys file; "
            "`x-scope` of an operation says which scope the key must have, and `admin` has all of them.",
        )
        self.scope: Scope = scope
        self.kind: Kind = kind

    async def __call__(self, request: Request) -> None:
        """Raises Unauthorized without a live key, and Forbidden without the scope."""
        keyring: Keyring | None = request.app.state.keys
        if keyring is None:
            return
        key = caller(request.scope, keyring)
        if key is None:
            raise Unauthorized("this needs a live key: Authorization: Bearer <key>")
        if not key.allows(self.scope):
            raise Forbidden(f"the key does not have the scope {self.scope}")


Policy = Public | Guard
public = params.Depends(Public())


def needs(scope: Scope, kind: Kind | None = None) -> params.Security:
    """The dependency of a route that asks for a key with this scope; its permits are those of the scope, or named."""
    return params.Security(Guard(scope, kind or _KINDS[scope]), scopes=[scope])


def policy_of(route: BaseRoute) -> Policy | None:
    """What a route declares; None when it declares nothing."""
    declared = [each.dependency for each in getattr(route, "dependencies", ())]
    declared.append(getattr(route, "policy", None))
    return next((policy for policy in declared if isinstance(policy, Public | Guard)), None)


def declare_public(route: BaseRoute) -> None:
    """For a route that is not FastAPI's, and takes no dependencies."""
    route.policy = public.dependency  # type: ignore[attr-defined]


def caller(scope: MutableMapping[str, Any], keyring: Keyring) -> Key | None:
    """The key of a request; None without one, with one that is not live, and with several. Looked up once."""
    state = scope.setdefault("state", {})
    if "key" not in state:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        state["key"] = key_of(given, keyring)
    key: Key | None = state["key"]
    return key


def key_of(given: Sequence[bytes], keyring: Keyring) -> Key | None:
    """The key that a request's Authorization headers name: one header, one live key, else None."""
    if len(given) != 1 or given[0][: len(_BEARER)].lower() != _BEARER:
        return None
    secret = given[0][len(_BEARER) :].strip(b" ")
    # Bytes all the way: a header need not be text, and a hash is as good a comparison as any.
    return keyring.find(secret) if len(secret) <= _MAX_SECRET_BYTES else None
