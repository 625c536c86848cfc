"""A `Searcher` in memory, without FAISS and sockets, for tests of its callers."""

import asyncio
from collections.abc import Collection, Sequence
from typing import NamedTuple

from indexer.filters.expression import Expression
from indexer.serving.client import SHARD_PART, merge
from indexer.shards import shard_of
from indexer.types import Fields, Floats, IndexedVector, SearchResult, ShardStatus, ShardUnavailable


class _Row(NamedTuple):
    indexed: IndexedVector
    fields: Fields
    hidden: bool


class MemorySearcher:
    """`Searcher` by exact products, over one dict a shard.

    Shards in ``down`` refuse at once. Shards in ``silent`` never respond: a call waits for them as long as
    `ShardedSearcher` does. ``searches`` counts the searches.
    """

    def __init__(self, shards: int = 2, fingerprint: str = "memory") -> None:
        self.fingerprint = fingerprint
        self.down: set[int] = set()
        self.silent: set[int] = set()
        self.generation = 3
        self.searches = 0
        self._shards: list[dict[str, _Row]] = [{} for _ in range(shards)]

    async def search(
        self,
        vector: Floats,
        k: int,
        exclude: Sequence[str] = (),
        *,
        filter: Expression | None = None,  # noqa: A002
        timeout_s: float,
    ) -> SearchResult:
        """See `Searcher`."""
        self.searches += 1
        hits_of_shards = []
        for shard in await self._responding(range(len(self._shards)), timeout_s):
            scores = {
                id_: min(float(vector @ row.indexed.vector), 1.0)
                for id_, row in self._shards[shard].items()
                if id_ not in exclude and not row.hidden and (filter is None or filter.matches(row.fields))
            }
            hits_of_shards.append((list(scores), list(scores.values())))
        return SearchResult(merge(hits_of_shards, k), self.generation, len(hits_of_shards), len(self._shards))

    async def lookup(self, id: str, *, timeout_s: float) -> IndexedVector | None:  # noqa: A002
        """See `Searcher`."""
        shard = self.shard_of(id)
        if not await self._responding({shard}, timeout_s):
            raise ShardUnavailable(f"shard {shard} does not respond")
        row = self._shards[shard].get(id)
        return row.indexed if row else None

    async def holds(self, id: str, *, timeout_s: float) -> bool:  # noqa: A002
        """See `Searcher`."""
        shards = await self._responding({self.shard_of(id)}, timeout_s)
        return any(id in self._shards[shard] for shard in shards)

    async def vectors(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, Floats]:
        """See `Searcher`."""
        return {id_: indexed.vector for id_, indexed in await self._indexed(ids, timeout_s)}

    async def versions(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, int]:
        """See `Searcher`."""
        return {id_: indexed.version for id_, indexed in await self._indexed(ids, timeout_s)}

    async def status(self, *, timeout_s: float) -> list[ShardStatus]:
        """See `Searcher`."""
        return [
            ShardStatus(shard, len(self._shards[shard]), self.generation, "flat", self.fingerprint, "0-1", 1.0, 0)
            for shard in await self._responding(range(len(self._shards)), timeout_s)
        ]

    def shard_of(self, id_: str) -> int:
        """The shard of an id."""
        return shard_of(id_, len(self._shards))

    def put(
        self, id_: str, version: int, vector: Floats, fields: Fields | None = None, *, hidden: bool = False
    ) -> None:
        """Index a vector, as a shard does with an upsert."""
        self._shards[self.shard_of(id_)][id_] = _Row(IndexedVector(version, vector), fields or {}, hidden)

    def remove(self, id_: str) -> None:
        """Remove an id, as a shard does with a delete."""
        self._shards[self.shard_of(id_)].pop(id_, None)

    async def _indexed(self, ids: Sequence[str], timeout_s: float) -> list[tuple[str, IndexedVector]]:
        rows: dict[str, _Row] = {}
        for shard in await self._responding(set(map(self.shard_of, ids)), timeout_s):
            rows |= self._shards[shard]
        return [(id_, rows[id_].indexed) for id_ in ids if id_ in rows]

    async def _responding(self, shards: Collection[int], timeout_s: float) -> list[int]:
        """The shards that respond, of these."""
        if self.silent.intersection(shards):
            await asyncio.sleep(SHARD_PART * timeout_s)
        return [shard for shard in shards if shard not in self.down | self.silent]
