"""The models that a store knows, and which of them answers.

A model is registered by its first worker. From then on every note is queued for it and every indexer keeps an index
of it, until it is retired. One of the registered models is active: it is the one that gateways ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, ResponseError

from service.store.connection import redis_errors
from service.store.schema import ACTIVE, FAILED, FILLED, JOBS, LUA, MODELS, READINGS, WORKERS

if TYPE_CHECKING:
    from redis.asyncio import Redis

# ARGV: the model. 1 when it is the active one from now on.
ACTIVATE = (
    LUA
    + """
if not registered(ARGV[1]) then return 0 end
redis.call('SET', ACTIVE, ARGV[1])
return 1
"""
)

# ARGV: the model. Redis frees what was unlinked in a thread of its own, however much it is. 1 when it was retired.
RETIRE = (
    LUA
    + """
local model = ARGV[1]
if redis.call('GET', ACTIVE) == model then return 0 end
redis.call('HDEL', MODELS, model)
redis.call('SREM', FILLED, model)
redis.call('UNLINK', READINGS .. model, FAILED .. model, JOBS .. model)
for _, follower in ipairs(redis.call('HKEYS', CURSORS)) do
  if string.sub(follower, -#model - 1) == '/' .. model then redis.call('HDEL', CURSORS, follower) end
end
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Registered:
    """The registered models with the dimension of their vectors, and the active one: None before there is any."""

    dims: dict[str, int]
    active: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a model's workers are: notes read, given up and waiting.

    ``filled`` says that every live note was queued; ``idle_s`` is the time since a worker last asked for work, None if
    none ever did.
    """

    read: int
    failed: int
    waiting: int
    filled: bool
    idle_s: float | None


class Registry:
    """The models in Redis. Every call is atomic and raises StoreUnavailable."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._activate = redis.register_script(ACTIVATE)
        self._retire = redis.register_script(RETIRE)

    async def registered(self) -> Registered:
        """All of them, as of now."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(MODELS)
                pipe.get(ACTIVE)
                models, active = await pipe.execute()
        return Registered({model.decode(): int(dim) for model, dim in models.items()}, active and active.decode())

    async def active(self) -> str | None:
        """The fingerprint of the model that answers."""
        with redis_errors():
            active: Any = await self._redis.get(ACTIVE)
        return None if active is None else str(active.decode())

    async def progress(self, fingerprint: str) -> Progress:
        """Of a registered model."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hlen(READINGS + fingerprint)
                pipe.hlen(FAILED + fingerprint)
                pipe.xlen(JOBS + fingerprint)
                pipe.sismember(FILLED, fingerprint)
                read, failed, waiting, filled = await pipe.execute()
            return Progress(read, failed, waiting, bool(filled), await self._idle_s(fingerprint))

    async def gave_up(self, fingerprint: str, note_ids: Sequence[str]) -> int:
        """How many of these notes the model's workers gave up."""
        if not note_ids:
            return 0
        with redis_errors():
            failures: list[Any] = await self._redis.hmget(FAILED + fingerprint, list(note_ids))
        return sum(failure is not None for failure in failures)

    async def activate(self, fingerprint: str) -> bool:
        """Let this model answer from now on. False if it is not registered."""
        with redis_errors():
            return bool(await self._activate(args=[fingerprint]))

    async def retire(self, fingerprint: str) -> bool:
        """Forget everything that this model said; the indexers then remove its index. False if it is the active one."""
        with redis_errors():
            return bool(await self._retire(args=[fingerprint]))

    async def _idle_s(self, fingerprint: str) -> float | None:
        try:
            consumers: list[Any] = await self._redis.xinfo_consumers(JOBS + fingerprint, WORKERS)
        except NoPermissionError:
            raise
        except ResponseError:
            return None  # no stream, or no group: no worker came since it was made
        return min((consumer["idle"] / 1000 for consumer in consumers), default=None)
