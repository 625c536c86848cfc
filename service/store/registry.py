"""The registered models, and the active one.

A model is registered by its first worker. From then on every note is queued for it and every indexer keeps an index
of it, until it is retired. One of the registered models is active: gateways answer with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, ResponseError

from service.store.cluster.replicas import acknowledged
from service.store.connection import redis_errors
from service.store.experiments.watches import POINT
from service.store.schema import ACTIVE, EXPERIMENTS, FAILED, FILLED, JOBS, LUA, MODELS, READINGS, WATCH, WORKERS

if TYPE_CHECKING:
    from redis.asyncio import Redis

# ARGV: the model. 1 when it is active from now on.
ACTIVATE = (
    LUA
    + POINT
    + """
if not registered(ARGV[1]) then return 0 end
point(ARGV[1])
return 1
"""
)

# ARGV: the model. Redis frees unlinked keys of any size in a thread of its own. 1 when it was retired.
RETIRE = (
    LUA
    + f"""
local model = ARGV[1]
if redis.call('GET', ACTIVE) == model then return 0 end
local kept = redis.call('HGETALL', '{EXPERIMENTS}')
for i = 1, #kept, 2 do
  if kept[i] ~= '' then
    local experiment = cjson.decode(kept[i + 1])
    for _, arm in ipairs(experiment.arms) do
      if experiment.ended_at == cjson.null and arm.model == model then return 0 end
    end
  end
end
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
    """The registered models with the dimension of their vectors, and the active one: None before the first."""

    dims: dict[str, int]
    active: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a model's workers are: notes predicted, dead-lettered and waiting.

    ``filled`` says that every live note was queued; ``idle_s`` is the time since a worker last asked for jobs, None if
    none ever did.
    """

    predicted: int
    dead_lettered: int
    waiting: int
    filled: bool
    idle_s: float | None


class Registry:
    """The models in Redis. Every call is atomic and raises StoreUnavailable."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._activate = acknowledged(redis, ACTIVATE)
        self._retire = acknowledged(redis, RETIRE)

    async def registered(self) -> Registered:
        """All models, as of now."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(MODELS)
                pipe.get(ACTIVE)
                models, active = await pipe.execute()
        return Registered({model.decode(): int(dim) for model, dim in models.items()}, active and active.decode())

    async def active(self) -> str | None:
        """The fingerprint of the active model."""
        with redis_errors():
            active: Any = await self._redis.get(ACTIVE)
        return None if active is None else str(active.decode())

    async def progress(self, fingerprint: str) -> Progress:
        """Progress of a registered model."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hlen(READINGS + fingerprint)
                pipe.hlen(FAILED + fingerprint)
                pipe.xlen(JOBS + fingerprint)
                pipe.sismember(FILLED, fingerprint)
                predicted, dead_lettered, waiting, filled = await pipe.execute()
            idle_s = await self._idle_s(fingerprint)
        return Progress(predicted, dead_lettered, waiting, bool(filled), idle_s)

    async def dead_lettered(self, fingerprint: str, note_ids: Sequence[str]) -> int:
        """How many of these notes are dead-lettered for the model."""
        if not note_ids:
            return 0
        with redis_errors():
            failures: list[Any] = await self._redis.hmget(FAILED + fingerprint, list(note_ids))
        return sum(failure is not None for failure in failures)

    async def activate(self, fingerprint: str) -> bool:
        """Make this model the active one, watched against the one before. False if it is not registered."""
        with redis_errors():
            return bool(await self._activate(args=[fingerprint]))

    async def follow(self) -> None:
        """Make the active model that of every cell; here there is one."""

    async def was_taken_back(self, fingerprint: str) -> bool:
        """Whether this model was active last, and had to go for its answers."""
        with redis_errors():
            model, state = await self._redis.hmget(WATCH, ["model", "state"])
        return (model, state) == (fingerprint.encode(), b"taken_back")

    async def retire(self, fingerprint: str) -> bool:
        """Delete the model's predictions and jobs; indexers then remove its index.

        False if it is the active one, or in an experiment that runs.
        """
        with redis_errors():
            return bool(await self._retire(args=[fingerprint]))

    async def _idle_s(self, fingerprint: str) -> float | None:
        try:
            consumers: list[Any] = await self._redis.xinfo_consumers(JOBS + fingerprint, WORKERS)
        except NoPermissionError:
            raise
        except ResponseError:
            return None  # no stream, or no group: no worker since the stream was made
        return min((consumer["idle"] / 1000 for consumer in consumers), default=None)
