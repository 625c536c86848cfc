"""One shard's server: search, lookup and status over RPC. Vectors travel as little-endian float32.

It serves one index a model; a call names the model by its fingerprint.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.filters.expression import of_tree
from indexer.index import VectorIndex
from indexer.rpc.frames import RpcRefused
from indexer.rpc.server import RpcServer, serve
from indexer.serving.batching import Batcher
from indexer.types import IndexedVector, Query

SEARCHERS = 2
# So many ids of 128 letters fit into a frame.
MOST_MISSING = 10_000


@dataclass(frozen=True, slots=True)
class _Served:
    """One model's index, with its cursor and recall for `status`."""

    index: VectorIndex
    batcher: Batcher
    cursor: Callable[[], str]
    recall: Callable[[], float | None]


class ShardServer:
    """Serves the indexes that were added; made by `serve_shard`."""

    def __init__(self, shard: int, threads: int) -> None:
        self._shard = shard
        self._threads = threads
        self._served: dict[str, _Served] = {}
        self._server: RpcServer

    @property
    def address(self) -> str:
        """The address it listens at."""
        return self._server.address

    async def listen(self, address: str) -> None:
        """Start serving."""
        handlers = {
            "search": self._search,
            "lookup": self._lookup,
            "vectors": self._vectors,
            "versions": self._versions,
            "status": self._status,
            "missing": self._missing,
        }
        self._server = await serve(address, handlers)

    def add(
        self, index: VectorIndex, *, cursor: Callable[[], str], recall: Callable[[], float | None] = lambda: None
    ) -> None:
        """Serve this index from now on; `status` reports ``cursor()`` and ``recall()``."""
        batcher = Batcher(index.search, searchers=SEARCHERS, threads=self._threads)
        self._served[index.fingerprint] = _Served(index, batcher, cursor, recall)

    def remove(self, fingerprint: str) -> None:
        """Refuse new calls for this model; calls in progress complete."""
        self._served.pop(fingerprint, None)

    async def close(self) -> None:
        """Stop serving."""
        await self._server.close()
        for served in self._served.values():
            served.batcher.close()

    async def _search(self, params: dict[str, Any]) -> dict[str, Any]:
        served = self._find(params.get("fingerprint"))
        try:
            queries = [_query(*query) for query in params["queries"]]
            for query in queries:
                served.index.check(query)
        except (KeyError, TypeError, ValueError) as error:
            raise RpcRefused(f"bad search: {error}") from error
        # Taken before the search, which uses at least this generation.
        generation = served.index.generation
        return {"hits": await served.batcher.search(queries), "generation": generation}

    async def _lookup(self, params: dict[str, Any]) -> dict[str, Any]:
        indexed = self._find(params.get("fingerprint")).index.lookup(str(params.get("id")))
        return {} if indexed is None else {"version": indexed.version, "vector": _to_wire(indexed)}

    async def _vectors(self, params: dict[str, Any]) -> dict[str, Any]:
        return {id_: _to_wire(indexed) for id_, indexed in self._lookups(params)}

    async def _versions(self, params: dict[str, Any]) -> dict[str, Any]:
        return {id_: indexed.version for id_, indexed in self._lookups(params)}

    def _lookups(self, params: dict[str, Any]) -> Iterator[tuple[str, IndexedVector]]:
        index = self._find(params.get("fingerprint")).index
        ids = params.get("ids")
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise RpcRefused("ids are a list of text")
        return ((id_, indexed) for id_ in ids if (indexed := index.lookup(id_)))

    async def _status(self, params: dict[str, Any]) -> dict[str, Any]:
        served = self._find(params.get("fingerprint"))
        return {
            "shard": self._shard,
            "notes": len(served.index),
            "generation": served.index.generation,
            "recipe": served.index.recipe.name,
            "fingerprint": served.index.fingerprint,
            "cursor": served.cursor(),
            "recall": served.recall(),
            "delta": served.index.figures.delta,
        }

    async def _missing(self, params: dict[str, Any]) -> dict[str, Any]:
        served, other = self._find(params.get("fingerprint")), self._find(params.get("other"))
        ids = await asyncio.to_thread(served.index.missing, other.index)
        return {"count": len(ids), "ids": ids[:MOST_MISSING]}

    def _find(self, fingerprint: object) -> _Served:
        if not isinstance(fingerprint, str) or fingerprint not in self._served:
            raise RpcRefused("another model")
        return self._served[fingerprint]


def _to_wire(indexed: IndexedVector) -> bytes:
    return indexed.vector.astype("<f4", copy=False).tobytes()


def _query(vector: bytes, k: int, exclude: list[str], filter_: list[Any] | None) -> Query:
    """Raises TypeError or ValueError: one caller's mistake must not fail the batch of all."""
    if type(k) is not int:
        raise TypeError("k is a number")
    if not all(isinstance(id_, str) for id_ in exclude):
        raise TypeError("ids are text")
    return Query(np.frombuffer(vector, dtype="<f4"), k, exclude, None if filter_ is None else of_tree(filter_))


async def serve_shard(address: str, *, shard: int, threads: int = 1) -> ShardServer:
    """Listen at an address (see `indexer.rpc.frames`) for one shard, each search with so many threads.

    Raises:
        OSError: if the address cannot be bound.
    """
    server = ShardServer(shard, threads)
    await server.listen(address)
    return server
