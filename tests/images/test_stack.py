"""deploy/compose.yaml with the images of this Dockerfile, run by podman-compose: notes in, answers out, a clean end.

Redis and nginx come from Debian in images of their own, so that they run as compose.yaml says: read-only, without
rights, Redis with its users. Prometheus and Grafana are not started: their images cannot be built here.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.service import until

from service.client import NoteLLMClient, Refused

ROOT = Path(__file__).parent.parent.parent
COMPOSE = Path(sys.executable).parent / "podman-compose"
SERVICES = ["redis", "worker", "shard-0", "shard-1", "gateway", "proxy"]
PATIENCE_S = 240
NOTES = {
    "kyoto": {"title": "Three days in Kyoto", "content": "Temples, markets and quiet gardens.", "hashtags": ["travel"]},
    "osaka": {"title": "A weekend in Osaka", "content": "Castles, canals and a night market.", "hashtags": ["travel"]},
    "ramen": {"title": "Four bowls of ramen", "content": "Broth and noodles, ranked.", "hashtags": ["food"]},
}


class Stack:
    """The services of compose.yaml as one project of podman-compose."""

    def __init__(self, engine, folder: Path) -> None:
        self._engine = engine
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}"
        self._project = f"notellm-{os.getpid()}"
        self._environment = {"SECRETS_DIR": str(folder / "secrets"), "HTTP_PORT": str(port)}
        engine.run("sh", "deploy/secrets.sh", folder / "secrets")
        self.key = ""

    def compose(self, *words: str) -> str:
        command = [COMPOSE, "--project-name", self._project, "--file", "deploy/compose.yaml", *words]
        return str(self._engine.run(*command, **self._environment))

    def up(self) -> None:
        self.compose("up", "--detach", "--no-build", *SERVICES)
        until(self._ready, PATIENCE_S)

    def inspect(self, service: str) -> dict:
        [found] = json.loads(self._engine.run("podman", "inspect", f"{self._project}_{service}_1"))
        return found

    def healthy(self, service: str) -> bool:
        """Runs the service's health check once; no timer does, where there is no systemd."""
        command = ["podman", "healthcheck", "run", f"{self._project}_{service}_1"]
        return subprocess.run(command, env=self._engine.environment, capture_output=True).returncode == 0

    def logs(self, service: str) -> str:
        return str(self._engine.run("sh", "-c", f"podman logs {self._project}_{service}_1 2>&1"))

    def _ready(self) -> bool:
        time.sleep(1)
        return all(self.healthy(service) for service in reversed(SERVICES))


@pytest.fixture(scope="module")
def stack(engine, built: Callable[[str], str], debian_images: list[str], tmp_path_factory) -> Iterator[Stack]:
    for target in ("gateway", "worker", "indexer"):
        built(target)
    made = Stack(engine, tmp_path_factory.mktemp("stack"))
    try:
        said = made.compose("--profile", "tools", "run", "--rm", "keys", "create", "--scope", "admin")
        [made.key] = [line.strip() for line in said.splitlines() if line.startswith("notellm_")]
        made.up()
        yield made
    finally:
        made.compose("--profile", "tools", "down", "--volumes")


@pytest.mark.timeout(3600)
def test_the_stack_takes_notes_and_answers_related_and_tags(stack):
    with NoteLLMClient(stack.api, key=stack.key, timeout_s=60, patience_s=60) as notellm:
        for note_id, note in NOTES.items():
            assert notellm.put(note_id, note, wait_s=10).status == "searchable"
        related = notellm.related("kyoto", k=2)
        tags = notellm.tags("A weekend of ramen in Osaka", "Four bowls in two days.", related=1)

    print([(item.note_id, round(item.score, 3)) for item in related.items], [one.tag for one in tags.hashtags])
    assert {item.note_id for item in related.items} == {"osaka", "ramen"}
    assert not related.degraded
    assert tags.hashtags
    assert tags.category
    assert tags.related[0].note_id in NOTES


@pytest.mark.timeout(3600)
def test_without_a_key_nobody_is_answered(stack):
    with NoteLLMClient(stack.api) as stranger, pytest.raises(Refused, match="unauthorized"):
        stranger.status()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_as_closed_as_the_file_says(stack, service):
    found = stack.inspect(service)

    host = found["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert "no-new-privileges" in " ".join(host["SecurityOpt"])
    assert found["EffectiveCaps"] in ([], None)
    assert host["Memory"] > 0
    assert host["NanoCpus"] > 0 or host["CpuQuota"] > 0
    assert host["PidsLimit"] > 0
    assert found["Config"]["User"] not in ("", "0", "root", "0:0")


@pytest.mark.timeout(3600)
def test_only_the_proxy_is_published_and_only_to_this_host(stack):
    published = {
        service: [
            where["HostIp"]
            for one in (stack.inspect(service)["NetworkSettings"]["Ports"] or {}).values()
            for where in one or []
        ]
        for service in SERVICES
    }

    assert published == {service: (["127.0.0.1"] if service == "proxy" else []) for service in SERVICES}


@pytest.mark.timeout(3600)
def test_a_stop_is_clean_and_what_was_acknowledged_is_there_again(stack):
    with NoteLLMClient(stack.api, key=stack.key, timeout_s=60, patience_s=60) as notellm:
        before = notellm.related("kyoto", k=2)
        assert notellm.put("late", NOTES["osaka"]).version == 1  # acknowledged, perhaps not read yet
        used = {service: stack.inspect(service)["State"] for service in SERVICES}
        stack.compose("stop")

        for service in SERVICES:
            ended = stack.inspect(service)["State"]
            assert (ended["Status"], ended["ExitCode"], ended["OOMKilled"]) == ("exited", 0, False), service
            assert used[service]["Running"]
            assert "Traceback" not in stack.logs(service)
            assert "NOPERM" not in stack.logs(service)
        with pytest.raises(httpx.TransportError):
            httpx.get(stack.api)

        stack.up()
        until(lambda: notellm.status().notes.searchable == len(NOTES) + 1, PATIENCE_S)
        after = notellm.related("kyoto", k=2, exclude="late")
    assert [item.note_id for item in after.items] == [item.note_id for item in before.items]
