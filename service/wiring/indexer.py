"""One shard: the index, its snapshots and the stream that it follows."""

import asyncio
import contextlib
import logging
import sys
from functools import partial

from indexer.shards import replicas
from service import traces
from service.background import every, stop_event
from service.errors import StoreUnavailable
from service.processes.health import Readiness
from service.processes.ports import serving_at
from service.processes.state import make_folder
from service.settings import Settings
from service.store.connection import redis_url
from service.wiring.process import FOLLOW_EVERY_S, LOOK_EVERY_S, observed, own_address, share_secret, watched_cells

_SWITCH_S = 0.0005


def run(settings: Settings) -> None:
    """One shard: the index, its snapshots and the stream it follows."""
    import uvloop

    # Python's 5 ms are what a search would wait for a chore again and again, and the chores are in no hurry.
    sys.setswitchinterval(_SWITCH_S)
    traces.configure("indexer")
    share_secret(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    # It tells at length which of its builds it tried.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    from indexer.serving.server import serve_shard
    from service.shard.indexes import Indexes
    from service.shard.store_metrics import StoreWatch
    from service.store.cells.ring import Cells, names
    from service.store.changes import RedisChangeStream
    from service.store.connection import open_sync_redis
    from service.wiring import stores

    own = settings.index
    stop = stop_event()
    shard = replicas(own_address(own.addresses, own.number, "NOTELLM_INDEX__NUMBER"))
    address = own_address(shard, own.replica, "NOTELLM_INDEX__REPLICA")
    # Not the address: `serve` has other sockets after every start, and a name left behind holds the stream back.
    name = f"shard-{own.number}" if own.replica == 0 else f"shard-{own.number}-{own.replica}"
    url = redis_url(settings)
    missing = Readiness("the snapshot")

    def stream_of(fingerprint: str) -> RedisChangeStream:
        own = Cells.of(open_sync_redis(url, cell=cell) for cell in names(settings.cells))
        return stores.change_stream(own, fingerprint, name)

    with observed(settings.ops, missing, "indexer", ""):
        make_folder(own.snapshot_dir / name, "NOTELLM_INDEX__SNAPSHOT_DIR")
        with serving_at(address, "NOTELLM_INDEX__ADDRESSES"):
            server = await serve_shard(address, shard=own.number, threads=own.threads)
        indexes = Indexes(
            own.snapshot_dir / name,
            server,
            stream_of,
            shard=own.number,
            shards=len(own.addresses),
            snapshot_every_s=own.snapshot_every_s,
        )
        async with watched_cells(settings, missing) as cells:
            registry = stores.registry(cells)
            info, notes = partial(stores.cells_info, cells), stores.note_store(cells, settings.max_queue)
            watch = StoreWatch(info, registry, notes)

            async def adjust() -> None:
                with contextlib.suppress(StoreUnavailable):
                    registered = await registry.registered()
                    await indexes.adjust(registered.dims)
                    ready = registered.active is None or indexes.caught_up(registered.active)
                    missing.names = [] if ready else ["the changes so far"]

            try:
                await indexes.load()
                missing.names = ["the changes so far"]
                async with (
                    every(FOLLOW_EVERY_S, adjust),
                    every(LOOK_EVERY_S, indexes.measure_lag),
                    every(LOOK_EVERY_S, watch.look),
                ):
                    await stop.wait()
                await server.close()
            finally:
                await indexes.close()
