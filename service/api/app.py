"""The HTTP application: routes, request ids, the access log, and the one place where errors become HTTP."""

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.evaluation.online.reach import Reach
from service import metrics
from service.api import audit, pages
from service.api.auth import declare_public, policy_of
from service.api.openapi import Api
from service.api.responses import error_body
from service.api.routes import ROUTES
from service.api.same_origin import SameOrigin
from service.errors import Internal, Malformed, NoRoute, NoteLLMError, WrongMethod
from service.experiments.overview import Overview
from service.keys import Keyring
from service.logs import REQUEST_ID, outline
from service.recommend.recommender import Recommender
from service.settings import Settings
from service.store.attribution.buffer import AnswerBuffer
from service.store.experiments.watch import Watch
from service.store.interfaces import Answers

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_GZIP_FROM_BYTES, _GZIP_LEVEL = 1024, 5
_CODES = {kind.status: kind.code for kind in (Malformed, NoRoute, WrongMethod)}


def create_app(
    recommender: Callable[[str | None], Recommender],
    answers: Answers,
    settings: Settings,
    keys: Keyring | None = None,
    *,
    warnings: Callable[[], list[str]] = list,
    buffer: AnswerBuffer | None = None,
    reach: Callable[[], Reach | None] = lambda: None,
    watch: Callable[[], Watch | None] = lambda: None,
    overview: Overview | None = None,
) -> FastAPI:
    """The public API, for callers with a key if there are ``keys``. ``answers`` are those of idempotent writes.

    ``warnings`` says in `/status` what is wrong although the service answers, ``reach`` how far its lists reach,
    ``watch`` what became of the model that was activated last. ``overview`` has the experiments and turns of learning.
    ``buffer`` takes what is answered, for reports.
    Every request calls ``recommender`` once, with its reader if it has one: its answer is that of one model, the active
    one or that of the reader's arm. Of a batch, every request does.
    """
    app = api()
    app.state.recommender = recommender
    app.state.answers = answers
    app.state.http = settings.http
    app.state.keys = keys
    app.state.warnings = warnings
    app.state.reach = reach
    app.state.watch = watch
    app.state.overview = overview or Overview()
    app.state.buffer = buffer or AnswerBuffer()
    app.state.same_origin = SameOrigin(settings.http.host, settings.http.hosts, settings.http.cors_origins)
    app.add_exception_handler(NoteLLMError, _answer_our_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(GZipMiddleware, minimum_size=_GZIP_FROM_BYTES, compresslevel=_GZIP_LEVEL)
    app.state.refusals = audit.Refusals()
    app.add_middleware(Observer, refusals=app.state.refusals)
    for route in app.routes:
        if getattr(route, "path", None) == app.openapi_url:
            declare_public(route)
    assert all(map(policy_of, app.routes)), "a route without a policy"
    return app


def api() -> Api:
    """The routes without a service behind them, as the OpenAPI document needs them."""
    app = Api(
        title="NoteLLM",
        version=version("notellm"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # As they are, and not by `include_router`, which makes each of them anew and, since 0.137, out of our sight.
    app.router.routes += [*ROUTES, *pages.router.routes]
    return app


class Observer:
    """The outermost middleware: gives each request its id, counts and logs it, answers an unexpected error with 500.

    The exception must not reach the server, which would log its message, and that may hold the text of a note.
    """

    def __init__(self, app: ASGIApp, refusals: audit.Refusals) -> None:
        """Pure ASGI: nothing between the application and the socket is buffered."""
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        REQUEST_ID.set(request_id)  # a request has a task, and so a context, of its own
        is_head = scope["method"] == "HEAD"
        if is_head:  # every GET route answers HEAD
            scope = {**scope, "method": "GET"}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        start = time.perf_counter()
        try:
            await (self._app if _names_host(scope) else _no_host(request_id))(scope, receive, send_with_id)
        except Exception as error:
            log.error("request_failed", extra={"request_id": request_id} | outline(error))  # noqa: TRY400
            _log_failure(scope, Internal.code)
            if not status:
                internal = _error(request_id, Internal.status, Internal.code, "an error of ours; it is logged")
                await internal(scope, receive, send_with_id)
        finally:
            _observe(scope, status, time.perf_counter() - start, request_id, self._refusals)


def _log_failure(scope: Scope, code: str) -> None:
    if answering := scope["state"].get("answering"):
        answering.log_failure(code)


def _names_host(scope: Scope) -> bool:
    """Whether a request names its host once, as RFC 9112, section 3.2, has it."""
    hosts = sum(name == b"host" for name, _ in scope["headers"])
    return hosts == 1 or bool(hosts == 0 and scope["http_version"] == "1.0")


def _no_host(request_id: str) -> Response:
    message = "a request names its host once"
    return _error(request_id, Malformed.status, Malformed.code, message, Malformed.headers)


def _observe(scope: Scope, status: int, seconds: float, request_id: str, refusals: audit.Refusals) -> None:
    route = getattr(scope.get("route"), "path_format", "unmatched")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    metrics.HTTP_REQUESTS.labels(route, method, status).inc()
    metrics.HTTP_SECONDS.labels(route).observe(seconds)
    audited = audit.concerns(scope, status)
    if 400 <= status < 500:  # with a 5xx, the write may have happened
        refusal = audit.Refusal(method, route, audit.key_id(scope), status)
        if not refusals.has_line(refusal, audited=audited):
            return
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
    if audited:
        audit.record(scope, method, route, status)


def request_id_of(scope: Scope) -> str:
    """The caller's id of a request, if it is one, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


async def _answer_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, NoteLLMError)
    if error.status >= Internal.status:
        _log_failure(request.scope, error.code)
    retry = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return _error(request.state.request_id, error.status, error.code, str(error), {**error.headers, **retry})


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, Malformed.code)
    headers = {"Allow": _allowed(request)} if error.status_code == WrongMethod.status else error.headers
    return _error(request.state.request_id, error.status_code, code, str(error.detail), headers)


def _allowed(request: Request) -> str:
    """The methods of all routes at this path; the router itself names those of the first alone."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _error(request_id: str, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(error_body(code, message, request_id), status, headers, "application/json")
