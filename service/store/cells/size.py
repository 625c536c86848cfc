"""How many cells a store has: written down in the first one by the first process, for it never changes.

A store of one cell, as every store of older releases is, has no such record.
"""

from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError

from service.settings import SetupError
from service.store.connection import redis_errors
from service.store.schema import CELLS, COUNTS, MODELS, UNLESS_RESTORING

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis

# ARGV: the number that is set. The number that the store has from now on.
AGREE = (
    UNLESS_RESTORING
    + f"""
local kept = redis.call('GET', '{CELLS}')
if kept then return tonumber(kept) end
if redis.call('EXISTS', '{MODELS}', '{COUNTS}') > 0 then return 1 end
redis.call('SET', '{CELLS}', ARGV[1])
return tonumber(ARGV[1])
"""
)


async def check_size(redis: "Redis", cells: int) -> None:
    """Raises SetupError when the store has another number of cells, StoreUnavailable when it does not answer."""
    with redis_errors():
        try:
            kept = await redis.get(CELLS)
        except NoPermissionError:  # a user of an older release, which knew of one
            kept = None
        if kept is None and cells > 1:
            kept = await redis.register_script(AGREE)(args=[cells])
    _compare(int(kept or 1), cells)


def check_size_sync(redis: "SyncRedis", cells: int) -> None:
    """The same, for commands."""
    with redis_errors():
        kept: Any = redis.get(CELLS)
        if kept is None and cells > 1:
            kept = redis.register_script(AGREE)(args=[cells])
    _compare(int(kept or 1), cells)


def _compare(kept: int, cells: int) -> None:
    if kept != cells:
        raise SetupError(
            f"the store has {kept} cell{'s' * (kept > 1)} and NOTELLM_CELLS is {cells}: set it to {kept}, or move the "
            "notes by `notellm backup` and `notellm restore` into an empty store"
        )
