"""How the answers of each model go, in slots of ten seconds, counted by all gateways together.

A gateway counts in memory (`AnswerCounts`) and adds to a slot in Redis, by the clock of Redis. Slots are kept for two
hours, for the guard (`service.experiments.guard`). What a gateway counted while Redis was away is dropped: it would
fall into the wrong slots.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from service.errors import StoreUnavailable
from service.store.attribution.figures import NO_TIMES, SLOT_S, AnswerCounts, Clicks, Figures
from service.store.attribution.outcomes import GROUPS
from service.store.connection import redis_errors
from service.store.schema import ANSWERED, OUTCOMES, UNLESS_RESTORING

if TYPE_CHECKING:
    from redis.asyncio import Redis

_DAY_S = 24 * 3600
_KEPT_S = 2 * 3600

# ARGV: fields and what to add to them.
ADD = (
    UNLESS_RESTORING
    + f"""
local slot = '{ANSWERED}' .. math.floor(redis.call('TIME')[1] / {SLOT_S}) * {SLOT_S}
for i = 1, #ARGV, 2 do redis.call('HINCRBY', slot, ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', slot, {_KEPT_S})
"""
)


class Quality:
    """The counts of all gateways in Redis."""

    def __init__(self, redis: "Redis", counts: AnswerCounts) -> None:
        self._redis = redis
        self._counts = counts
        self._add = redis.register_script(ADD)

    async def flush(self) -> None:
        """Add what this gateway counted."""
        if taken := self._counts.taken():
            with suppress(StoreUnavailable), redis_errors():
                await self._add(args=taken)

    async def figures(self, model: str, since: float, until: float) -> list[Figures]:
        """Of each whole slot between two times. Raises StoreUnavailable."""
        first, last = -int(-since // SLOT_S) * SLOT_S, int(until // SLOT_S) * SLOT_S
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for slot in range(first, last, SLOT_S):
                    pipe.hgetall(f"{ANSWERED}{slot}")
                return [_figures(model, slot) for slot in await pipe.execute()]

    async def clicks(self, model: str, since: float, until: float) -> Clicks:
        """Of lists of the model in all days (UTC) from one time to another. Raises StoreUnavailable."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for day in range(int(since // _DAY_S), int(until // _DAY_S) + 1):
                    pipe.hgetall(f"{OUTCOMES}{day}")
                return _clicks(model, await pipe.execute())


def _figures(model: str, slot: dict[bytes, bytes]) -> Figures:
    times = {"l": list(NO_TIMES), "t": list(NO_TIMES)}
    others = {"e": 0, "f": 0}
    for name, count in slot.items():
        whose, _, what = name.decode().partition(" ")
        if whose == model and what in others:
            others[what] = int(count)
        elif whose == model:
            times[what[0]][int(what[1:])] = int(count)
    return Figures(tuple(times["l"]), tuple(times["t"]), others["e"], others["f"])


def _clicks(model: str, days: Iterable[Any]) -> Clicks:
    sources = {f"{scenario}.{model[:8]}" for scenario in "rs"}
    shown, clicked = [0] * GROUPS, [0] * GROUPS
    for day in days:
        for name, count in day.items():
            source, _, rest = name.decode().rpartition(" ")[0].rpartition(" ")
            if ".".join(source.split(".", 2)[:2]) in sources:
                (clicked if name.endswith(b" clicked") else shown)[int(rest)] += int(count)
    return Clicks(tuple(shown), tuple(clicked))
