"""How one model takes another's place: the gateways' side of it, and what has to hold before."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from indexer.types import ShardUnavailable
from service import metrics
from service.errors import StoreUnavailable
from service.registry import Registry

if TYPE_CHECKING:
    from indexer.client import ShardedSearcher

log = logging.getLogger(__name__)

T = TypeVar("T")

TAKE_OVER_EVERY_S = 1.0
LACKS_S = 60.0


class ActiveModel(Generic[T]):
    """What answers for the active model, made by ``make`` for each model that ever was.

    A request takes it once and keeps it to its end, so that no answer mixes models. Until the store has said which
    model is active, it is the one of ``fingerprint``.
    """

    def __init__(self, registry: Registry, fingerprint: str, make: Callable[[str], T]) -> None:
        self.fingerprint = fingerprint
        self._registry = registry
        self._make = make
        self._made: dict[str, T] = {}
        metrics.ACTIVE_MODEL.labels(fingerprint).set(1)

    def __call__(self) -> T:
        """As of now."""
        if self.fingerprint not in self._made:
            self._made[self.fingerprint] = self._make(self.fingerprint)
        return self._made[self.fingerprint]

    async def follow(self) -> None:
        """Ask once which model is active; to be called over and over. Without an answer the last one stays."""
        with suppress(StoreUnavailable):
            active = await self._registry.active()
            if active is not None and active != self.fingerprint:
                log.info("model_active", extra={"fingerprint": active, "before": self.fingerprint})
                metrics.ACTIVE_MODEL.labels(self.fingerprint).set(0)
                metrics.ACTIVE_MODEL.labels(active).set(1)
                self.fingerprint = active


@dataclass(frozen=True, slots=True)
class Gap:
    """How many notes the active model finds and another one does not; of those it gave ``given_up`` up."""

    notes: int
    given_up: int


async def gap(registry: Registry, searcher: "ShardedSearcher", fingerprint: str, active: str) -> Gap:
    """What the indexes of a model lack. Raises StoreUnavailable, and ShardUnavailable when not all shards can say."""
    lacking = await searcher.of(fingerprint).lacks(active, timeout_s=LACKS_S)
    return Gap(lacking.count, await registry.gave_up(fingerprint, lacking.ids))


async def take_over(registry: Registry, searcher: "ShardedSearcher", fingerprint: str) -> None:
    """Activate a model as soon as its index lacks no note but those that its workers gave up; then return."""
    while True:
        with suppress(StoreUnavailable, ShardUnavailable):
            registered = await registry.registered()
            if registered.active == fingerprint:
                return
            if registered.active and fingerprint in registered.dims:
                missing = await gap(registry, searcher, fingerprint, registered.active)
                if missing.notes == missing.given_up and await registry.activate(fingerprint):
                    log.info("model_activated", extra={"fingerprint": fingerprint, "before": registered.active})
                    return
        await asyncio.sleep(TAKE_OVER_EVERY_S)
