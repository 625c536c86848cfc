"""Cross-origin requests (CORS): which pages of other origins may call the API, and read what it answers.

It stands before admission, so that refusals carry its headers, too, and a preflight takes no permit.
"""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.app import request_id_of

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_TAKEN = ("Authorization", "Content-Type", "If-Match", "Idempotency-Key", "X-Answer-ID", "X-Reader-ID")
_EXPOSED = ("ETag", "X-Request-ID", "Retry-After")


class Cors(CORSMiddleware):
    """An application that pages of these ``origins`` may call; ``*`` is every one. Without credentials of a browser."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(app, origins, _METHODS, _TAKEN, expose_headers=_EXPOSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight of a listed origin; all else, other preflights too, are requests like any other."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._is_preflight(scope, headers):
            await self._preflight(scope, headers)(scope, receive, send)
        else:
            await self.simple_response(scope, receive, send, request_headers=headers)

    def answer_headers(self, origin: str) -> dict[str, str]:
        """What an answer that no application sees has to carry for a page of this origin to read it."""
        if not self.is_allowed_origin(origin):
            return {}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"} | self.simple_headers

    def _is_preflight(self, scope: Scope, headers: Headers) -> bool:
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return asks and "origin" in headers and self.is_allowed_origin(headers["origin"])

    def _preflight(self, scope: Scope, headers: Headers) -> Response:
        """The lists: a browser itself holds its page to them."""
        named = {"Access-Control-Allow-Origin": headers["origin"], "X-Request-ID": request_id_of(scope)}
        return Response(status_code=204, headers=named | self.preflight_headers)
