"""One shard's server: search, lookup and status over RPC. Vectors travel as little-endian float32.

It answers for one index a model; a call names the model by its fingerprint.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.batching import Batcher
from indexer.index import VectorIndex
from indexer.rpc import RpcRefused, RpcServer, serve
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
        handlers = {"search": self._search, "lookup": self._lookup, "status": self._status, "lacks": self._lacks}
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
            query = _query(params)
            asked.index.check(query)
        except (KeyError, TypeError, ValueError) as error:
            raise RpcRefused(f"bad search: {error}") from error
        # Read first: the answer holds at least what this generation held.
        generation = asked.index.generation
        ids, scores = await asked.batcher.search(query)
        return {"ids": ids, "scores": scores, "generation": generation}

    async def _lookup(self, params: dict[str, Any]) -> dict[str, Any]:
        held = self._asked(params.get("fingerprint")).index.lookup(str(params.get("id")))
        if held is None:
            return {}
        return {"version": held.version, "vector": held.vector.astype("<f4").tobytes()}

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


def _query(params: dict[str, Any]) -> Query:
    """Raises KeyError, TypeError or ValueError: what one caller sends must not fail the batch it is searched in."""
    vector = np.frombuffer(params["vector"], dtype="<f4")
    k, exclude = params["k"], params["exclude"]
    # Callers of older releases know no filters.
    category, exclude_author = params.get("category", 0), params.get("exclude_author", 0)
    if not all(type(number) is int for number in (k, category, exclude_author)):
        raise TypeError("k and labels are numbers")
    if not all(isinstance(id_, str) for id_ in exclude):
        raise TypeError("ids are text")
    return Query(vector, k, exclude, category, exclude_author)


async def serve_shard(address: str, *, shard: int, threads: int = 1) -> ShardServer:
    """Listen at an address (see `indexer.rpc`) for one shard, each search with so many threads.

    Raises:
        OSError: if the address cannot be bound.
    """
    server = ShardServer(shard, threads)
    await server.listen(address)
    return server
