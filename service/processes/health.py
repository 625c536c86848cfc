"""The operations listener: /livez, /readyz, /metrics, in its own thread so that it answers under overload."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.processes.ports import address_of, binding
from service.setting_groups import OpsSettings
from service.settings import SetupError, reason_of

JSON: Final = "application/json"
_POLL_S = 0.1  # how long `stop` may have to wait
_ASK_S = 1.0
NO_WORKER: Final = "a worker"  # how the name of what a gateway lacks begins, where it lacks no more than a model


class Readiness:
    """What a process still lacks, and what is wrong although it is ready, as /readyz says it.

    Both lists are replaced as a whole, so any thread may ask.
    """

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.warnings: list[str] = []
        self._leaving = False

    @property
    def missing(self) -> list[str]:
        """The names now; an empty list means ready."""
        return ["draining"] if self._leaving else self.names

    def leave(self) -> None:
        """Not ready from now on, whatever is there."""
        self._leaving = True


class OpsServer:
    """Serves one process's health and metrics."""

    def __init__(self, host: str, port: int, readiness: Readiness) -> None:
        """Bind, so that a taken port raises OSError here. Port 0 takes a free one."""
        self._server = _Server(host, port)
        self._server.readiness = readiness
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="ops", daemon=True)

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self._server.server_port

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


@contextmanager
def operations(ops: OpsSettings, readiness: Readiness) -> Iterator[None]:
    """Serve during the block. Raises SetupError when the port cannot be bound."""
    with binding(ops.host, ops.port, "NOTELLM_OPS__PORT"):
        server = OpsServer(ops.host, ops.port, readiness)
    server.start()
    try:
        if ops.port_file:
            _write_port(ops.port_file, server.port)
        yield
    finally:
        server.stop()


def _write_port(file: Path, port: int) -> None:
    try:
        file.write_text(str(port))
    except OSError as error:
        raise SetupError(f"NOTELLM_OPS__PORT_FILE cannot be written: {reason_of(error)}") from error


def readiness_at(host: str, port: int, name: str) -> Readiness:
    """What /readyz of a process says; that ``name`` is missing when it does not answer."""
    found = Readiness(name)
    with closing(http.client.HTTPConnection(host, port, timeout=_ASK_S)) as connection:
        try:
            connection.request("GET", "/readyz")
            said = json.load(connection.getresponse())
        except (OSError, http.client.HTTPException):
            return found
    found.names, found.warnings = list(said["missing"]), list(said["warnings"])
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    readiness: Readiness

    def __init__(self, host: str, port: int) -> None:
        self.address_family, address = address_of(host, port)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # A gateway that is started again must not wait until the system forgets its old connections.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # HTTPServer.server_bind asks DNS for the host's name, which can take seconds.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A prober that hangs up is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout: ClassVar[float] = 5.0

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/livez":
                self._answer(HTTPStatus.OK, JSON, b'{"alive":true}')
            case "/readyz":
                self._answer_ready(self.server.readiness.missing, self.server.readiness.warnings)
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, JSON, b'{"paths":["/livez","/readyz","/metrics"]}')

    do_HEAD = do_GET

    def _answer_ready(self, missing: list[str], warnings: list[str]) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK
        body = {"ready": not missing, "missing": missing, "warnings": warnings}
        self._answer(status, JSON, json.dumps(body).encode())

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes come every few seconds; they are not logged."""
