"""One trace across gateway, Redis, worker and shards, as a real collector receives it over HTTP."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from support.service import Service, running, until

from service.settings import MINI

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TEXT = "a walk that nobody reads of"


class Collector:
    """Receives OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.bytes = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.receive(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def receive(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        self.bytes += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.spans += [(names["service.name"], span) for scope in resource.scope_spans for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, trace: str) -> dict[tuple[str, str], Span]:
        """Spans of one trace by process and name."""
        return {(process, span.name): span for process, span in self.spans if span.trace_id.hex() == trace}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("traced"), MINI)
    service.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    # Nobody is there: a collector on this machine is asked directly.
    service.environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    with running(service):
        yield service


def ask(service: Service, method: str, path: str, flags: str = "01", trace: str = TRACE, **options: object):
    headers = {"traceparent": f"00-{trace}-{CALLER}-{flags}", "X-Request-ID": "ours"}
    return httpx.request(method, f"{service.api}{path}", headers=headers, timeout=30, trust_env=False, **options)


def attributes(span: Span) -> dict[str, object]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_write_and_a_read_of_one_trace_are_one_trace_through_every_process(service: Service, collector: Collector):
    note = {"title": TEXT, "content": TEXT, "hashtags": ["secretive"]}
    for note_id in ("n1", "n2", "n3"):
        assert ask(service, "PUT", f"/notes/{note_id}?wait=10", json=note | {"author": note_id}).status_code == 200
    assert ask(service, "GET", "/notes/n1/related").status_code == 200
    wanted = {
        ("notellm-gateway", "PUT /notes/{note_id}"),
        ("notellm-gateway", "GET /notes/{note_id}/related"),
        ("notellm-worker", "read"),
        ("notellm-indexer", "lookup"),
        ("notellm-indexer", "search"),
    }
    until(lambda: wanted <= collector.of(TRACE).keys())

    found = collector.of(TRACE)
    written, read = found["notellm-gateway", "PUT /notes/{note_id}"], found["notellm-worker", "read"]
    asked, search = found["notellm-gateway", "GET /notes/{note_id}/related"], found["notellm-indexer", "search"]
    gateways = {span.span_id for process, span in collector.spans if process == "notellm-gateway"}
    assert written.parent_span_id.hex() == asked.parent_span_id.hex() == CALLER
    assert read.parent_span_id in gateways
    assert search.parent_span_id == asked.span_id
    assert asked.start_time_unix_nano <= search.start_time_unix_nano <= search.end_time_unix_nano
    assert attributes(asked) == {
        "http.request.method": "GET",
        "http.route": "/notes/{note_id}/related",
        "http.response.status_code": 200,
        "notellm.request_id": "ours",
    }


def test_a_draft_is_read_in_the_trace_of_its_request(service: Service, collector: Collector):
    own = "a" * 32
    assert ask(service, "POST", "/notes/tags", trace=own, json={"title": TEXT}).status_code == 200
    wanted = {("notellm-worker", "draft"), ("notellm-gateway", "POST /notes/tags")}
    until(lambda: wanted <= collector.of(own).keys())

    asked = collector.of(own)["notellm-gateway", "POST /notes/tags"]
    assert collector.of(own)["notellm-worker", "draft"].parent_span_id == asked.span_id


def test_a_failure_is_marked(service: Service, collector: Collector):
    own = "b" * 32
    ask(service, "GET", "/notes/nobody", trace=own)
    until(lambda: ("notellm-gateway", "GET /notes/{note_id}") in collector.of(own))

    span = collector.of(own)["notellm-gateway", "GET /notes/{note_id}"]
    assert attributes(span)["http.response.status_code"] == 404
    assert span.status.code == 0  # a mistake of the client's is no failure of ours


def test_a_caller_who_samples_nothing_leaves_no_trace(service: Service, collector: Collector):
    own, last = "c" * 32, "d" * 32
    assert ask(service, "GET", "/notes/n1/related", flags="00", trace=own).status_code == 200
    ask(service, "GET", "/notes/n1/related", trace=last)
    until(lambda: ("notellm-indexer", "search") in collector.of(last))

    assert collector.of(own) == {}


def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(service: Service, collector: Collector):
    own = "z" * 32
    assert ask(service, "GET", "/notes/n1/related", trace=own).status_code == 200


def test_no_text_of_a_note_is_in_any_span(collector: Collector):
    assert collector.spans
    assert TEXT.encode() not in collector.bytes
    assert b"secretive" not in collector.bytes


def test_without_a_collector_nothing_of_opentelemetry_is_imported():
    """Zero cost: not even an import, and the application is not wrapped."""
    code = (
        "import sys; from service import traces; traces.configure('gateway'); app = object(); "
        "assert traces.around(app) is app; assert not any('opentelemetry' in name for name in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}

    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_collector_that_goes_away_harms_nobody(service: Service, collector: Collector):
    collector.close()

    assert ask(service, "PUT", "/notes/n9?wait=10", json={"title": TEXT}).status_code == 200
    assert service.stop() == 0
