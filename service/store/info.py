"""Redis' own figures, for an indexer's metrics, and the report on it for every process."""

from collections.abc import Awaitable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import NoPermissionError, ResponseError

from service.errors import StoreUnavailable
from service.store.cluster.keys import FIRST
from service.store.connection import is_cluster, open_redis, redis_errors
from service.store.requirements import APPENDFSYNC, FULL_COVERAGE, Problem, Report, joined, report, written_in
from service.store.schema import ACTIVE, DEAD, FORMAT

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

# For one answer, or for a connection.
_EXAMINE_S = 2.0
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


async def examine(
    url: str, *, denied: Set[str] = frozenset(), replicas: int = 0, cell: str = FIRST, cells: int = 1
) -> Report:
    """The report on a Redis as a new connection finds it: one that is open already outlives a change of the password.

    What the causes in ``denied`` depend on is not asked. ``replicas`` are those that writes wait for; ``cell`` is one
    of so many ``cells`` on a cluster. Raises StoreUnavailable when Redis does not answer, or not yet.
    """
    redis = open_redis(url, timeout_s=_EXAMINE_S, connections=1, cell=cell)
    try:
        names = (APPENDFSYNC, FULL_COVERAGE) if cells > 1 else (APPENDFSYNC,)
        settings = None if denied & {"fsync", "coverage"} else await _settings(redis, names)
        info = await _asked(redis.info())
        found = report(info, settings, cluster=is_cluster(url), replicas=replicas, cells=cells)
        if not found.unusable:
            with redis_errors():
                await redis.get(ACTIVE)
                await redis.register_script("return 1")()
            kept: Any = None if "format" in denied else await _asked(redis.mget([FORMAT]))
            found = joined([found, written_in(kept and kept[0], denied=kept is None)])
    except StoreUnavailable as error:
        if not error.cause:
            raise
        number = redis.connection_pool.connection_kwargs.get("db", 0)
        line = f"Redis has no database {number}, which NOTELLM_REDIS_URL names"
        return Report((Problem(error.cause, line if error.cause == "database" else str(error)),))
    else:
        return found
    finally:
        await redis.aclose()


async def _settings(redis: "Redis", names: Sequence[str]) -> dict[str, str] | None:
    """One by one, for Redis 6 gives only one at a time; None once one may not be asked."""
    found: dict[str, str] = {}
    for name in names:
        answer: Mapping[Any, Any] | None = await _asked(redis.config_get(name))
        if answer is None:
            return None
        found |= {_text(known): _text(value) for known, value in answer.items()}
    return found


async def _asked(answer: Awaitable[T]) -> T | None:
    """None where this may not be asked: by this user, or of a Redis whose owner took the command away."""
    with redis_errors():
        try:
            return await answer
        except ResponseError as error:
            if isinstance(error, NoPermissionError) or "unknown command" in str(error):
                return None
            raise


def _text(word: str | bytes) -> str:
    return word.decode() if isinstance(word, bytes) else word
