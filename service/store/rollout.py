"""A rollout: when one model may take another's place as the active one."""

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
LACKS_TIMEOUT_S = 60.0
_STATUS_S = 5.0
# A way back may lose one note in so many: those written a moment ago, or dead-lettered.
_MAY_LACK = 1000


@dataclass(frozen=True, slots=True)
class Gap:
    """Notes that the active model's index holds and another model's lacks; ``dead_lettered`` are part of ``notes``."""

    notes: int
    dead_lettered: int


async def gap(registry: Registry, searcher: "ShardedSearcher", fingerprint: str, active: str) -> Gap:
    """The gap of a model's index. Raises StoreUnavailable, and ShardUnavailable when a shard does not answer."""
    lacking = await searcher.of(fingerprint).missing(active, timeout_s=LACKS_TIMEOUT_S)
    return Gap(lacking.count, await registry.dead_lettered(fingerprint, lacking.ids))


async def obstacle(registry: Registry, searcher: "ShardedSearcher", fingerprint: str, active: str) -> str | None:
    """Why a model that was active cannot be so again, in words; None if it can. Raises StoreUnavailable."""
    if fingerprint not in (await registry.registered()).dims:
        return f"{fingerprint} is retired"
    try:
        lacking = await gap(registry, searcher, fingerprint, active)
    except ShardUnavailable as error:
        return f"{error}, so the notes that {fingerprint} lacks are unknown"
    states = await searcher.of(fingerprint).status(timeout_s=_STATUS_S)
    if lacking.notes > sum(state.notes for state in states) // _MAY_LACK:
        return f"{fingerprint} lacks {lacking.notes} notes"
    return None


async def take_over(registry: Registry, searcher: "ShardedSearcher", fingerprint: str) -> None:
    """Activate a model as soon as its index lacks dead-lettered notes alone; then return.

    Nothing is done for a model that was taken back: to try it again takes somebody's word.
    """
    while True:
        with suppress(StoreUnavailable, ShardUnavailable):
            registered = await registry.registered()
            if registered.active == fingerprint:
                return
            if await registry.was_taken_back(fingerprint):
                log.warning("model_not_activated", extra={"fingerprint": fingerprint, "why": "it was taken back"})
                return
            if registered.active and fingerprint in registered.dims:
                lacking = await gap(registry, searcher, fingerprint, registered.active)
                if lacking.notes == lacking.dead_lettered and await registry.activate(fingerprint):
                    log.info("model_activated", extra={"fingerprint": fingerprint, "before": registered.active})
                    return
        await asyncio.sleep(TAKE_OVER_EVERY_S)
