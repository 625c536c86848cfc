"""`notellm export related`, beside a service: from its notes, and from the index of the model that answers."""

import asyncio
import gc
from pathlib import Path

from service.backup.lists import Lists, RelatedLists
from service.settings import Settings, SetupError
from service.store.cells.format import check_format
from service.store.cells.size import check_size
from service.wiring import stores
from service.wiring.process import share_secret


def write_lists(settings: Settings, path: Path, k: int) -> Lists:
    """See `RelatedLists.write`. Of the service that is set, or that `notellm serve` runs in the state folder."""
    import uvloop

    share_secret(settings)
    # 20,000 lists leave a hundred objects in cycles: the collector walked over all cached notes a fifth of the time.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_write(settings, path, k))
    finally:
        gc.enable()


async def _write(settings: Settings, path: Path, k: int) -> Lists:
    from indexer.serving.client import ShardedSearcher
    from service.processes.state import reach

    url, shards = reach(settings)
    async with stores.open_cells(url, settings.cells) as cells:
        await check_format(cells.first)
        await check_size(cells.first, len(cells))
        fingerprint = await stores.registry(cells).active()
        if fingerprint is None:
            raise SetupError("no model answers yet: start a worker first")
        store, searcher = stores.note_store(cells, settings.max_queue), ShardedSearcher(shards, fingerprint)
        try:
            await store.index_ids()
            return await RelatedLists(store, searcher, fingerprint, settings.http.cached_notes).write(path, k)
        finally:
            await searcher.close()
