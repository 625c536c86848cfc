"""Several gateway processes on one port, with one operations listener for all.

The kernel deals out the connections among those that listen (SO_REUSEPORT). Their metrics meet in files of a private
folder, where the counters of a process that ended stay: a sum over all never falls.
"""

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.processes.children import GRACE_S, Child, Role, Supervisor
from service.processes.health import binding, missing_at, operations
from service.settings import HttpSettings, Settings

LOOPBACK = "127.0.0.1"


def run_gateways(settings: Settings) -> None:
    """Run ``http.workers`` gateways until SIGINT or SIGTERM; one that dies is started again.

    Raises:
        SetupError: if a port cannot be had.
    """
    with _port_held(settings.http) as port, tempfile.TemporaryDirectory(prefix="notellm-") as name:
        folder = Path(name)
        (folder / "metrics").mkdir()
        roles = [_role(folder, number, port) for number in range(settings.http.workers)]
        on_end = partial(mark_process_dead, path=str(folder / "metrics"))
        children = [Child(role, on_end=on_end) for role in roles]
        grace_s = GRACE_S + settings.limits.drain_s

        def missing() -> list[str]:
            return _missing(folder, roles)

        with operations(settings.ops, missing, lambda: _exposition(folder)):
            status = Supervisor(children, grace_s).run(ready=lambda: not missing(), announce=lambda: None)
    if status:
        sys.exit(status)


@contextmanager
def _port_held(http: HttpSettings) -> Iterator[int]:
    """The port, ours while no gateway listens on it yet or again; a free one for 0."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    with binding(http.host, http.port, "NOTELLM_HTTP__PORT"):
        if not http.shares_port:  # else binding beside another service of the same user would succeed
            socket.create_server((http.host, http.port), family=family).close()
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((http.host, http.port))
    with held:  # bound and not listening, it is dealt no connection
        yield held.getsockname()[1]


def _role(folder: Path, number: int, port: int) -> Role:
    name = f"gateway-{number}"
    own = {
        "NOTELLM_HTTP__PORT": str(port),
        "NOTELLM_HTTP__WORKERS": "1",
        "NOTELLM_HTTP__SHARES_PORT": "1",
        "NOTELLM_OPS__HOST": LOOPBACK,
        "NOTELLM_OPS__PORT": "0",
        "NOTELLM_OPS__PORT_FILE": str(_port_file(folder, name)),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
    }
    return Role(name, [sys.executable, "-P", "-m", "service.cli.main", "gateway"], rank=0, environment=own)


def _missing(folder: Path, roles: list[Role]) -> list[str]:
    """What any of the gateways lacks, each thing once."""
    lacks = [_missing_of(folder, role.name) for role in roles]
    return list(dict.fromkeys(name for missing in lacks for name in missing))


def _missing_of(folder: Path, name: str) -> list[str]:
    file = _port_file(folder, name)
    port = file.read_text() if file.exists() else ""
    return missing_at(LOOPBACK, int(port), name) if port else [name]


def _port_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.ops"


def _exposition(folder: Path) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder / "metrics"))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
