"""The state folder of `notellm serve`, with its lock and its sockets; and free ports."""

import fcntl
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from model.files import read_bounded
from service.processes.ports import address_of, binding
from service.settings import Settings, SetupError, reason_of
from service.store.connection import redis_url

_RUNTIME_PREFIX = "notellm-"
_OWNER, _OWNER_BYTES = "state", 1 << 10
_TICK_S = 0.1
PRIVATE = 0o700
_OTHERS = 0o077
_OURS = {"lock", "run", "redis", "index", "logs", "models", "serving"}
_LEFTOVERS_S = 20.0
# No connection to somewhere takes one of these before a child listens at it: Linux begins with 32,768.
_QUIET_PORTS, _TRIES = range(16_384, 32_768), 20


@dataclass(frozen=True, slots=True)
class Place:
    """The folders and ports of one service."""

    state: Path
    runtime: Path
    port: int
    ops_port: int

    @property
    def redis_socket(self) -> Path:
        """Socket of the private Redis."""
        return self.runtime / "redis.sock"


def reach(settings: Settings) -> tuple[str, Sequence[str]]:
    """URL of Redis and addresses of the shards: of the settings, else of the `serve` in the state folder.

    Raises:
        SetupError: if there is neither.
    """
    runtime = (settings.state_dir / "run").resolve()
    sockets = sorted(runtime.glob("shard-*.sock"), key=lambda path: int(path.stem.partition("-")[2]))
    addresses = settings.index.addresses
    if sockets and "addresses" not in settings.index.model_fields_set:
        addresses = tuple(map(str, sockets))
    socket_path = Place(settings.state_dir, runtime, 0, 0).redis_socket
    if settings.redis_url is None and not socket_path.exists():
        raise SetupError(
            f"NOTELLM_REDIS_URL is not set, and no `notellm serve` runs in {settings.state_dir} (NOTELLM_STATE_DIR)"
        )
    return (redis_url(settings) if settings.redis_url else f"unix://{socket_path}"), addresses


@contextmanager
def usable(state: Path) -> Iterator[None]:
    """An OSError of the block, which prepares the state folder, becomes a SetupError that names the setting."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"NOTELLM_STATE_DIR={state} cannot be used: {reason_of(error)}; set it to a folder that can be written"
        ) from error


def close_to_others(state: Path) -> list[Path]:
    """Let nobody else into a state folder: Redis' files hold the text of notes. The folders whose mode had to change.

    A folder that holds other files, too, keeps its mode, and what is ours in it is closed.
    """
    ours = [path for path in state.iterdir() if path.name in _OURS]
    holds_others = len(ours) < sum(1 for _ in state.iterdir())
    folders = [path for path in ours if path.is_dir() and not path.is_symlink()]
    opened = [path for path in (folders if holds_others else [state, *folders]) if path.stat().st_mode & _OTHERS]
    for path in opened:
        path.chmod(PRIVATE)
    return opened


def make_folder(folder: Path, variable: str) -> None:
    """Make a folder that a process writes into. Raises SetupError, which names the variable, if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SetupError(f"{variable} cannot be used: {folder}: {reason_of(error)}") from error


@contextmanager
def lock_state(state: Path) -> Iterator[IO[str]]:
    """The locked file of the state folder, made if need be. Raises SetupError while another service uses it.

    Waits for the children of a killed supervisor to end.
    """
    state.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
    with (state / "lock").open("a+") as lock:
        deadline = time.monotonic() + _LEFTOVERS_S
        while not _locked(lock):
            lock.seek(0)
            owner = lock.read().strip()
            if _alive(owner) or time.monotonic() > deadline:
                raise SetupError(
                    f"{state} is in use by another `notellm serve` (process {owner}); stop it, "
                    "or set NOTELLM_STATE_DIR to another folder"
                )
            time.sleep(_TICK_S)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


@contextmanager
def runtime_folder(state: Path) -> Iterator[Path]:
    """A private folder, linked as ``state/run``, with a short path: that of a socket has at most 107 bytes."""
    link = state / "run"
    if link.is_symlink() or link.is_file():
        if _is_own(link, state):  # of a supervisor that was killed
            shutil.rmtree(link.resolve(), ignore_errors=True)
        link.unlink()
    elif link.exists():
        raise SetupError(f"{link} is no link of `notellm serve`; move it away")
    runtime = Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX))
    (runtime / _OWNER).write_text(_identity(state))
    link.symlink_to(runtime)
    try:
        yield runtime
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(runtime, ignore_errors=True)


def free_port(host: str, port: int, variable: str) -> int:
    """The port, or a free one for 0. Raises SetupError, which names the variable, when it is taken."""
    with binding(host, port, variable):
        family, (own, _, *scope) = address_of(host, port)
        for quiet in () if port else random.sample(_QUIET_PORTS, _TRIES):
            with suppress(OSError):
                return _bound(family, (own, quiet, *scope))
        return _bound(family, (own, port, *scope))


def _bound(family: socket.AddressFamily, address: tuple[Any, ...]) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def _is_own(link: Path, state: Path) -> bool:
    """Whether a link leads to a runtime folder that was made for this state folder: a copy of it has the same link."""
    runtime = Path(os.path.realpath(link))
    try:
        return (
            runtime.name.startswith(_RUNTIME_PREFIX)
            and runtime.stat().st_uid == os.geteuid()
            and read_bounded(runtime / _OWNER, _OWNER_BYTES) == _identity(state).encode()
        )
    except (OSError, ValueError):
        return False


def _identity(state: Path) -> str:
    """Names a folder; it keeps its identity when it is moved, and a copy has another one."""
    folder = state.stat()
    return f"{folder.st_dev}:{folder.st_ino}"


def _locked(lock: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
