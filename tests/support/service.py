"""The real service as a person starts it, for tests and benchmarks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx

from service.client import NoteLLMClient
from service.processes.state import free_port

NOTELLM = [sys.executable, "-P", "-m", "service.cli.main"]
PATIENCE_S = 60
# The environment without any setting of the service.
UNSET = {name: value for name, value in os.environ.items() if not name.startswith("NOTELLM_")}


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Waits until the condition holds."""
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


class Service:
    """The real `notellm serve` on free ports."""

    def __init__(self, folder: Path, checkpoint: Path, *arguments: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._arguments = arguments
        self.environment = {
            **UNSET,
            "NOTELLM_CHECKPOINT": str(checkpoint),
            "NOTELLM_STATE_DIR": str(self.state),
            "NOTELLM_HTTP__PORT": "0",
            "NOTELLM_OPS__PORT": "0",
            "NOTELLM_WORKER__THREADS": "1",
        }
        self.process: subprocess.Popen[str]
        self.api = ""

    def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            [*NOTELLM, "serve", *self._arguments], env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.close()
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("  API"):
                self.api = line.split()[1]
            if "Ctrl-C stops everything" in line:
                return
        raise AssertionError((self.folder / "log").read_text()[-3000:])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; the exit status."""
        self.process.send_signal(how)
        status = self.process.wait(PATIENCE_S)
        assert self.process.stdout
        self.process.stdout.close()
        return status

    def children(self) -> dict[str, int]:
        """Process ids by what runs, as the kernel knows them."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        named = {self._name(int(child)): int(child) for child in listed.split()}
        return {name: child for name, child in named.items() if name}

    def client(self, **options: object) -> NoteLLMClient:
        """A client of its API; to be closed."""
        return NoteLLMClient(self.api, **({"timeout_s": 30.0} | options))

    def ready(self) -> bool:
        """What the gateway's /readyz says; False while there is none."""
        try:
            port = (self.state / "run" / "gateway.ops").read_text()
            return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        except (httpx.HTTPError, OSError):
            return False

    def _name(self, process: int) -> str:
        """Empty for a process that has ended, be it still a zombie or gone since it was listed."""
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            return ""
        if "redis-server" in words[0]:
            return "redis"
        return words[-2] if len(words) > 1 else ""


class Gateway:
    """The real `notellm gateway` on a Redis, and nothing else: notes are stored, and none becomes searchable."""

    def __init__(self, folder: Path, checkpoint: Path, redis_url: str, **settings: str) -> None:
        self.port = free_port("127.0.0.1", 0, "")
        self.api = f"http://127.0.0.1:{self.port}"
        self._log = folder / "gateway.log"
        self._environment = {
            **UNSET,
            "NOTELLM_CHECKPOINT": str(checkpoint),
            "NOTELLM_REDIS_URL": redis_url,
            "NOTELLM_HTTP__PORT": str(self.port),
            "NOTELLM_OPS__PORT": "0",
            "NOTELLM_INDEX__ADDRESSES": json.dumps([str(folder / "no-shard.sock")]),
            "NOTELLM_WORKER__ADDRESSES": json.dumps([str(folder / "no-worker.sock")]),
            **settings,
        }

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*NOTELLM, "gateway"], env=self._environment, stderr=log)
        until(self._listens)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def client(self, **options: object) -> NoteLLMClient:
        """A client of its API; to be closed."""
        return NoteLLMClient(self.api, **({"timeout_s": 30.0} | options))

    def _listens(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """The service, started; stopped at the end, also when a test or its preparation fails in between."""
    try:
        service.start()
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()
        assert service.process.stdout
        service.process.stdout.close()
