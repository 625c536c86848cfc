"""What the commands about models and experiments ask of a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.settings import Settings
from service.store.connection import redis_wait
from service.wiring.process import share_secret

if TYPE_CHECKING:
    from indexer.serving.client import ShardedSearcher
    from service.store.experiments.experiments import Experiments
    from service.store.experiments.findings import Findings
    from service.store.experiments.watches import Watches
    from service.store.registry import Registered, Registry


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the commands ask: the registry and what it said, what is kept of experiments, and the shards."""

    registry: "Registry"
    experiments: "Experiments"
    watches: "Watches"
    findings: "Findings"
    registered: "Registered"
    searcher: "ShardedSearcher"


@asynccontextmanager
async def rollout(settings: Settings) -> AsyncIterator[Rollout]:
    """The service that is set, or the one that `notellm serve` runs in the state folder. Raises SetupError."""
    from indexer.serving.client import ShardedSearcher
    from service.processes.state import reach
    from service.store.cells.format import check_format
    from service.store.cells.size import check_size
    from service.store.experiments.experiments import Experiments
    from service.store.experiments.findings import Findings
    from service.store.experiments.watches import Watches
    from service.wiring import stores

    share_secret(settings)
    url, shards = reach(settings)
    searcher = ShardedSearcher(shards, "")
    try:
        async with stores.open_cells(url, settings.cells, replicas=redis_wait(settings)) as cells:
            await check_format(cells.first)
            await check_size(cells.first, len(cells))
            registry, first = stores.registry(cells), cells.first
            kept = Experiments(first), Watches(first), Findings(first)
            yield Rollout(registry, *kept, await registry.registered(), searcher)
    finally:
        await searcher.close()
