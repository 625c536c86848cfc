"""A real Redis for tests: private, on a unix socket in a temporary folder, on disk before it answers."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as ConnectionFailed

from service.processes.local_redis import redis_binary, redis_command


class RedisServer:
    """One `redis-server`, started as `notellm serve` starts it; it can be killed and started again.

    ``options`` are more of its command line, such as ``--port``; the words ``before`` it run it, such as a tracer.
    """

    def __init__(self, *options: str, before: Sequence[str] = ()) -> None:
        self._options = options
        self._before = before
        self.folder = Path(tempfile.mkdtemp(prefix="notellm-test-"))
        self.socket = self.folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it answers."""
        command = [*self._before, *redis_command(redis_binary(), self.socket, self.folder), *self._options]
        self.process = subprocess.Popen(command)
        with Redis(unix_socket_path=str(self.socket)) as client:
            for _ in range(1000):
                try:
                    client.ping()
                except ConnectionFailed:
                    time.sleep(0.01)
                else:
                    return
        raise AssertionError(f"redis-server does not start, see {self.folder}/redis.log")

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it and remove its files."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None
