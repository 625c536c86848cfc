"""How one model takes another's place: what has to hold before."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from indexer.types import ShardUnavailable
from service.errors import StoreUnavailable
from service.store.registry import Registry

if TYPE_CHECKING:
    from indexer.serving.client import ShardedSearcher


log = logging.getLogger(__name__)

TAKE_OVER_EVERY_S = 1.0
LACKS_S = 60.0


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
