"""Searches of one index with plain arrays, and real shard servers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from indexer.filters.expression import Expression
from indexer.index import VectorIndex
from indexer.serving.server import ShardServer, serve_shard
from indexer.shards import shard_of
from indexer.types import Change, Fields, Neighbor, Query


def neighbors(
    index: VectorIndex,
    queries_ND: np.ndarray,
    k: int,
    exclude: Sequence[str] = (),
    filter_: Expression | None = None,
) -> list[list[Neighbor]]:
    """The k nearest ids of each query by cosine, closest first. Raises ValueError for a query that `check` refuses."""
    queries = [Query(query_D, k, exclude, filter_) for query_D in queries_ND]
    for query in queries:
        index.check(query)
    return [list(map(Neighbor, *hits)) for hits in index.search(queries)]


async def serving(index: VectorIndex, shard: int, address: str = "127.0.0.1:0") -> ShardServer:
    """A shard's server of one index."""
    server = await serve_shard(address, shard=shard)
    server.add(index, cursor=lambda: "0-1")
    return server


@asynccontextmanager
async def silent_server(address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """A server that accepts connections and never responds; yields its address."""
    transports: list[asyncio.BaseTransport] = []

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(transport)

    host, port = address.split(":")
    async with await asyncio.get_running_loop().create_server(Silent, host, int(port)) as server:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"
        for transport in transports:
            transport.abort()


class Shards:
    """Real shard servers on free ports, of indexes that `put` and `remove` change."""

    def __init__(self, dim: int, shards: int) -> None:
        self.indexes = [VectorIndex(dim, "m") for _ in range(shards)]
        self.servers: list[ShardServer] = []

    async def start(self) -> None:
        for number, index in enumerate(self.indexes):
            self.servers.append(await serving(index, number))

    async def stop(self) -> None:
        for server in self.servers:
            await server.close()

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def shard_of(self, id_: str) -> int:
        return shard_of(id_, len(self.indexes))

    def put(
        self, id_: str, version: int, vector: np.ndarray, fields: Fields | None = None, *, hidden: bool = False
    ) -> None:
        change = Change("0-1", id_, version, "m", vector, fields=fields or {}, hidden=hidden)
        self.indexes[self.shard_of(id_)].apply([change])

    def remove(self, id_: str) -> None:
        self.indexes[self.shard_of(id_)].apply([Change("0-2", id_, 1000, "m", None)])
