"""Traces by OpenTelemetry: one request through gateway, Redis, worker and shards. Off by default.

OpenTelemetry's own variables set them up, in each process:

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318    turns them on; OTLP over HTTP
    OTEL_TRACES_SAMPLER=parentbased_traceidratio OTEL_TRACES_SAMPLER_ARG=0.01    of every hundred requests one

and need the extra ``traces``. Without the first, nothing of OpenTelemetry is imported and requests do not pass through
this module. A span holds the route's template, the status and the request's id, and no text of a note.

A frame to a shard may carry searches of several requests; it belongs to the trace of the first.
"""

import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from indexer.rpc import trace
from service.setting_groups import is_loopback
from service.settings import SetupError

if TYPE_CHECKING:  # workers and indexers have no starlette
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PARENT = b"traceparent"

_tracer: Any = None


def configure(process: str) -> None:
    """Record traces of this process, if the environment names a collector.

    Raises:
        SetupError: if it does and the extra ``traces`` is not installed.
    """
    global _tracer
    named = [name for name in _ENDPOINTS if os.environ.get(name)]
    if not named:
        return
    try:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SetupError(f"{named[0]} is set, but traces need more packages: pip install 'notellm[traces]'") from error
    version = importlib.metadata.version("notellm")
    provider = TracerProvider(
        resource=Resource.create({"service.name": f"notellm-{process}", "service.version": version})
    )
    session = requests.Session()
    # A proxy of the environment would look for a collector on this machine on its own.
    session.trust_env = not is_loopback(urlsplit(os.environ[named[-1]]).hostname or "")
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=session)))
    _tracer = provider.get_tracer("notellm", version)
    trace.around = _span


def around(app: "ASGIApp") -> "ASGIApp":
    """The application with a span around each request; the application itself when traces are off."""
    return Traced(app) if _tracer else app


class Traced:
    """A span for each request, in the caller's trace if it names one. Pure ASGI."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def watch(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == _PARENT), None)
        with _span("request", parent) as span:
            try:
                await self._app(scope, receive, watch)
            finally:
                _describe(span, scope, status)


@contextmanager
def following(name: str, parents: Iterable[str | None]) -> Iterator[None]:
    """A span in each of these traces, for work that is done for all of them at once."""
    if _tracer is None:
        yield
        return
    with ExitStack() as spans:
        for parent in dict.fromkeys(filter(None, parents)):
            spans.enter_context(_span(name, parent, "CONSUMER"))
        yield


@contextmanager
def _span(name: str, parent: str | None, kind: str = "SERVER") -> Iterator[Any]:
    """A span that is current during the block: calls and jobs made inside carry its traceparent."""
    from opentelemetry.trace import SpanKind, use_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    form = TraceContextTextMapPropagator()
    context = form.extract({_PARENT.decode(): parent} if parent else {})
    span = _tracer.start_span(name, context, SpanKind[kind])
    carrier: dict[str, str] = {}
    # An exception's message may quote a note: none is recorded.
    with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        form.inject(carrier)
        token = trace.TRACEPARENT.set(carrier.get(_PARENT.decode()) if span.is_recording() else None)
        try:
            yield span
        finally:
            trace.TRACEPARENT.reset(token)


def _describe(span: Any, scope: Mapping[str, Any], status: int) -> None:
    from opentelemetry.trace import StatusCode

    route = getattr(scope.get("route"), "path", "unmatched")
    span.update_name(f"{scope['method']} {route}")
    span.set_attribute("http.request.method", scope["method"])
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("notellm.request_id", scope.get("state", {}).get("request_id", ""))
    if status >= 500:
        span.set_status(StatusCode.ERROR)
