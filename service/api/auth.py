"""Authorization: the key that a request carries, and the policy of each route, which no route can be made without::

    router = APIRouter(route_class=GuardedRoute)

    @router.get("/notes/{note_id}", dependencies=[needs("read")])

A policy belongs to the route that matched, never to a path.
"""

from collections.abc import Callable, MutableMapping
from typing import Any, Literal, get_args, get_type_hints

from fastapi import Request, params
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import TypeAdapter, ValidationError
from starlette.routing import BaseRoute
from starlette.types import Receive, Send

from service.api.validation import explain
from service.errors import BadRequest, Forbidden, Unauthorized
from service.keys import Key, Keyring, Scope

Kind = Literal["related", "reads", "writes", "bulk", "tags", "public"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_KINDS: dict[Scope, Kind] = {"read": "reads", "write": "writes", "tags": "tags", "admin": "writes"}
_MAX_SECRET_BYTES = 256
_BEARER = b"bearer "


class Public:
    """The policy of a route that is open to everybody."""

    scope: Scope | None = None
    kind: Kind = "public"

    async def __call__(self, request: Request) -> None:
        """Let everybody in."""


class Guard(HTTPBearer):
    """The policy of a route that needs a key with one scope. While there is no keys file, everybody is let in but pages
    of other sites.

    ``kind`` is the kind of permit that the route's requests take in `service.server.admission`.
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
        """Raises Unauthorized without a live key, Forbidden without the scope, and what `SameOrigin` does."""
        keyring: Keyring | None = request.app.state.keys
        if keyring is None:
            request.app.state.same_origin.check(request.method, request.headers)
            return
        key = caller(request.scope, keyring)
        if key is None:
            raise Unauthorized("this needs a live key: Authorization: Bearer <key>")
        if not key.allows(self.scope):
            raise Forbidden(f"the key does not have the scope {self.scope}")


Policy = Public | Guard
public = params.Depends(Public())


def needs(scope: Scope, kind: Kind | None = None) -> params.Security:
    """The policy of a route that needs a key with this scope; ``kind`` follows from the scope unless it is given."""
    return params.Security(Guard(scope, kind or _KINDS[scope]), scopes=[scope])


class GuardedRoute(APIRoute):
    """A route that cannot be made without a policy, enforces it first, and says so in the OpenAPI document.

    FastAPI matches and describes it. Its endpoint takes the request and the parameters of its path, and is called with
    them here: resolving them as dependencies would take longer than all other work of a fast read.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        match [each.dependency for each in self.dependencies]:
            case [Public() | Guard() as policy]:
                self.policy: Policy = policy
            case _:
                raise TypeError(f"{path} needs one dependency, its policy: dependencies=[needs(...)] or [public]")
        hints = get_type_hints(endpoint, include_extras=True)
        self._parameters = {name: TypeAdapter[Any](hints[name]) for name in self.param_convertors}
        self.openapi_extra = {**(self.openapi_extra or {}), **({"x-scope": policy.scope} if policy.scope else {})}
        self.app = self._run

    async def _run(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        await self.policy(request)
        parameters = {name: self._parameter(name, text) for name, text in scope["path_params"].items()}
        response = await self.endpoint(request=request, **parameters)
        await response(scope, receive, send)

    def _parameter(self, name: str, text: object) -> Any:
        try:
            return self._parameters[name].validate_python(text)
        except ValidationError as error:
            raise BadRequest(explain(error, "path", name)) from None


def policy_of(route: BaseRoute) -> Policy | None:
    """A route's policy; None when it has none."""
    return getattr(route, "policy", None)


def declare_public(route: BaseRoute) -> None:
    """For a route of Starlette, which takes no dependencies."""
    route.policy = public.dependency  # type: ignore[attr-defined]


def caller(scope: MutableMapping[str, Any], keyring: Keyring) -> Key | None:
    """The key of a request; None without one, with one that is not live, and with several. Looked up once."""
    state = scope.setdefault("state", {})
    if "key" not in state:
        state["key"] = _key([value for name, value in scope["headers"] if name == b"authorization"], keyring)
    key: Key | None = state["key"]
    return key


def _key(authorization: list[bytes], keyring: Keyring) -> Key | None:
    if len(authorization) != 1 or authorization[0][: len(_BEARER)].lower() != _BEARER:
        return None
    secret = authorization[0][len(_BEARER) :].strip(b" ")
    # Never decoded: a header need not be text. The keyring compares hashes.
    return keyring.find(secret) if len(secret) <= _MAX_SECRET_BYTES else None
