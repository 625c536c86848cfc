import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from service.cli.common import printable
from service.cli.main import cli
from service.contract.examples import EXAMPLES
from service.processes.serve import roles
from service.processes.state import Place
from service.setting_groups import IndexSettings
from service.settings import MINI, Settings

HEAVY = ("torch", "transformers", "faiss", "fastapi", "pydantic", "redis", "numpy", "pyarrow")


def notellm(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a person types it, in an environment without other settings."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli.main", *args],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_imports_nothing_heavy():
    script = f"import sys, service.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_explains_itself_with_an_example(command):
    answer = CliRunner().invoke(cli, [command, "--help"])

    assert answer.exit_code == 0
    assert "Example" in answer.output


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"NOTELLM_HTTP__PORT": "many"}, "NOTELLM_HTTP__PORT"),
        ({"NOTELLM_HTTP__PROT": "1"}, "NOTELLM_HTTP__PROT"),
        ({"NOTELLM_CHEKPOINT": "x"}, "NOTELLM_CHEKPOINT"),
        ({"NOTELLM_WORKER__ADDRESSES": "a:1,b:2"}, "NOTELLM_WORKER__ADDRESSES"),
        ({"NOTELLM_HTTP__HOST": "0.0.0.0"}, "NOTELLM_HTTP__ALLOW_OPEN"),
        ({"NOTELLM_KEYS_FILE": "/nowhere.json"}, "notellm keys create"),
        ({"NOTELLM_CHECKPOINT": "/nowhere"}, "NOTELLM_CHECKPOINT"),
        ({"NOTELLM_STATE_DIR": "/dev/null"}, "NOTELLM_STATE_DIR=/dev/null cannot be used: "),
        ({"NOTELLM_STATE_DIR": "/proc/nope"}, "/proc/nope: No such file or directory"),
        ({"NOTELLM_AUDIT_FILE": "/proc/nope"}, "NOTELLM_AUDIT_FILE cannot be written: /proc/nope"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(environment, named):
    answer = notellm("serve", **environment)

    assert answer.returncode == 2
    assert answer.stderr.startswith("notellm: ")
    assert answer.stderr.count("\n") == 1
    assert named in answer.stderr


def test_a_process_that_fails_says_so_in_its_log_and_ends(monkeypatch, caplog):
    def fail(settings: object) -> None:
        raise RuntimeError("of a kind that nobody expected")

    monkeypatch.setattr("service.wiring.worker.run", fail)
    monkeypatch.setattr("service.logs.configure", lambda level: None)
    result = CliRunner().invoke(cli, ["worker"])
    assert result.exit_code == 1
    assert [record.message for record in caplog.records] == ["process_failed"]


def test_a_secret_is_not_shown_when_another_setting_is_wrong():
    answer = notellm("serve", NOTELLM_REDIS_URL="redis://:hunter2@h", NOTELLM_HTTP__PORT="x")

    assert "hunter2" not in answer.stdout + answer.stderr


@pytest.mark.parametrize("args", [["fly"], ["load"], ["load", "/nowhere.jsonl"], ["load", "--fast"]])
def test_a_mistyped_command_is_one_line(args):
    answer = notellm(*args)

    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("notellm: ")
    assert "Traceback" not in answer.stderr


def test_loading_into_a_service_that_is_not_there_says_so(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"note_id": "n1", "title": "Kyoto"}\n')

    answer = notellm("load", str(notes), "--url", f"http://127.0.0.1:{port}")

    assert answer.returncode == 2
    assert f"no service answers at http://127.0.0.1:{port}" in answer.stderr


class Service(BaseHTTPRequestHandler):
    """Full at first, then accepts all but titles that say `bad`; pending for one poll."""

    bodies: ClassVar[list[list[dict[str, Any]]]]
    polls: ClassVar[int]
    keys: ClassVar[list[str | None]]
    refusal: ClassVar[int]

    def do_POST(self) -> None:
        self.keys.append(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        notes = [json.loads(line) for line in body.splitlines()]
        self.bodies.append(notes)
        if self.refusal:
            self._answer(self.refusal, {"error": {"code": "unauthorized", "message": "no entry", "request_id": "r1"}})
            return
        if len(self.bodies) == 1:
            self._answer(503, {"error": {"code": "queue_full", "message": "full", "request_id": "r1"}}, retry_after="0")
            return
        bad = [position for position, note in enumerate(notes) if note["title"] == "bad"]
        rejected = [{"position": at, "code": "invalid_request", "message": "no title"} for at in bad]
        self._answer(202, {"accepted": len(notes) - len(bad), "rejected": rejected})

    def do_GET(self) -> None:
        type(self).polls += 1
        self.keys.append(self.headers["Authorization"])
        pending = 3 if self.polls == 1 else 0
        figures = EXAMPLES["figures"]
        notes = figures["notes"] | {"pending": pending}
        self._answer(200, figures | {"notes": notes, "queue": {"depth": 0, "oldest_s": 0.0}})

    def _answer(self, status: int, answer: dict[str, Any], retry_after: str | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    Service.bodies, Service.polls, Service.keys, Service.refusal = [], 0, [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_load_sends_bulks_of_500_again_when_refused_and_waits_until_none_is_pending(service, tmp_path):
    notes = [{"note_id": f"n{i}", "title": "bad" if i == 501 else f"Day {i}"} for i in range(600)]
    file = tmp_path / "notes.jsonl"
    file.write_text("\n".join(map(json.dumps, notes)))

    answer = CliRunner().invoke(cli, ["load", str(file), "--url", service])

    assert answer.exit_code == 1
    assert [len(body) for body in Service.bodies] == [500, 500, 100]
    assert Service.bodies[0] == Service.bodies[1]
    sent = [note["note_id"] for body in Service.bodies[1:] for note in body]
    assert sent == [note["note_id"] for note in notes]
    assert Service.polls == 2
    assert "599 notes in" in answer.output
    assert "n501: no title" in answer.output


@pytest.mark.parametrize(("titles", "status"), [("good good", 0), ("good bad", 1), ("bad bad", 1)])
def test_load_says_by_its_status_whether_all_is_stored(service, tmp_path, titles, status):
    file = tmp_path / "notes.jsonl"
    file.write_text("\n".join(json.dumps({"note_id": f"n{i}", "title": t}) for i, t in enumerate(titles.split())))

    assert CliRunner().invoke(cli, ["load", str(file), "--url", service]).exit_code == status


HOSTILE = "a\x1b]0;owned\x07\x9b2J\r\n\u202eb\u2028\x7f"
ESCAPED = "a\\x1b]0;owned\\x07\\x9b2J \\u202eb \\x7f"


def test_a_terminal_obeys_nothing_that_a_note_says(service, tmp_path):
    file = tmp_path / "notes.jsonl"
    notes = [{"note_id": HOSTILE, "title": "bad"}, {"note_id": "x" * 10_000, "title": "bad"}]
    file.write_text("\n".join(map(json.dumps, notes)))

    answer = CliRunner().invoke(cli, ["load", str(file), "--url", service])

    assert f"  {ESCAPED}: no title\n  {'x' * 128}...: no title\n" in answer.output


@pytest.mark.parametrize(
    "line", [{HOSTILE: 1}, {"note_id": "n1", "title": [HOSTILE]}, {"note_id": "n1", "hashtags": 1}]
)
def test_a_terminal_obeys_nothing_that_stands_in_a_message(tmp_path, line):
    file = tmp_path / f"{HOSTILE}.jsonl"
    file.write_text(json.dumps(line))

    answer = notellm("load", str(file))

    assert answer.returncode == 2
    assert answer.stderr.startswith(f"notellm: {ESCAPED}.jsonl line 1: ")
    assert answer.stderr.strip("\n").isprintable()


@pytest.mark.parametrize("text", ["caf\xe9 \u6cb3\u8fb9\u3000\U0001f469\u200d\U0001f467 \u0645\tx\n", "a\xa0b"])
def test_what_people_write_is_printed_as_it_is(text):
    assert printable(text) == text


def test_half_a_character_is_printed_as_an_escape():
    assert printable("a\ud800") == "a\\ud800"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_load_sends_the_key_that_it_is_given(service, tmp_path, how):
    file = tmp_path / "notes.jsonl"
    file.write_text('{"note_id": "n1", "title": "Kyoto"}')
    arguments = ["load", str(file), "--url", service]

    if how == "option":
        CliRunner().invoke(cli, [*arguments, "--key", "k1"])
    else:
        CliRunner().invoke(cli, arguments, env={"NOTELLM_KEY": "k1"})

    assert Service.keys == ["Bearer k1"] * 4


@pytest.mark.parametrize("status", [401, 403])
def test_load_says_how_to_give_a_key_when_it_is_refused_for_one(service, tmp_path, status):
    Service.refusal = status
    file = tmp_path / "notes.jsonl"
    file.write_text('{"note_id": "n1", "title": "Kyoto"}')

    answer = CliRunner().invoke(cli, ["load", str(file), "--url", service])

    assert answer.exit_code == 1
    assert "no entry; give one with --key or NOTELLM_KEY" in answer.output


def test_load_without_waiting_asks_for_no_status(service, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text('{"note_id": "n1", "title": "Kyoto"}')

    assert CliRunner().invoke(cli, ["load", str(file), "--url", service, "--no-wait"]).exit_code == 0
    assert Service.polls == 0


def test_load_shows_the_key_of_the_environment_and_says_so_in_one_line_when_it_cannot_be_one(service, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text('{"note_id": "n1", "title": "Kyoto"}')

    answers = [
        CliRunner().invoke(cli, ["load", str(file), "--url", service, "--no-wait"], env={"NOTELLM_KEY": key})
        for key in ("k-1", "caf\xe9")
    ]

    assert [answer.exit_code for answer in answers] == [0, 1]
    assert Service.keys == ["Bearer k-1"] * 2
    assert answers[1].output == "Error: a key is visible ASCII characters\n"


def test_serve_gives_every_role_its_own_sockets_and_numbers(tmp_path):
    settings = Settings(index=IndexSettings(addresses=("a:1", "a:2")), state_dir=tmp_path)
    found = {role.name: role for role in roles(settings, Place(tmp_path, Path("/run/r"), 8000, 9000))}

    assert list(found) == ["redis", "indexer-0", "indexer-1", "worker-0", "gateway"]
    assert found["indexer-1"].environment["NOTELLM_INDEX__NUMBER"] == "1"
    assert json.loads(found["gateway"].environment["NOTELLM_INDEX__ADDRESSES"]) == [
        "/run/r/shard-0.sock",
        "/run/r/shard-1.sock",
    ]
    assert found["worker-0"].environment["NOTELLM_REDIS_URL"] == "unix:///run/r/redis.sock"
    assert [role.rank for role in found.values()] == [0, 1, 1, 2, 3]


def test_serve_runs_one_worker_more_of_a_candidate_and_then_none_takes_over(tmp_path):
    settings = Settings(state_dir=tmp_path, candidate=tmp_path / "candidate")
    found = {role.name: role.environment for role in roles(settings, Place(tmp_path, Path("/run/r"), 8000, 9000))}

    checkpoints = [found[name]["NOTELLM_CHECKPOINT"] for name in ("worker-0", "worker-1", "gateway")]
    assert checkpoints == [str(MINI), str(tmp_path / "candidate"), str(MINI)]
    assert json.loads(found["gateway"]["NOTELLM_WORKER__ADDRESSES"]) == ["/run/r/worker-0.sock", "/run/r/worker-1.sock"]
    assert found["worker-0"]["NOTELLM_WORKER__TAKES_OVER"] == "0"


def test_the_split_and_the_samples_default_to_what_the_model_says():
    """The numbers are repeated in the help texts, because importing them would load numpy and DuckDB for `--help`."""
    from model.data.cooccurrence import HOLDOUT, SEED
    from model.data.samples.generate import SESSIONS

    def default(command: str, option: str) -> object:
        return next(found.default for found in cli.commands[command].params if found.name == option)

    for command in ("pairs", "evaluate"):
        assert (default(command, "holdout"), default(command, "split_seed")) == (HOLDOUT, SEED)
    assert default("samples", "sessions") == SESSIONS
