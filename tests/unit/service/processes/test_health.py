"""The operations listener over real sockets."""

import socket
import threading

import httpx
import pytest
from prometheus_client import parser

from service.processes.health import OpsServer, Readiness, operations, readiness_at
from service.setting_groups import OpsSettings
from service.settings import SetupError


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def ops(readiness):
    server = OpsServer("127.0.0.1", 0, readiness)
    server.start()
    yield server
    server.stop()


def test_it_answers_on_ipv6_as_well():
    server = OpsServer("::1", 0, Readiness())
    server.start()
    try:
        assert httpx.get(f"http://[::1]:{server.port}/livez", trust_env=False).json() == {"alive": True}
        assert readiness_at("::1", server.port, "it").missing == []
    finally:
        server.stop()


def test_a_file_for_the_port_that_cannot_be_written_is_one_line(tmp_path):
    ops = OpsSettings(port=0, port_file=tmp_path / "gone" / "port")

    with pytest.raises(SetupError, match=r"NOTELLM_OPS__PORT_FILE cannot be written: .*/gone/port: No such file"):
        operations(ops, Readiness()).__enter__()
    assert "ops" not in {thread.name for thread in threading.enumerate()}


def get(ops: OpsServer, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{ops.port}{path}", trust_env=False)


def test_a_process_lives_whatever_it_lacks(ops, readiness):
    readiness.names = ["store"]

    assert get(ops, "/livez").status_code == 200


def test_readiness_names_what_is_missing_and_recovers(ops, readiness):
    ready = get(ops, "/readyz?verbose")
    readiness.names = ["store", "shard 1"]
    lacking = get(ops, "/readyz")
    readiness.names = []
    recovered = get(ops, "/readyz")

    assert (ready.status_code, ready.json()) == (200, {"ready": True, "missing": [], "warnings": []})
    assert (lacking.status_code, lacking.json()) == (
        503,
        {"ready": False, "missing": ["store", "shard 1"], "warnings": []},
    )
    assert recovered.status_code == 200


def test_a_process_that_is_warned_is_ready_and_says_what_is_wrong(ops, readiness):
    readiness.warnings = ["it may lose notes"]
    answer = get(ops, "/readyz")
    asked = readiness_at("127.0.0.1", ops.port, "the gateway")

    assert (answer.status_code, answer.json()["warnings"]) == (200, ["it may lose notes"])
    assert (asked.missing, asked.warnings) == ([], ["it may lose notes"])


def test_metrics_are_in_the_format_of_prometheus(ops):
    response = get(ops, "/metrics")

    families = {family.name for family in parser.text_string_to_metric_families(response.text)}
    assert response.headers["content-type"].startswith("text/plain")
    assert "process_cpu_seconds" in families


def test_other_paths_and_methods_are_refused(ops):
    assert get(ops, "/").status_code == 404
    assert get(ops, "/livez/x").status_code == 404
    assert httpx.post(f"http://127.0.0.1:{ops.port}/livez", trust_env=False).status_code == 501


def test_head_has_the_status_without_the_body(ops):
    response = httpx.head(f"http://127.0.0.1:{ops.port}/readyz", trust_env=False)

    assert (response.status_code, response.content) == (200, b"")


def test_silent_sockets_do_not_hold_up_the_others(ops):
    silent = [socket.create_connection(("127.0.0.1", ops.port)) for _ in range(60)]
    try:
        assert get(ops, "/livez").status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_garbage_and_broken_connections_are_no_event(ops, capfd):
    with socket.create_connection(("127.0.0.1", ops.port)) as connection:
        connection.sendall(b"\x00\xff garbage\r\n\r\n")
        assert b"400" in connection.recv(1000)
    with socket.create_connection(("127.0.0.1", ops.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")

    assert get(ops, "/livez").status_code == 200
    assert capfd.readouterr().err == ""


def test_stopping_frees_the_port_and_ends_the_thread():
    before = threading.active_count()
    first = OpsServer("127.0.0.1", 0, Readiness())
    first.start()
    first.stop()

    again = OpsServer("127.0.0.1", first.port, Readiness())
    again.stop()

    assert threading.active_count() == before


def test_a_taken_port_is_an_error_at_once(ops):
    with pytest.raises(OSError, match="in use"):
        OpsServer("127.0.0.1", ops.port, Readiness())
