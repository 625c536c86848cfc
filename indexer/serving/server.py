"""One shard's server: search, lookup and status over RPC. Vectors travel as little-endian float32.

It answers for one index a model; a call names the model by its fingerprint.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.index import VectorIndex
from indexer.rpc.frames import RpcRefused
from indexer.rpc.server import RpcServer, serve
from indexer.serving.batching import Batcher
from indexer.types import Query

SEARCHERS = 2
# What fits into a frame, with ids of 128 letters.
MOST_LACKING = 10_000


@dataclass(frozen=True, slots=True)
class _Answering:
    """One model's index, and what is known of it besides."""

    index: VectorIndex
    batcher: Batcher
    cursor: Callable[[], str]
    recall: Callable[[], float | None]


class ShardServer:
    """Answers for the indexes it was given; made by `serve_shard`."""

    def __init__(self, shard: int, threads: int) -> None:
        self._shard = shard
        self._threads = threads
        self._answering: dict[str, _Answering] = {}
        self._server: RpcServer

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def listen(self, address: str) -> None:
        """Start answering."""
        handlers = {
            "search": self._search,
            "lookup": self._lookup,
            "vectors": self._vectors,
            "status": self._status,
            "lacks": self._lacks,
        }
        self._server = await serve(address, handlers)

    def answer_for(
        self, index: VectorIndex, *, cursor: Callable[[], str], recall: Callable[[], float | None] = lambda: None
    ) -> None:
        """Answer calls for the model of this index from now on; status says what ``cursor`` and ``recall`` say."""
        batcher = Batcher(index.answer, searchers=SEARCHERS, threads=self._threads)
        self._answering[index.fingerprint] = _Answering(index, batcher, cursor, recall)

    def forget(self, fingerprint: str) -> None:
        """Refuse calls for this model from now on; those that wait are answered."""
        self._answering.pop(fingerprint, None)

    async def close(self) -> None:
        """Stop answering."""
        await self._server.close()
        for answering in self._answering.values():
            answering.batcher.close()

    async def _search(self, params: dict[str, Any]) -> dict[str, Any]:
        asked = self._asked(params.get("fingerprint"))
        try:
            queries = [_query(*query) for query in params["queries"]]
            for query in queries:
                asked.index.check(query)
        except (KeyError, TypeError, ValueError) as error:
            raise RpcRefused(f"bad search: {error}") from error
        # Read first: the answer holds at least what this generation held.
        generation = asked.index.generation
        return {"answers": await asked.batcher.search(queries), "generation": generation}

    async def _lookup(self, params: dict[str, Any]) -> dict[str, Any]:
        held = self._asked(params.get("fingerprint")).index.lookup(str(params.get("id")))
        if held is None:
            return {}
        return {"version": held.version, "vector": held.vector.astype("<f4").tobytes()}

    async def _vectors(self, params: dict[str, Any]) -> dict[str, Any]:
        index = self._asked(params.get("fingerprint")).index
        ids = params.get("ids")
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise RpcRefused("ids are a list of text")
        held = {id_: index.lookup(id_) for id_ in ids}
        return {id_: found.vector.astype("<f4").tobytes() for id_, found in held.items() if found}

    async def _status(self, params: dict[str, Any]) -> dict[str, Any]:
        asked = self._asked(params.get("fingerprint"))
        return {
            "shard": self._shard,
            "notes": len(asked.index),
            "generation": asked.index.generation,
            "recipe": asked.index.recipe.name,
            "fingerprint": asked.index.fingerprint,
            "cursor": asked.cursor(),
            "recall": asked.recall(),
            "delta": asked.index.figures.delta,
        }

    async def _lacks(self, params: dict[str, Any]) -> dict[str, Any]:
        asked, other = self._asked(params.get("fingerprint")), self._asked(params.get("other"))
        lacking = await asyncio.to_thread(asked.index.lacks, other.index)
        return {"count": len(lacking), "ids": lacking[:MOST_LACKING]}

    def _asked(self, fingerprint: object) -> _Answering:
        if not isinstance(fingerprint, str) or fingerprint not in self._answering:
            raise RpcRefused("another model")
        return self._answering[fingerprint]


def _query(vector: bytes, k: int, exclude: list[str], category: int, exclude_author: int) -> Query:
    """Raises TypeError or ValueError: what one caller sends must not fail the batch it is searched in."""
    if not all(type(number) is int for number in (k, category, exclude_author)):
        raise TypeError("k and labels are numbers")
    if not all(isinstance(id_, str) for id_ in exclude):
        raise TypeError("ids are text")
    return Query(np.frombuffer(vector, dtype="<f4"), k, exclude, category, exclude_author)


async def serve_shard(address: str, *, shard: int, threads: int = 1) -> ShardServer:
    """Listen at an address (see `indexer.rpc.frames`) for one shard, each search with so many threads.

    Raises:
        OSError: if the address cannot be bound.
    """
    server = ShardServer(shard, threads)
    await server.listen(address)
    return server
