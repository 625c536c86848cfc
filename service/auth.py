"""Authorisation: which key a request carries, and what each route asks for.

A route declares its policy where it is declared, and cannot be made without one::

    router = APIRouter(route_class=GuardedRoute)

    @router.get("/notes/{note_id}", dependencies=[needs("read")])

What is asked for belongs to the route that matched, never to a path.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request, params
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.routing import BaseRoute

from service.errors import Forbidden, Unauthorized
from service.keys import Key, Keyring, Scope

_MAX_SECRET_BYTES = 256
_BEARER = b"bearer "


class Public:
    """The policy of what anybody may see."""

    scope: Scope | None = None

    async def __call__(self) -> None:
        """Let everybody in."""


class Guard(HTTPBearer):
    """The policy of a route that asks for a key with one scope; everybody is let in while there are no keys."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(
            scheme_name="key",
            description="A key from `notellm keys create`. Needed while the service has a keys file; "
            "`x-scope` of an operation says which scope the key must have, and `admin` has all of them.",
        )
        self.scope: Scope = scope

    async def __call__(self, request: Request) -> None:
        """Raises Unauthorized without a live key, and Forbidden without the scope."""
        keyring: Keyring | None = request.app.state.keys
        if keyring is None:
            return
        key = caller(request.scope, keyring)
        if key is None:
            raise Unauthorized("this needs a live key: Authorization: Bearer <key>")
        request.state.key = key
        if not key.allows(self.scope):
            raise Forbidden(f"the key does not have the scope {self.scope}")


Policy = Public | Guard

public = params.Depends(Public())


def needs(scope: Scope) -> params.Security:
    """The dependency of a route that asks for a key with this scope."""
    return params.Security(Guard(scope), scopes=[scope])


class GuardedRoute(APIRoute):
    """A route that cannot be made without a policy, asks it before anything else, and says so in the OpenAPI."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        **options: Any,
    ) -> None:
        super().__init__(path, endpoint, **options)
        policy = policy_of(self)
        if policy is None:
            raise TypeError(f"{path} has no policy: dependencies=[needs(...)] or [public]")
        self.policy = policy
        # FastAPI puts what the router asks for before what the route asks for.
        self.dependant.dependencies.sort(key=lambda dependant: dependant.call is not policy)
        self.openapi_extra = {**(self.openapi_extra or {}), **({"x-scope": policy.scope} if policy.scope else {})}


def policy_of(route: BaseRoute) -> Policy | None:
    """What a route declares; None when it declares nothing."""
    declared = [each.dependency for each in getattr(route, "dependencies", ())]
    declared.append(getattr(route, "policy", None))
    return next((policy for policy in declared if isinstance(policy, Public | Guard)), None)


def declare_public(route: BaseRoute) -> None:
    """For a route that is not FastAPI's, and takes no dependencies."""
    route.policy = public.dependency  # type: ignore[attr-defined]


def caller(scope: Mapping[str, Any], keyring: Keyring) -> Key | None:
    """The key of a request; None without one, with one that is not live, and with several."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1 or given[0][: len(_BEARER)].lower() != _BEARER:
        return None
    secret = given[0][len(_BEARER) :].strip(b" ")
    # Bytes all the way: a header need not be text, and a hash is as good a comparison as any.
    return keyring.find(secret) if len(secret) <= _MAX_SECRET_BYTES else None
