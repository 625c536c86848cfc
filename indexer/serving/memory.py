"""The index in memory, searched without FAISS; held to the same contract as the real one."""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.types import Hits, IndexedVector, Neighbor, SearchResult, ShardStatus, ShardUnavailable


class MemorySearcher:
    """`Searcher` over exact products, one dict a shard.

    The shards in ``down`` refuse, those in ``silent`` let every caller wait as long as it would.
    """

    def __init__(self, shards: int = 2, fingerprint: str = "memory") -> None:
        self.fingerprint = fingerprint
        self.down: set[int] = set()
        self.silent: set[int] = set()
        self.generation = 3
        self.searches = 0
        self._shards: list[dict[str, IndexedVector]] = [{} for _ in range(shards)]
        self._labels: dict[str, tuple[str | None, str | None]] = {}

    async def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        exclude: Sequence[str] = (),
        *,
        category: str | None = None,
        exclude_author: str | None = None,
        timeout_s: float,
    ) -> SearchResult:
        """See `Searcher`."""
        self.searches += 1
        up = await self._up(timeout_s)
        scored = [
            Neighbor(note_id, float(vector @ held.vector))
            for shard in up.values()
            for note_id, held in shard.items()
            if note_id not in exclude
            and category in (None, self._labels[note_id][0])
            and (exclude_author is None or exclude_author != self._labels[note_id][1])
        ]
        nearest = sorted(scored, key=lambda neighbor: -neighbor.score)[:k]
        hits = Hits([neighbor.id for neighbor in nearest], [neighbor.score for neighbor in nearest])
        return SearchResult(hits, self.generation, len(up), len(self._shards))

    async def lookup(self, id: str, *, timeout_s: float) -> IndexedVector | None:  # noqa: A002
        """See `Searcher`."""
        if self.shard_of(id) not in await self._up(timeout_s, [self.shard_of(id)]):
            raise ShardUnavailable("no answer")
        return self._shards[self.shard_of(id)].get(id)

    async def vectors(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, NDArray[np.float32]]:
        """See `Searcher`."""
        up = await self._up(timeout_s)
        return {id_: shard[id_].vector for shard in up.values() for id_ in ids if id_ in shard}

    async def status(self, *, timeout_s: float) -> list[ShardStatus]:
        """See `Searcher`."""
        return [
            ShardStatus(number, len(shard), self.generation, "flat", self.fingerprint, "0-1", 1.0, 0)
            for number, shard in (await self._up(timeout_s)).items()
        ]

    def shard_of(self, note_id: str) -> int:
        """The shard that holds the id."""
        return sum(note_id.encode()) % len(self._shards)

    def hold(
        self,
        note_id: str,
        version: int,
        vector: NDArray[np.float32],
        category: str | None = None,
        author: str | None = None,
    ) -> None:
        """What following the stream does to the index."""
        self._labels[note_id] = (category, author)
        self._shards[self.shard_of(note_id)][note_id] = IndexedVector(version, vector)

    def forget(self, note_id: str) -> None:
        """What a delete on the stream does to the index."""
        self._shards[self.shard_of(note_id)].pop(note_id, None)

    async def _up(self, timeout_s: float, asked: Sequence[int] | None = None) -> dict[int, dict[str, IndexedVector]]:
        """The shards that answer, by number, of those that are asked; a silent one costs all of the time."""
        numbers = range(len(self._shards)) if asked is None else asked
        if self.silent.intersection(numbers):
            await asyncio.sleep(timeout_s)
        return {number: self._shards[number] for number in numbers if number not in self.down | self.silent}
