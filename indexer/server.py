"""One shard's server: search, lookup and status over RPC. Vectors travel as little-endian float32."""

from collections.abc import Callable
from typing import Any

import numpy as np

from indexer.batching import Batcher
from indexer.index import VectorIndex
from indexer.rpc import RpcRefused, RpcServer, serve
from indexer.types import Query

SEARCHERS = 2


class ShardServer:
    """Answers for one index; made by `serve_shard`."""

    def __init__(self, index: VectorIndex, shard: int, cursor: Callable[[], str], threads: int) -> None:
        self._index = index
        self._shard = shard
        self._cursor = cursor
        self._batcher = Batcher(index.answer, searchers=SEARCHERS, threads=threads)
        self._server: RpcServer

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def listen(self, address: str) -> None:
        """Start answering."""
        handlers = {"search": self._search, "lookup": self._lookup, "vectors": self._vectors, "status": self._status}
        self._server = await serve(address, handlers)

    async def close(self) -> None:
        """Stop answering."""
        await self._server.close()
        self._batcher.close()

    async def _search(self, params: dict[str, Any]) -> dict[str, Any]:
        self._same_model(params)
        try:
            queries = [_query(*query) for query in params["queries"]]
            for query in queries:
                self._index.check(query)
        except (KeyError, TypeError, ValueError) as error:
            raise RpcRefused(f"bad search: {error}") from error
        # Read first: the answer holds at least what this generation held.
        generation = self._index.generation
        return {"answers": await self._batcher.search(queries), "generation": generation}

    async def _lookup(self, params: dict[str, Any]) -> dict[str, Any]:
        self._same_model(params)
        held = self._index.lookup(str(params.get("id")))
        if held is None:
            return {}
        return {"version": held.version, "vector": held.vector.astype("<f4").tobytes()}

    async def _vectors(self, params: dict[str, Any]) -> dict[str, Any]:
        self._same_model(params)
        ids = params.get("ids")
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise RpcRefused("ids are a list of text")
        held = {id_: self._index.lookup(id_) for id_ in ids}
        return {id_: found.vector.astype("<f4").tobytes() for id_, found in held.items() if found}

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


def _query(vector: bytes, k: int, exclude: list[str], category: int, exclude_author: int) -> Query:
    """Raises TypeError or ValueError: what one caller sends must not fail the batch it is searched in."""
    if not all(type(number) is int for number in (k, category, exclude_author)):
        raise TypeError("k and labels are numbers")
    if not all(isinstance(id_, str) for id_ in exclude):
        raise TypeError("ids are text")
    return Query(np.frombuffer(vector, dtype="<f4"), k, exclude, category, exclude_author)


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
