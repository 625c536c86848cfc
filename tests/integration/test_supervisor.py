"""`notellm serve`: first with stand-ins for its children, then with the real ones around a tiny model."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.service import NOTELLM, PATIENCE_S, Service, running, until

from service.client import Refused
from service.processes.children import Child, Role, Supervisor, rotate
from service.processes.local_redis import redis_binary
from service.processes.state import free_port, lock_state
from service.settings import SetupError


@pytest.fixture
def signals() -> Iterator[None]:
    """A supervisor in this process leaves no handlers behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def stand_in(name: str, journal: Path, rank: int, body: str = "") -> Role:
    """A child that writes its start, and its end by SIGTERM, into a journal."""
    script = (
        "import os, signal, sys, time\n"
        f"def say(what): os.write(journal, f'{name} {{what}}\\n'.encode())\n"
        f"journal = os.open({str(journal)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "def end(*_):\n    say('stopped')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "say('started')\n"
        f"{body}\n"
        "while True: time.sleep(0.05)\n"
    )
    return Role(name, [sys.executable, "-S", "-c", script], rank)


def supervise(
    journal: Path, roles: list[Role], ready: Callable[[], bool], grace_s: float = 28.0
) -> tuple[int, list[str]]:
    """Run until ``ready``, then stop by SIGTERM; the exit status and the journal."""
    with lock_state(journal.parent / "state") as lock:
        supervisor = Supervisor([Child(role, lock) for role in roles], grace_s)
        status = supervisor.run(ready, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return status, journal.read_text().splitlines()


def says(journal: Path, *lines: str) -> Callable[[], bool]:
    return lambda: journal.exists() and set(lines) <= set(journal.read_text().splitlines())


@pytest.mark.usefixtures("signals")
def test_children_are_stopped_by_falling_rank(tmp_path):
    journal = tmp_path / "journal"
    roles = [stand_in(name, journal, rank) for rank, name in enumerate(["redis", "indexer", "worker", "gateway"])]
    started = [f"{role.name} started" for role in roles]

    status, lines = supervise(journal, roles, says(journal, *started))

    assert status == 0
    assert lines[4:] == ["gateway stopped", "worker stopped", "indexer stopped", "redis stopped"]


@pytest.mark.usefixtures("signals")
def test_why_a_child_cannot_run_is_said_from_its_log_before_everything_stops(tmp_path, capfd):
    role = stand_in("wrong", tmp_path / "journal", 0, body="print('notellm: no such thing'); sys.exit(2)")
    status, _ = supervise(tmp_path / "journal", [replace(role, log=tmp_path / "wrong.log")], lambda: False)

    assert status == 2
    assert capfd.readouterr().err == "notellm: no such thing\n"


@pytest.mark.usefixtures("signals")
def test_why_redis_cannot_start_is_said_from_its_log(tmp_path, capfd):
    (tmp_path / "redis.log").write_text("7:M 29 Nov 2026 12:00:00.000 # Bad file format reading the append only file\n")
    journal = tmp_path / "journal"
    role = stand_in("redis", journal, 0, body="sys.exit(1)")
    role = replace(role, log=tmp_path / "redis.log", explains=True)
    supervise(journal, [role], lambda: journal.exists() and journal.read_text().count("started") == 2)
    said = capfd.readouterr().err
    assert "redis ended (exit status 1: Bad file format reading the append only file); starting it again" in said


def test_a_long_log_is_rotated_and_its_writer_goes_on(tmp_path):
    log = tmp_path / "gateway.log"
    with log.open("ab", buffering=0) as writer:
        for text in (b"first\n" * 20, b"second\n" * 20, b"third\n"):
            writer.write(text)
            rotate(log, 100)
    assert log.read_bytes() == b"third\n"
    assert (tmp_path / "gateway.log.1").read_bytes() == b"second\n" * 20


@pytest.mark.usefixtures("signals")
def test_a_child_that_dies_is_started_again(tmp_path):
    journal = tmp_path / "journal"
    roles = [
        stand_in("mortal", journal, 1, body="time.sleep(0.05); os._exit(1)"),
        stand_in("steady", journal, 0),
    ]

    def ready() -> bool:
        return journal.exists() and journal.read_text().count("mortal started") == 3

    status, lines = supervise(journal, roles, ready)

    assert status == 0
    assert lines.count("steady started") == 1


@pytest.mark.usefixtures("signals")
def test_a_child_that_cannot_run_as_set_up_ends_everything_with_its_status(tmp_path):
    journal = tmp_path / "journal"
    wrong = stand_in("wrong", journal, 1, body="time.sleep(0.2); sys.exit(2)")

    status, lines = supervise(journal, [stand_in("steady", journal, 0), wrong], lambda: False)

    assert status == 2
    assert "steady stopped" in lines


@pytest.mark.usefixtures("signals")
def test_a_child_that_does_not_stop_is_killed(tmp_path):
    journal = tmp_path / "journal"
    deaf = stand_in("deaf", journal, 1, body="signal.signal(signal.SIGTERM, signal.SIG_IGN); say('deaf')")

    status, _ = supervise(journal, [deaf], says(journal, "deaf deaf"), grace_s=0.2)

    assert status == 0


def test_a_state_folder_in_use_is_refused_at_once_and_free_afterwards(tmp_path):
    with (
        lock_state(tmp_path / "state"),
        pytest.raises(SetupError, match=f"process {os.getpid()}"),
        lock_state(tmp_path / "state"),
    ):
        pass
    with lock_state(tmp_path / "state"):
        pass


def test_a_port_in_use_is_one_line_that_names_the_setting():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match="NOTELLM_HTTP__PORT"):
            free_port("127.0.0.1", port, "NOTELLM_HTTP__PORT")
    assert free_port("127.0.0.1", port, "NOTELLM_HTTP__PORT") == port


