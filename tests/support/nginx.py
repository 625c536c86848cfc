"""A real nginx with deploy/nginx/nginx.conf, before a gateway of this machine."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from support.service import until

from service.processes.state import free_port

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "nginx.conf"


class Proxy:
    """A running nginx; ``changes`` are texts of the configuration and what stands there instead."""

    def __init__(self, folder: Path, gateway: int, changes: Mapping[str, str] | None = None) -> None:
        self.port = free_port("127.0.0.1", 0, "")
        self.url = f"http://127.0.0.1:{self.port}"
        own = {
            "gateway:8000": f"127.0.0.1:{gateway}",
            "listen 8000": f"listen 127.0.0.1:{self.port}",
            " /tmp/": f" {folder}/",
        }
        (folder / "nginx.conf").write_text(adapted({**own, **(changes or {})}))
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        command = [nginx, "-e", "stderr", "-c", str(folder / "nginx.conf")]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        self.process = subprocess.Popen([*command, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
        until(self._listens)

    def stop(self) -> None:
        """End it, with its workers."""
        self.process.terminate()
        self.process.wait()

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


def adapted(changes: Mapping[str, str]) -> str:
    """The file with these changes; each must find its place."""
    text = CONFIGURATION.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
