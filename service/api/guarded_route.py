"""A route that cannot be made without a policy. See `service.api.auth`."""

from collections.abc import Callable, MutableMapping
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Send

from service.api.auth import Policy, policy_of
from service.api.bodies import explain
from service.errors import BadRequest


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
