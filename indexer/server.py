"""One shard's server: search, lookup and status over RPC. Vectors travel as little-endian float32."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import faiss
import numpy as np

from indexer.index import VectorIndex
from indexer.rpc import RpcRefused, RpcServer, serve

SEARCHERS = 2


class ShardServer:
    """Answers for one index; made by `serve_shard`."""

    def __init__(self, index: VectorIndex, shard: int, cursor: Callable[[], str], threads: int) -> None:
        self._index = index
        self._shard = shard
        self._cursor = cursor
        # OpenMP counts threads per calling thread: setting it once for the process would miss the pool.
        self._pool = ThreadPoolExecutor(SEARCHERS, "search", faiss.omp_set_num_threads, (threads,))
        self._server: RpcServer

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def listen(self, address: str) -> None:
        """Start answering."""
        handlers = {"search": self._search, "lookup": self._lookup, "status": self._status}
        self._server = await serve(address, handlers)

    async def close(self) -> None:
        """Stop answering."""
        await self._server.close()
        self._pool.shutdown()

    async def _search(self, params: dict[str, Any]) -> dict[str, Any]:
        self._same_model(params)
        loop = asyncio.get_running_loop()
        try:
            query_1D = np.frombuffer(params["vector"], dtype="<f4")[None]
            search = partial(self._index.search, query_1D, params["k"], params["exclude"])
            # Read first: the answer holds at least what this generation held.
            generation = self._index.generation
            [found] = await loop.run_in_executor(self._pool, search)
        except (KeyError, TypeError, ValueError) as error:
            raise RpcRefused(f"bad search: {error}") from error
        return {
            "ids": [neighbor.id for neighbor in found],
            "scores": [neighbor.score for neighbor in found],
            "generation": generation,
        }

    async def _lookup(self, params: dict[str, Any]) -> dict[str, Any]:
        self._same_model(params)
        held = self._index.lookup(str(params.get("id")))
        if held is None:
            return {}
        return {"version": held.version, "vector": held.vector.astype("<f4").tobytes()}

    async def _status(self, params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {
            "shard": self._shard,
            "notes": len(self._index),
            "generation": self._index.generation,
            "recipe": self._index.recipe.name,
            "fingerprint": self._index.fingerprint,
            "cursor": self._cursor(),
        }

    def _same_model(self, params: dict[str, Any]) -> None:
        if params.get("fingerprint") not in (None, self._index.fingerprint):
            raise RpcRefused("another model")


async def serve_shard(
    index: VectorIndex, address: str, *, shard: int, cursor: Callable[[], str], threads: int = 1
) -> ShardServer:
    """Serve an index at an address (see `indexer.rpc`), each search with so many threads.

    Raises:
        OSError: if the address cannot be bound.
    """
    server = ShardServer(index, shard, cursor, threads)
    await server.listen(address)
    return server
