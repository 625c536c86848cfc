"""The Redis that a command works on: the one that is set, that of a running `notellm serve`, or that of its folder.

A service that does not run has its notes on disk, where only a Redis can read them; one is then started for as long
as the command takes. It holds the lock of the state folder, so that no service starts beside it.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from service.changes import open_sync_redis
from service.errors import StoreUnavailable
from service.processes import Child, Role
from service.redis_errors import redis_errors
from service.settings import Settings, SetupError, redis_url
from service.supervisor import Place, hold, reach, redis_binary, redis_command, runtime_folder

_TICK_S = 0.05
_GRACE_S = 60.0


@contextmanager
def reached(settings: Settings, *, make: bool = False) -> Iterator[str]:
    """URL of the Redis, which answers. With ``make`` the state folder may be new.

    Raises:
        SetupError: if there is none, or it cannot be started.
    """
    if settings.redis_url is not None:
        yield redis_url(settings)
        return
    state = settings.state_dir.absolute()
    folder = state / "redis"
    if not (make or folder.is_dir()):
        raise SetupError(f"NOTELLM_REDIS_URL is not set, and {state} (NOTELLM_STATE_DIR) holds no service")
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(hold(state))
        except SetupError:  # a service runs
            yield reach(settings)[0]
            return
        folder.mkdir(exist_ok=True)
        place = Place(state, stack.enter_context(runtime_folder(state)), 0, 0)
        child = Child(Role("redis", redis_command(redis_binary(), place.redis_socket, folder), rank=0), lock)
        stack.callback(_stop, child)
        url = f"unix://{place.redis_socket}"
        _start(child, url)
        yield url


def _start(child: Child, url: str) -> None:
    """Return when it has read its files and answers."""
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
    child.ask_to_stop()
    child.wait(time.monotonic() + _GRACE_S)
