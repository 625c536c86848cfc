"""The processes of the manifests, with the commands and environments of their pods, on one machine.

Every pod has a loopback address of its own, so that ports are those of the manifests. What a cluster would give is put
in their place: addresses of names, folders of volumes, secrets.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.kubernetes import Manifests, Workload, manifests_of
from support.redis import RedisServer
from support.service import NOTELLM, until

from service.client import NoteLLMClient, Refused
from service.keys import create_key
from service.settings import MINI


@dataclass(frozen=True)
class Pod:
    """One pod, and the process of its only container."""

    workload: Workload
    name: str
    address: str
    process: subprocess.Popen[bytes]

    @property
    def container(self) -> dict[str, Any]:
        """What it runs."""
        return self.workload.containers[0]

    def answers(self, probe: str) -> bool:
        """Whether one of its probes succeeds."""
        asked = self.container[probe]["httpGet"]
        try:
            url = f"http://{self.address}:{self.workload.ports[asked['port']]}{asked['path']}"
            return httpx.get(url, timeout=self.container[probe]["timeoutSeconds"]).status_code == 200
        except httpx.HTTPError:
            return False


class Cluster:
    """The gateway, worker and indexer pods of an overlay; one where a Deployment asks for several."""

    def __init__(self, manifests: Manifests, folder: Path, redis_url: str, stack: ExitStack) -> None:
        self._folder = folder
        self._redis_url = redis_url
        (folder / "keys").mkdir()
        self.key = create_key(folder / "keys" / "keys.json", ["admin"])[1]
        network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
        planned = [
            (workload, f"{workload.name}-{number}", environment)
            for workload in manifests.workloads
            if workload.component in ("gateway", "worker", "indexer")
            for number, environment in enumerate(manifests.environments(workload, workload.containers[0]))
        ]
        self._hosts = {name: f"{network}.{place}" for place, (_, name, _) in enumerate(planned, start=1)}
        self.pods = [self._start(workload, name, environment, stack) for workload, name, environment in planned]

    def of(self, component: str) -> list[Pod]:
        """The pods of one of our processes."""
        return [pod for pod in self.pods if pod.workload.component == component]

    def _start(self, workload: Workload, name: str, environment: dict[str, str], stack: ExitStack) -> Pod:
        given = {variable: self._here(value, workload, name) for variable, value in environment.items()}
        # No GPU and few cores here.
        given |= {"NOTELLM_REDIS_URL": self._redis_url, "NOTELLM_WORKER__BACKEND": "hf", "NOTELLM_WORKER__THREADS": "1"}
        kept = {each: os.environ[each] for each in ("PATH", "PYTHONPATH") if each in os.environ}
        log = stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [*NOTELLM, *workload.containers[0]["args"]], env=kept | given, stdout=log, stderr=log
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        return Pod(workload, name, self._hosts[name], process)

    def _here(self, value: str, workload: Workload, name: str) -> str:
        """A value with this machine's addresses and folders."""
        value = value.replace("0.0.0.0", self._hosts[name])
        for host, address in self._hosts.items():
            value = value.replace(f"{host}.indexer:", f"{address}:")
        value = value.replace("worker:", f"{self._hosts['worker-0']}:")
        for mount in workload.containers[0]["volumeMounts"]:
            if value.startswith(mount["mountPath"]):
                if mount["name"] == "models":
                    return str(MINI)
                own = self._folder / (mount["name"] if mount["name"] == "keys" else f"{name}-{mount['name']}")
                own.mkdir(exist_ok=True)
                return value.replace(mount["mountPath"], str(own), 1)
        return value


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """The pods of production, started all at once; ended at the latest with the test."""
    with ExitStack() as stack:
        redis = RedisServer()
        stack.callback(redis.close)
        redis.start()
        yield Cluster(manifests_of("production"), tmp_path, redis.url, stack)


def test_the_processes_find_each_other_outlive_a_replica_of_each_shard_and_leave_in_time(cluster):
    until(lambda: all(pod.answers("startupProbe") and pod.answers("readinessProbe") for pod in cluster.pods), 200)
    [gateway] = cluster.of("gateway")
    url = f"http://{gateway.address}:{gateway.workload.ports['http']}"

    with NoteLLMClient(url) as stranger, pytest.raises(Refused, match="unauthorized"):
        stranger.get("n0")
    with NoteLLMClient(url, key=cluster.key, timeout_s=30, patience_s=30) as notellm:
        for number in range(8):
            notellm.put(f"n{number}", {"title": f"Ramen in Osaka, bowl {number}"}, wait_s=10)
        # Eight notes are in both shards, so an answer with all others has asked every shard by its name.
        assert {item.note_id for item in notellm.related("n0").items} == {f"n{number}" for number in range(1, 8)}
        assert notellm.tags("Ramen in Osaka").category
        for pod in cluster.of("indexer"):
            if pod.workload.name == "indexer":
                pod.process.kill()
                pod.process.wait()
        # The replicas that are left may be some milliseconds behind.
        until(lambda: len(notellm.related("n1").items) == 7)
        assert not notellm.related("n1").degraded

    alive = [pod for pod in cluster.pods if pod.process.poll() is None]
    for pod in alive:
        pod.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    for pod in alive:
        grace_s = pod.workload.pod["terminationGracePeriodSeconds"]
        assert pod.process.wait(started + grace_s - time.monotonic()) == 0