def test_without_redis_on_the_path_the_bundled_one_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = redis_binary()

    answer = subprocess.run([bundled, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("Redis server")


def test_without_any_redis_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(SetupError, match="apt-get install redis-server"):
        redis_binary()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    tiny_checkpoint(folder / "checkpoint")
    with running(Service(folder, folder / "checkpoint")) as service:
        yield service


def test_a_note_written_is_found_and_a_deleted_one_is_not(service):
    with service.client() as notellm:
        for number in range(3):
            note = {"title": f"Day {number} in Kyoto", "hashtags": ["travel"]}
            assert notellm.put(f"n{number}", note, wait_s=10).status == "searchable"
        notellm.delete("n2")
        related = notellm.related("n0")
        assert [item.note_id for item in related.items] == ["n1"]
        assert (related.shards.ok, related.shards.total) == (2, 2)
        assert notellm.tags("A day in Osaka").category.name in {"Baking", "Home Decor", "Travel"}


def test_every_process_shows_its_metrics(service):
    names = {
        "gateway": "notellm_http_requests_total",
        "worker-0": "notellm_notes_embedded_total 3",
        "indexer-0": "notellm_index_notes",
        "indexer-1": "notellm_index_notes",
    }
    for role, name in names.items():
        port = (service.state / "run" / f"{role}.ops").read_text()
        assert name in httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_a_second_service_on_the_same_folder_is_refused(service):
    second = subprocess.run(
        [*NOTELLM, "serve"],
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert second.returncode == 2
    assert second.stderr.startswith("notellm: ")
    assert f"(process {service.process.pid})" in second.stderr


def test_killed_children_come_back_and_the_service_with_them(service):
    before = service.children()
    for name in ("redis", "indexer", "gateway"):
        os.kill(before[name], signal.SIGKILL)
    until(lambda: {"redis", "indexer", "worker", "gateway"} <= set(service.children()))
    until(service.ready)

    assert service.children()["worker"] == before["worker"]
    with service.client() as notellm:
        assert notellm.put("after", {"title": "Written after the crash"}, wait_s=10).status == "searchable"


def test_after_kill_9_of_the_supervisor_nothing_runs_on_and_nothing_is_lost(service):
    children = service.children().values()
    runtime = (service.state / "run").resolve()
    service.stop(signal.SIGKILL)
    service.start()

    assert not runtime.exists()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    with service.client() as notellm:
        assert notellm.get("n1").status == "searchable"
        with pytest.raises(Refused, match="note_not_found"):
            notellm.get("n2")
        related = {item.note_id for item in notellm.related("n0").items}
        assert "n1" in related
        assert "n2" not in related


def test_ctrl_c_stops_everything_and_leaves_no_trace_but_the_state(service):
    children = service.children().values()
    runtime = (service.state / "run").resolve()

    assert service.stop(signal.SIGINT) == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not runtime.exists()
    assert sorted(path.name for path in service.state.iterdir()) == ["index", "lock", "logs", "redis"]
