"""Three gateway processes on one port, inside a real `notellm serve`."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.service import NOTELLM, PATIENCE_S, Service, running, until

WORKERS = 3


class Gateways(Service):
    """A service with several gateway processes, and what their common listener says."""

    def processes(self) -> set[int]:
        """The gateways themselves, without the process that watches them."""
        watcher = self.children()["gateway"]
        return set(map(int, Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()))

    def metric(self, name: str) -> float:
        """The sum over all series of that name."""
        port = (self.state / "run" / "gateway.ops").read_text()
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{.*\}})? ", line))

    def listeners(self) -> int:
        """Processes of ours that hold a connection of the public port."""
        return sum(holds_connection_of(process, int(self.api.rpartition(":")[2])) for process in self.processes())


def holds_connection_of(process: int, port: int) -> bool:
    """Whether one of its sockets is an established connection of that local port, as the kernel lists them."""
    table = Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in table]
    wanted = {f"socket:[{field[9]}]" for field in fields if field[1].endswith(f":{port:04X}") and field[3] == "01"}
    links = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()}  # noqa: PTH115
    return bool(wanted & links)


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("gateways")
    tiny_checkpoint(folder / "checkpoint")
    service = Gateways(folder, folder / "checkpoint")
    service.environment["NOTELLM_HTTP__WORKERS"] = str(WORKERS)
    with running(service):
        yield service


def test_connections_are_dealt_out_to_all_processes_and_their_counters_are_summed(gateways):
    counted = gateways.metric("notellm_http_requests_total")
    clients = [httpx.Client(base_url=gateways.api) for _ in range(64)]
    try:
        assert all(client.get("/status").status_code == 200 for client in clients)
        assert gateways.listeners() == WORKERS
        until(lambda: gateways.metric("notellm_http_connections") == len(clients))
    finally:
        for client in clients:
            client.close()
    assert gateways.metric("notellm_http_requests_total") == counted + len(clients)


def test_what_one_gateway_wrote_another_answers_at_once(gateways):
    with httpx.Client(base_url=gateways.api) as writer:
        writer.put("/notes/n1", json={"title": "Three days in Kyoto"}, params={"wait": 10}).raise_for_status()
        for number in range(20):
            writer.put("/notes/n1", json={"title": f"Day {number} in Kyoto"}).raise_for_status()
            with httpx.Client(base_url=gateways.api) as reader:  # a new connection, so mostly another process
                assert reader.get("/notes/n1").json()["title"] == f"Day {number} in Kyoto"


def test_a_killed_gateway_is_started_again_while_the_others_answer(gateways):
    counted = gateways.metric("notellm_http_requests_total")
    before = gateways.processes()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(gateways.processes() - {victim}) == WORKERS)
    until(gateways.ready)

    assert len(gateways.processes() & before) == WORKERS - 1
    assert gateways.metric("notellm_http_requests_total") >= counted
    until(lambda: gateways.metric("notellm_http_connections") == 0)  # those of the dead one are not counted on
    with httpx.Client(base_url=gateways.api) as client:
        assert client.get("/notes/n1").status_code == 200


def refused(gateways: Gateways, **settings: str) -> str:
    """What two gateways with these settings say before they end with the status of a mistake."""
    ended = subprocess.run(
        [*NOTELLM, "gateway", "--workers", "2"],
        env=gateways.environment | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_port_that_another_service_has_is_refused_with_its_setting(gateways):
    port = gateways.api.rpartition(":")[2]

    said = refused(gateways, NOTELLM_HTTP__PORT=port, NOTELLM_REDIS_URL="redis://127.0.0.1:1")

    assert "NOTELLM_HTTP__PORT" in said


def test_a_gateway_that_cannot_run_as_set_up_ends_them_all_and_says_why(gateways):
    assert "NOTELLM_REDIS_URL is not a" in refused(gateways, NOTELLM_REDIS_URL="http://no.redis")


def test_on_sigterm_a_write_that_waits_is_answered_and_no_process_stays(gateways):
    processes = gateways.processes()
    body = b'{"title": "Written in the last moment"}'
    head = b"PUT /notes/last HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    host, port = gateways.api.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as late:
        late.sendall(head + body[:5])
        until(lambda: gateways.metric("notellm_http_connections") >= 1)
        leaving = threading.Thread(target=gateways.stop)
        leaving.start()
        late.sendall(body[5:])
        assert late.recv(65536).startswith(b"HTTP/1.1 2")
        leaving.join()
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
