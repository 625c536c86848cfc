"""Authorisation: which key a request carries, and what each route asks for.

A route declares its policy where it is declared, and cannot be made without one::

    router = APIRouter(route_class=GuardedRoute)

    @router.get("/notes/{note_id}", dependencies=[needs("read")])

What is asked for belongs to the route that matched, never to a path.
"""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Literal, get_args, get_type_hints

from fastapi import Request, params
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import TypeAdapter, ValidationError
from starlette.routing import BaseRoute
from starlette.types import Receive, Send

from service.errors import BadRequest, Forbidden, Unauthorized
from service.keys import Key, Keyring, Scope
from service.schemas import explain

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

    ``kind`` says which of the permits of `service.limits` the route's requests take.
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


class GuardedRoute(APIRoute):
    """A route that cannot be made without a policy, asks it before anything else, and says so in the OpenAPI.

    FastAPI routes and describes it. Its endpoint takes the request and the parameters of its path, and is called with
    them here: for a fast read, resolving them as dependencies would take longer than all of its own work.
    """

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
        if not all(isinstance(each.dependency, Policy) for each in self.dependencies):
            raise TypeError(f"{path} has other dependencies than policies, which nobody would resolve")
        self.policy = policy
        hints = get_type_hints(endpoint, include_extras=True)
        self._parameters = {name: TypeAdapter[Any](hints[name]) for name in self.param_convertors}
        self.openapi_extra = {**(self.openapi_extra or {}), **({"x-scope": policy.scope} if policy.scope else {})}
        self.app = self._run

    async def _run(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        await self.policy(request)
        given = {name: self._parameter(name, text) for name, text in scope["path_params"].items()}
        response = await self.endpoint(request=request, **given)
        await response(scope, receive, send)

    def _parameter(self, name: str, text: object) -> Any:
        try:
            return self._parameters[name].validate_python(text)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            raise BadRequest(explain([{**problem, "loc": ("path", name)} for problem in problems])) from None


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
