"""What one indexer holds: an index of every registered model, each in step with the stream and with its own snapshots.

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
from service import metrics
from service.shard.metrics import count_changes, forget_index, measure_lag, watch_index, watch_memory
from service.store.changes import RedisChangeStream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Open:
    """A model's index, and what keeps it in step."""

    index: VectorIndex
    stream: RedisChangeStream
    follower: Follower


class Indexes:
    """One shard's indexes by model, and a server that answers for them. For one event loop.

    ``stream_of`` gives the stream of changes as the index of a model has to follow it.
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
        """Open every index that has a good snapshot: Redis, which knows the ones still wanted, may be away."""
        for fingerprint in self._kept():
            await self._begin(fingerprint, None)

    async def adjust(self, dims: Mapping[str, int]) -> None:
        """Hold indexes of these models and no others; ``dims`` says how long the vectors of each are."""
        for fingerprint in {*self._open, *self._kept()} - dims.keys():
            await self._remove(fingerprint)
        for fingerprint in dims.keys() - self._open.keys():
            await self._begin(fingerprint, dims[fingerprint])
        for fingerprint, one in self._open.items():
            if one.follower.caught_up.is_set():
                self._serve(fingerprint)

    def caught_up(self, fingerprint: str) -> bool:
        """Whether the index of this model was once in step with the stream."""
        return fingerprint in self._open and self._open[fingerprint].follower.caught_up.is_set()

    async def measure_lag(self) -> None:
        """Show how far behind the stream each index is."""
        for fingerprint, one in list(self._open.items()):
            await measure_lag(self._shard, fingerprint, one.stream, one.follower)

    async def close(self) -> None:
        """A last snapshot of each."""
        await asyncio.gather(*(asyncio.to_thread(one.follower.stop) for one in self._open.values()))

    def _kept(self) -> list[str]:
        """Every model that has a folder."""
        return [path.name for path in self._folder.iterdir() if path.is_dir()] if self._folder.is_dir() else []

    async def _begin(self, fingerprint: str, dim: int | None) -> None:
        """Load the newest good snapshot, or begin with nothing if the dimension is known, and follow the stream."""
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
            # Without a snapshot there is nothing to answer from yet; with one, it is better than silence.
            self._serve(fingerprint)

    def _serve(self, fingerprint: str) -> None:
        if fingerprint not in self._served:
            self._served.add(fingerprint)
            one = self._open[fingerprint]
            follower = one.follower
            self._server.answer_for(one.index, cursor=lambda: follower.cursor, recall=lambda: follower.recall)

    async def _remove(self, fingerprint: str) -> None:
        self._server.forget(fingerprint)
        self._served.discard(fingerprint)
        if one := self._open.pop(fingerprint, None):
            forget_index(self._shard, fingerprint)
            await asyncio.to_thread(one.follower.stop, save=False)
            log.info("index_removed", extra={"fingerprint": fingerprint})
        await asyncio.to_thread(shutil.rmtree, self._folder / fingerprint, ignore_errors=True)
