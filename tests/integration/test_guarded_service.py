"""The real `notellm serve` with a keys file and an audit file."""

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.http import hold
from support.service import NOTELLM, Service, running, until

from service.keys import create_key, load_keys, revoke_key


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(file: Path) -> str:
    return create_key(file, ["admin"], "first")[1]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, file: Path, key: str) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    tiny_checkpoint(folder / "checkpoint")
    service = Service(folder, folder / "checkpoint")
    service.environment |= {
        "NOTELLM_KEYS_FILE": str(file),
        "NOTELLM_AUDIT_FILE": str(folder / "audit.log"),
        "NOTELLM_HTTP__HOST": "0.0.0.0",
        "NOTELLM_LOG_LEVEL": "DEBUG",
        "NOTELLM_LIMITS__DRAIN_S": "1",
        "NOTELLM_LIMITS__BODY_S": "3",
    }
    with running(service) as service:
        yield service


def status(service: Service, key: str) -> int:
    return httpx.get(f"{service.api}/status", headers={"Authorization": f"Bearer {key}"}).status_code


def test_with_keys_it_listens_beyond_loopback_and_lets_in_who_has_one(service, key):
    assert service.api.startswith("http://127.0.0.1:")  # what a person on this machine types
    assert httpx.get(f"{service.api}/status").status_code == 401
    assert status(service, key) == 200


def test_a_key_is_rotated_while_the_service_runs(service, file, key):
    made, second = create_key(file, ["read"])
    until(lambda: status(service, second) == 200, patience_s=5)
    assert status(service, key) == 200

    revoke_key(file, made.id)
    until(lambda: status(service, second) == 401, patience_s=5)
    assert status(service, key) == 200


