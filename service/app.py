"""The HTTP application: routes, request ids, the access log, and the one place where errors become HTTP."""

import logging
import re
import secrets
import time
from collections.abc import Mapping
from importlib.metadata import version

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics, pages
from service.errors import BadRequest, NoteLLMError
from service.logs import outline
from service.recommend import Recommender
from service.routes import router
from service.schemas import explain
from service.settings import Settings

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_MAX_MESSAGE = 300  # characters; JSON needs at most 6 bytes for one, and an error is at most 2 KiB
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
}


def create_app(recommender: Recommender, settings: Settings) -> FastAPI:
    """The public API over one recommender."""
    app = FastAPI(
        title="NoteLLM",
        version=version("notellm"),
        summary="Related notes, hashtags and categories for a community of notes.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.recommender = recommender
    app.state.http = settings.http
    app.include_router(router)
    app.include_router(pages.router)
    app.add_exception_handler(NoteLLMError, _answer_our_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(Observer)
    return app


class Observer:
    """Around everything: gives each request its id, counts and logs it, turns what escaped into a 500.

    An exception must not travel further: the server would log its message, which may hold the text of a note.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Pure ASGI: nothing between the application and the socket is buffered."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        start = time.perf_counter()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log.error("request_failed", extra={"request_id": request_id} | outline(error))  # noqa: TRY400
            if not status:
                await _error(request_id, 500, "internal", "an error of ours; it is logged")(
                    scope, receive, send_with_id
                )
        finally:
            _observe(scope, status, time.perf_counter() - start, request_id)


def _observe(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    metrics.HTTP_REQUESTS.labels(route, method, status).inc()
    metrics.HTTP_SECONDS.labels(route).observe(seconds)
    log.info(
        "request",
        extra={
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 2),
            "request_id": request_id,
        },
    )


def _request_id(given: str) -> str:
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


async def _answer_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, NoteLLMError)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return _error(request.state.request_id, error.status, error.code, str(error), headers)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message = explain(error.errors())
    return _error(request.state.request_id, BadRequest.status, BadRequest.code, message)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "bad_request")
    return _error(request.state.request_id, error.status_code, code, str(error.detail), error.headers)


def _error(request_id: str, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"error": {"code": code, "message": message[:_MAX_MESSAGE], "request_id": request_id}}
    return Response(orjson.dumps(body), status, headers, "application/json")
