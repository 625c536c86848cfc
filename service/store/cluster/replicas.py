"""Writes that replicas have before they are acknowledged."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service.errors import StoreUnavailable
from service.store.schema import FENCE

# How long a write waits for them, as a part of the time that a call may take.
_PART = 0.75


class StoreRedis(Redis):
    """A client that knows how many replicas have to have what is acknowledged."""

    replicas = 0


class ReplicatedScript:
    """A script that returns when ``replicas`` have what it wrote; called as redis-py's own are.

    Behind it, on the same connection, come a write that changes nothing, and WAIT, which counts the replicas that have
    the last write of its connection. A repeated call finds all as it should be and writes nothing: without that write
    it would wait for nothing, though what it found may be on the primary alone.
    """

    def __init__(self, redis: Redis, script: str, replicas: int) -> None:
        self._redis = redis
        self._script = redis.register_script(script)
        self._replicas = replicas
        self._wait_ms = int(_PART * redis.connection_pool.connection_kwargs["socket_timeout"] * 1000)

    async def __call__(self, args: Sequence[Any]) -> Any:
        """What the script returns. Raises StoreUnavailable when too few have it in time: then it may be lost."""
        outcome, there = await self._run(args)
        if isinstance(outcome, NoScriptError):
            outcome, there = await self._run(args, load=True)
        for failed in (outcome, there):
            if isinstance(failed, Exception):
                raise failed
        if there < self._replicas:
            raise StoreUnavailable("too few replicas of the store have the write, so that it may be lost: repeat it")
        return outcome

    async def _run(self, args: Sequence[Any], *, load: bool = False) -> tuple[Any, Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            if load:  # here, for on another connection it may be another node that learns it
                pipe.script_load(self._script.script)
            pipe.evalsha(self._script.sha, 0, *args)
            pipe.set(FENCE, "")
            pipe.wait(self._replicas, self._wait_ms)
            *_, outcome, fence, there = await pipe.execute(raise_on_error=False)
        return outcome, fence if isinstance(fence, Exception) else there


def acknowledged(redis: Redis, script: str) -> Any:
    """A script whose success is told to clients; called as redis-py's own are, see `ReplicatedScript`."""
    if isinstance(redis, StoreRedis) and redis.replicas:
        return ReplicatedScript(redis, script, redis.replicas)
    return redis.register_script(script)