def test_notes_are_loaded_with_a_key_and_not_without(service, key, tmp_path):
    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"note_id": "n1", "title": "Three days in Kyoto"}\n')
    load = [*NOTELLM, "load", str(notes), "--url", service.api]

    refused = subprocess.run(load, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--key or NOTELLM_KEY" in refused.stderr
    loaded = subprocess.run(load, env=service.environment | {"NOTELLM_KEY": key}, capture_output=True, check=False)
    assert loaded.returncode == 0


def test_health_and_metrics_need_no_key(service):
    port = (service.state / "run" / "gateway.ops").read_text()
    assert service.ready()
    assert "notellm_keys 1.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text


MARK = "Zanzibarmark"
TEXT = f"{MARK} {MARK}"
NOTE = {"title": TEXT, "content": TEXT, "hashtags": [MARK], "category": TEXT, "author": TEXT}
DRAFT = {"title": TEXT, "content": TEXT, "hashtags": [MARK], "related": 2}
EVENT = {"event_id": "e1", "user_id": "u1", "note_id": "n1", "source_note_id": "n2", "type": "view", "ts": 1}


# The audit log names the hashtag whose rule was changed, on purpose.
RULE_OF = ("n1",)


def bodies() -> list[bytes]:
    """Valid and invalid in every way that a body can be, and each says the mark."""
    notes = [{"note_id": f"n{number}", **NOTE} for number in range(3)]
    valid: list[object] = [NOTE, DRAFT, notes, {"events": [EVENT | {"user_id": MARK}]}, {"events": [{MARK: MARK}]}]
    wrong: list[object] = [
        *({**NOTE, field: wrong} for field in NOTE for wrong in (MARK * 5000, {MARK: MARK}, f"{MARK}\0")),
        NOTE | {MARK: MARK},
        NOTE | {"created_at": MARK},
        DRAFT | {"vocabulary": MARK, "max_hashtags": MARK},
        [*notes, {"note_id": MARK + " ", **NOTE}, {MARK: MARK}, MARK],
        MARK,
    ]
    ndjson = b"\n".join(json.dumps(note).encode() for note in [*notes, MARK, {MARK: 1}])
    broken = [json.dumps(NOTE).encode()[:-3], MARK.encode("utf-16"), MARK.encode() + b"\xff", ndjson]
    return [*(json.dumps(body).encode() for body in valid + wrong), *broken]


def everything(service: Service, key: str) -> None:
    """Every route with the mark wherever a caller can put text, by a caller with and one without a key."""
    document = httpx.get(f"{service.api}/openapi.json").json()
    headers = {"X-Request-ID": f"{MARK} {MARK}", "User-Agent": MARK, "Cookie": MARK, "Referer": f"http://{MARK}/"}
    keyed = headers | {"Authorization": f"Bearer {key}"}
    strange = headers | {"Authorization": f"Bearer {MARK}"}
    with httpx.Client(base_url=service.api, timeout=30) as client:
        for template, methods in document["paths"].items():
            for method, path, query in itertools.product(
                methods,
                RULE_OF if "{tag}" in template else ("n1", f"{MARK}%20"),
                ({}, {MARK: MARK}, {"k": MARK, "wait": MARK, "category": MARK}),
            ):
                url = re.sub(r"\{\w+\}", path, template)
                client.request(method, url, params=query, headers=strange)
                for body in bodies() if method in {"post", "put"} else [b""]:
                    answer = client.request(method, url, params=query, headers=keyed, content=body)
                    assert answer.status_code < 500, (method, url, answer.text)
        client.get(f"/{MARK}", headers=keyed)
        client.request("BREW", "/notes/n1", headers=keyed)
        assert client.put("/notes/last?wait=10", json=NOTE, headers=keyed).json()["status"] == "searchable"


def logs(service: Service) -> list[Path]:
    return [
        *(service.state / "logs").iterdir(),
        *service.state.glob("redis/*.log"),
        service.folder / "log",
        service.folder / "audit.log",
    ]


def test_no_text_of_a_note_and_no_key_is_in_any_log_of_any_process(service, key):
    everything(service, key)

    found = {path.name for path in logs(service)}
    assert {"gateway.log", "worker-0.log", "indexer-0.log", "redis.log", "audit.log", "log"} <= found
    for path in logs(service):
        text = path.read_text(errors="replace").casefold()
        assert MARK.casefold() not in text, path
        assert key.casefold() not in text, path


def test_every_line_of_every_log_of_ours_is_one_json_object(service):
    ours = [path for path in logs(service) if path.name not in {"redis.log", "log"}]
    lines = [json.loads(line) for path in ours for line in path.read_text().splitlines()]

    assert {"request", "write", "refusal"} <= {line["event"] for line in lines}
    assert all(line["level"] and line["logger"] and line["time"].endswith("Z") for line in lines)


def test_the_audit_file_names_who_wrote_which_note(service, file):
    [key_id] = [key.id for key in load_keys(file)]
    lines = [json.loads(line) for line in (service.folder / "audit.log").read_text().splitlines()]

    [last] = [line for line in lines if line.get("notes") == ["last"]]
    assert (last["key"], last["method"], last["status"]) == (key_id, "PUT", 200)
    assert {line["status"] for line in lines if line["key"] is None} == {401}


async def test_slow_bodies_end_and_disturb_nobody_meanwhile(service, key):
    port = int(service.api.rsplit(":", 1)[1])
    head = f"PUT /notes/slow HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Length: 9999\r\n\r\n"
    held = [
        *(asyncio.create_task(hold(port, head.encode(), drip=b"{", every_s=0.1)) for _ in range(40)),
    ]
    await asyncio.sleep(0.2)
    ops = f"http://127.0.0.1:{(service.state / 'run' / 'gateway.ops').read_text()}"
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        urls = [f"{service.api}/status", f"{service.api}/notes/n1", f"{ops}/livez", f"{ops}/readyz"]
        answers = [(await client.get(url)).status_code for url in urls]
        written = (await client.put(f"{service.api}/notes/quick?wait=10", json={"title": "Quick"})).status_code

        assert sum(not task.done() for task in held) >= 20
        assert (answers, written) == ([200] * 4, 200)
        async with asyncio.timeout(60):
            await asyncio.gather(*held)


def test_a_gateway_that_is_told_to_end_says_so_first_and_finishes_what_runs(service, key):
    headers = {"Authorization": f"Bearer {key}"}
    children = service.children()
    port = (service.state / "run" / "gateway.ops").read_text()
    with httpx.Client(base_url=service.api, headers=headers, timeout=30) as client, ThreadPoolExecutor() as threads:
        os.kill(children["worker"], signal.SIGSTOP)
        try:
            waiting = threads.submit(
                httpx.put, f"{service.api}/notes/late?wait=4", json={"title": "Late"}, headers=headers, timeout=30
            )
            until(lambda: client.get("/status").json()["queue"]["depth"] == 1)
            os.kill(children["gateway"], signal.SIGTERM)

            until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").json()["missing"] == ["draining"])
            last = client.get("/status")
            assert (last.status_code, last.headers["connection"]) == (200, "close")
            until(lambda: not answers(service))
            assert not waiting.done()
            assert waiting.result().json()["status"] == "pending"
        finally:
            os.kill(children["worker"], signal.SIGCONT)
    until(lambda: service.children().get("gateway") not in {None, children["gateway"]} and service.ready())


def answers(service: Service) -> bool:
    try:
        return bool(httpx.get(f"{service.api}/status").status_code)
    except httpx.ConnectError:
        return False
