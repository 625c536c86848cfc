"""Redis' own figures, for an indexer's metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.store.connection import redis_errors
from service.store.schema import DEAD

if TYPE_CHECKING:
    from redis.asyncio import Redis

_OUTCOMES = ("aof_last_write_status", "aof_last_bgrewrite_status")


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """Figures of one moment. It is ``persistent`` while it keeps an append-only file and its last writes succeeded."""

    dead_letters: int
    memory_bytes: int
    memory_limit_bytes: int
    aof_bytes: int
    persistent: bool


async def redis_info(redis: "Redis") -> RedisInfo:
    """As of now. Without a ``maxmemory``, the limit is the memory of its machine. Raises StoreUnavailable."""
    with redis_errors():
        dead_letters = await redis.xlen(DEAD)
        memory: Mapping[str, Any] = await redis.info("memory")
        disk: Mapping[str, Any] = await redis.info("persistence")
    return RedisInfo(
        dead_letters,
        memory["used_memory"],
        memory["maxmemory"] or memory["total_system_memory"],
        disk.get("aof_current_size", 0),
        bool(disk["aof_enabled"]) and all(disk[outcome] == "ok" for outcome in _OUTCOMES),
    )
