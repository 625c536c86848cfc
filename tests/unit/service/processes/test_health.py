"""The operations listener over real sockets."""

import socket
import threading

import httpx
import pytest
from prometheus_client import parser

from service.processes.health import OpsServer


@pytest.fixture
def missing() -> list[str]:
    return []


@pytest.fixture
def ops(missing):
    server = OpsServer("127.0.0.1", 0, lambda: missing)
    server.start()
    yield server
    server.stop()


def get(ops: OpsServer, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{ops.port}{path}", trust_env=False)


def test_a_process_lives_whatever_it_lacks(ops, missing):
    missing.append("store")

    assert get(ops, "/livez").status_code == 200


def test_readiness_names_what_is_missing_and_recovers(ops, missing):
    ready = get(ops, "/readyz?verbose")
    missing.extend(["store", "shard 1"])
    lacking = get(ops, "/readyz")
    missing.clear()
    recovered = get(ops, "/readyz")

    assert (ready.status_code, ready.json()) == (200, {"ready": True, "missing": []})
    assert (lacking.status_code, lacking.json()) == (503, {"ready": False, "missing": ["store", "shard 1"]})
    assert recovered.status_code == 200


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
    first = OpsServer("127.0.0.1", 0, list)
    first.start()
    first.stop()

    again = OpsServer("127.0.0.1", first.port, list)
    again.stop()

    assert threading.active_count() == before


def test_a_taken_port_is_an_error_at_once(ops):
    with pytest.raises(OSError, match="in use"):
        OpsServer("127.0.0.1", ops.port, list)
