"""Experiments in Redis: a hash of name to `Experiment`, and the scripts that change it.

The field ``""`` counts the changes, so that gateways see them by one number.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from service.store.cluster.replicas import acknowledged
from service.store.connection import redis_errors
from service.store.experiments.records import Arm, Experiment, free_slots
from service.store.experiments.watches import POINT
from service.store.schema import EXPERIMENTS, LUA

if TYPE_CHECKING:
    from redis.asyncio import Redis

REVISION = ""

# ARGV: the number of changes that it is based on, name and record, then a model to activate or "", then all models that
# it needs. 0 if there was another change, -1 if one of the models is not registered.
_PUT = (
    LUA
    + POINT
    + f"""
if (redis.call('HGET', '{EXPERIMENTS}', '{REVISION}') or '0') ~= ARGV[1] then return 0 end
for i = 5, #ARGV do
  if not registered(ARGV[i]) then return -1 end
end
redis.call('HSET', '{EXPERIMENTS}', ARGV[2], ARGV[3])
redis.call('HINCRBY', '{EXPERIMENTS}', '{REVISION}', 1)
if ARGV[4] ~= '' then point(ARGV[4]) end
return 1
"""
)

Outcome = Literal["done", "known", "unknown", "ended", "crowded", "unregistered"]


class Experiments:
    """All experiments. Every call is atomic and raises StoreUnavailable."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._put = acknowledged(redis, _PUT)

    async def changed(self, revision: int | None) -> tuple[int, list[Experiment]] | None:
        """All experiments by their start, and their revision; None if it is still this one: then it asks for a number.

        A record that cannot be read, of a later release, is left out.
        """
        with redis_errors():
            if revision is not None and int(await self._redis.hget(EXPERIMENTS, REVISION) or 0) == revision:
                return None
            kept: Any = await self._redis.hgetall(EXPERIMENTS)
        current = int(kept.pop(REVISION.encode(), 0))
        experiments = []
        for name, record in kept.items():
            try:
                experiments.append(Experiment.decode(name.decode(), record))
            except ValueError:
                continue
        return current, sorted(experiments, key=lambda one: (one.started_at, one.name))

    async def all(self) -> list[Experiment]:
        """All experiments, by their start."""
        return (await self._now())[1]

    async def start(self, name: str, arms: tuple[Arm, Arm], share: float) -> Outcome:
        """Start an experiment of ``share`` (0..1) of all readers: those in no other one.

        "known" if there was one of this name, "crowded" if others have too many of the readers, "unregistered" if a
        model was retired.
        """
        while True:
            revision, experiments = await self._now()
            if any(one.name == name for one in experiments):
                return "known"
            slots = free_slots(share, experiments)
            if slots is None:
                return "crowded"
            if outcome := await self._write(revision, Experiment(name, arms, slots, time.time())):
                return outcome

    async def stop(self, name: str) -> Outcome:
        """End it: its readers get the active model again. "unknown" or "ended" if it does not run."""
        return await self._end(name, None)

    async def ship(self, name: str, arm: str) -> Outcome:
        """End it, and activate the model of an arm in the same step. "unknown" also if it has no such arm."""
        return await self._end(name, arm)

    async def _end(self, name: str, shipped: str | None) -> Outcome:
        while True:
            revision, experiments = await self._now()
            found = next((one for one in experiments if one.name == name), None)
            if found is None or (shipped is not None and found.arm(shipped) is None):
                return "unknown"
            if not found.runs:
                return "ended"
            arm = found.arm(shipped) if shipped is not None else None
            ended = replace(found, ended_at=time.time(), shipped=shipped)
            if outcome := await self._write(revision, ended, arm.model if arm else ""):
                return outcome

    async def _now(self) -> tuple[int, list[Experiment]]:
        now = await self.changed(None)
        assert now is not None
        return now

    async def _write(self, revision: int, experiment: Experiment, activate: str = "") -> Outcome | None:
        """None if somebody else wrote meanwhile."""
        needed = experiment.models if experiment.runs else (activate,) if activate else ()
        with redis_errors():
            written = await self._put(args=[revision, experiment.name, experiment.encode(), activate, *needed])
        match int(written):
            case 1:
                return "done"
            case -1:
                return "unregistered"
        return None
