"""One shard's indexes: one a registered model, each following the stream of changes and with snapshots of its own.

::

    <folder>/<fingerprint>/   snapshots of that model's index
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from indexer.follow import Follower
from indexer.index import VectorIndex
from indexer.serving.server import ShardServer
from indexer.snapshot import Snapshots
from model.backend import is_fingerprint
from service import metrics
from service.shard.metrics import count_changes, forget_index, measure_lag, watch_index, watch_memory
from service.store.changes import RedisChangeStream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Open:
    """A model's index with its follower."""

    index: VectorIndex
    stream: RedisChangeStream
    follower: Follower


class Indexes:
    """One shard's indexes by model, served by ``server``. For one event loop.

    ``stream_of`` opens the stream of changes for the index of a model.
    """

    def __init__(
        self,
        folder: Path,
        server: ShardServer,
        stream_of: Callable[[str], RedisChangeStream],
        *,
        shard: int,
        shards: int,
        snapshot_every_s: float,
    ) -> None:
        self._folder = folder
        self._server = server
        self._stream_of = stream_of
        self._shard = shard
        self._shards = shards
        self._snapshot_every_s = snapshot_every_s
        self._open: dict[str, _Open] = {}
        self._served: set[str] = set()
        watch_memory(shard, lambda: sum(len(one.index) for one in self._open.values()))

    async def load(self) -> None:
        """Open every index with a good snapshot, without Redis, which may be away."""
        for fingerprint in self._folders():
            await self._open_index(fingerprint, None)

    async def adjust(self, dims: Mapping[str, int]) -> None:
        """Open the indexes of these models and remove all others; ``dims`` are the dimensions of their vectors.

        A name that is no fingerprint is left out: it would lead to another folder.
        """
        dims = {fingerprint: dim for fingerprint, dim in dims.items() if is_fingerprint(fingerprint)}
        for fingerprint in {*self._open, *self._folders()} - dims.keys():
            await self._remove(fingerprint)
        for fingerprint in dims.keys() - self._open.keys():
            await self._open_index(fingerprint, dims[fingerprint])
        for fingerprint, one in self._open.items():
            if one.follower.caught_up.is_set():
                self._serve(fingerprint)

    def caught_up(self, fingerprint: str) -> bool:
        """Whether the index of this model has caught up with the stream once."""
        return fingerprint in self._open and self._open[fingerprint].follower.caught_up.is_set()

    async def measure_lag(self) -> None:
        """Measure the lag of each index."""
        for fingerprint, one in list(self._open.items()):
            await measure_lag(self._shard, fingerprint, one.stream, one.follower)

    async def close(self) -> None:
        """Save a last snapshot of each."""
        await asyncio.gather(*(asyncio.to_thread(one.follower.stop) for one in self._open.values()))

    def _folders(self) -> list[str]:
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        return [path.name for path in paths if is_fingerprint(path.name) and path.is_dir()]

    async def _open_index(self, fingerprint: str, dim: int | None) -> None:
        """Load the newest good snapshot, or start empty if the dimension is known, and follow the stream."""
        folder = self._folder / fingerprint
        snapshots = Snapshots(folder, fingerprint, self._shard, self._shards)
        loaded = await asyncio.to_thread(snapshots.load)
        if loaded:
            index, cursor = loaded
        elif dim is not None:
            index, cursor = VectorIndex(dim, fingerprint, folder), None
        else:
            return
        stream = self._stream_of(fingerprint)
        follower = Follower(
            index,
            stream,
            snapshots,
            cursor,
            snapshot_every_s=self._snapshot_every_s,
            on_batch=count_changes(self._shard, fingerprint),
            on_failure=lambda chore: metrics.INDEX_CHORES_FAILED.labels(str(self._shard), fingerprint, chore).inc(),
        )
        self._open[fingerprint] = _Open(index, stream, follower)
        watch_index(self._shard, index, follower)
        follower.start()
        log.info("index_opened", extra={"fingerprint": fingerprint, "loaded": bool(loaded)})
        if loaded:
            # An index from a snapshot answers at once; an empty one when it has caught up.
            self._serve(fingerprint)

    def _serve(self, fingerprint: str) -> None:
        if fingerprint not in self._served:
            self._served.add(fingerprint)
            one = self._open[fingerprint]
            follower = one.follower
            self._server.add(one.index, cursor=lambda: follower.cursor, recall=lambda: follower.recall)

    async def _remove(self, fingerprint: str) -> None:
        self._server.remove(fingerprint)
        self._served.discard(fingerprint)
        if one := self._open.pop(fingerprint, None):
            forget_index(self._shard, fingerprint)
            await asyncio.to_thread(one.follower.stop, save=False)
            log.info("index_removed", extra={"fingerprint": fingerprint})
        await asyncio.to_thread(shutil.rmtree, self._folder / fingerprint, ignore_errors=True)
