"""The format of a store, for commands. Processes look at it with all else that a Redis must be."""

from typing import TYPE_CHECKING, Any

from service.settings import SetupError
from service.store.connection import redis_errors
from service.store.requirements import written_in
from service.store.schema import FORMAT

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis


async def check_format(redis: "Redis") -> None:
    """Raises SetupError when the store is of a newer release, StoreUnavailable when it does not answer."""
    with redis_errors():
        _check(await redis.get(FORMAT))


def check_format_sync(redis: "SyncRedis") -> None:
    """The same, without a loop."""
    with redis_errors():
        _check(redis.get(FORMAT))


def _check(kept: Any) -> None:
    if unusable := written_in(kept).unusable:
        raise SetupError(unusable)
