"""The real `notellm serve` with a keys file."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.service import NOTELLM, Service, running, until

from service.keys import create_key, revoke_key


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
    service.environment |= {"NOTELLM_KEYS_FILE": str(file), "NOTELLM_HTTP__HOST": "0.0.0.0"}
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
