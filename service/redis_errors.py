"""What a Redis says that cannot serve, as an error of ours."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import StoreUnavailable

log = logging.getLogger(__name__)

# What a Redis says that is there but cannot serve: no memory, read-only replica, full disk, loading, busy.
CANNOT_SERVE = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "BUSY ", "MASTERDOWN ", "NOREPLICAS ", "NOAUTH ")
# What a script is told that does what the user may not: by Redis up to 7.0, and later.
DENIED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
REMEDY = "give it the rights that deploy/redis/users.acl lists"
_COMMAND = re.compile(r"no permissions to run the '([\w|]+)' command")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what a dead, full, read-only or denying Redis says into StoreUnavailable; our own mistakes pass through."""
    from redis.exceptions import ConnectionError as ConnectionFailed
    from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
    from redis.exceptions import TimeoutError as TimedOut

    try:
        yield
    except (ConnectionFailed, TimedOut, OSError) as error:
        raise StoreUnavailable("the store does not answer") from error
    except ResponseError as error:
        if denied := _denied(error):
            log.error("redis_denied", extra={"denied": denied, "remedy": REMEDY})  # noqa: TRY400 - no outline is needed
            raise StoreUnavailable(f"Redis denies its user {denied}: {REMEDY}") from error
        # redis-py strips the prefix it knows, and a script's error carries it in the middle.
        if isinstance(error, (OutOfMemoryError, ReadOnlyError)) or any(word in f"{error} " for word in CANNOT_SERVE):
            raise StoreUnavailable("the store takes no writes") from error
        raise


def _denied(error: Exception) -> str:
    """What the user of Redis may not do, as far as the error says; empty when it is about something else.

    No more of it than the command: the keys, and what redis-py quotes of a pipeline, may be text of a note.
    """
    from redis.exceptions import NoPermissionError

    said = str(error)
    if not (isinstance(error, NoPermissionError) or any(words in said for words in DENIED_IN_SCRIPT)):
        return ""
    command = _COMMAND.search(said)
    return f"the command {command[1].upper()}" if command else "a command or a key, which ACL LOG names"
