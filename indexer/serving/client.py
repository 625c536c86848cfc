"""The index as the gateway sees it: calls all shards at once and merges their hits."""

import asyncio
import copy
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import neg
from typing import Any, NamedTuple, Self

import numpy as np

from indexer.filters.expression import Expression, Tree
from indexer.rpc.client import RpcClient
from indexer.rpc.frames import RpcError
from indexer.shards import replicas, shard_of
from indexer.types import Floats, Hits, IndexedVector, MissingNotes, SearchResult, ShardStatus, ShardUnavailable

log = logging.getLogger(__name__)

# A shard's part of the caller's timeout: the rest is for merging the hits of the others.
SHARD_PART = 0.8
COOLDOWN_S = 1.0
# So many searches, and ids of up to 128 characters, fit into a frame.
LARGEST_BATCH = 64
MOST_IDS = 20_000
_WIRE = np.dtype("<f4")


class Shard:
    """One shard's replicas, of which each can respond. They take turns; a failed one is avoided for a second."""

    def __init__(self, addresses: str) -> None:
        self._clients = [RpcClient(address) for address in replicas(addresses)]
        self._avoided_until_s = dict.fromkeys(self._clients, 0.0)

    async def call(self, method: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The response of the first replica that gives one. Each gets its share of the remaining time.

        Raises:
            RpcError: the last replica's, when all have failed.
        """
        clock = asyncio.get_running_loop().time
        end_s = clock() + timeout_s
        # Avoided replicas come last: if all are avoided, one of them may be back.
        turns = sorted(self._clients, key=lambda client: max(self._avoided_until_s[client] - clock(), 0))
        self._clients.append(self._clients.pop(0))
        for untried, client in zip(range(len(turns), 0, -1), turns, strict=True):
            try:
                return await client.call(method, params, timeout_s=(end_s - clock()) / untried)
            except RpcError as error:
                self._avoid(client, type(error).__name__)
                if untried == 1:
                    raise
        raise AssertionError("a shard has at least one replica")

    def begin(self, method: str, params: dict[str, Any]) -> "PendingCall | None":
        """`call` of the replica whose turn it is, without a task; see `end`.

        None if that replica is avoided, or cannot be called at once.
        """
        client = self._clients[0]
        if self._avoided_until_s[client] > asyncio.get_running_loop().time():
            return None
        response = client.begin(method, params)
        if response is None:
            return None
        self._clients.append(self._clients.pop(0))
        return PendingCall(client, response)

    def end(self, call: "PendingCall") -> dict[str, Any] | None:
        """The response; None if the replica failed or has not responded by now, and is avoided from now on."""
        response = call.response
        if not response.done():
            response.cancel()
            self._avoid(call.client, "RpcTimeout")
            return None
        if error := response.exception():
            self._avoid(call.client, type(error).__name__)
            return None
        return response.result()

    async def call_each(self, method: str, params: dict[str, Any], *, timeout_s: float) -> list[dict[str, Any]]:
        """The responses of all replicas that give one."""
        calls = [client.call(method, params, timeout_s=timeout_s) for client in self._clients]
        responses = await asyncio.gather(*calls, return_exceptions=True)
        return [response for response in responses if isinstance(response, dict)]

    async def close(self) -> None:
        """Break the connections."""
        await asyncio.gather(*(client.close() for client in self._clients))

    def _avoid(self, client: RpcClient, reason: str) -> None:
        self._avoided_until_s[client] = asyncio.get_running_loop().time() + COOLDOWN_S
        if len(self._clients) > 1:
            log.info("replica_failed", extra={"address": client.address, "reason": reason})


class PendingCall(NamedTuple):
    """A call in flight, and the replica that it was sent to."""

    client: RpcClient
    response: asyncio.Future[dict[str, Any]]


class ShardedSearcher:
    """`Searcher` over shard servers, given in the order of their numbers; see `indexer.shards.replicas`.

    It searches the index of one model. Shards without an index of that model refuse, and count as unavailable.
    """

    def __init__(self, addresses: Sequence[str], fingerprint: str) -> None:
        self._shards = [Shard(shard) for shard in addresses]
        self._replicas = max(len(replicas(shard)) for shard in addresses)
        self._fingerprint = fingerprint
        self._lost: set[tuple[str, int]] = set()
        self._waiting: list[_Search] = []
        self._searching: set[asyncio.Task[None]] = set()

    def of(self, fingerprint: str) -> Self:
        """A searcher of another model's index, on the same shards over the same connections."""
        other = copy.copy(self)
        other._fingerprint = fingerprint
        other._waiting = []
        return other

    async def search(
        self,
        vector: Floats,
        k: int,
        exclude: Sequence[str] = (),
        *,
        filter: Expression | None = None,  # noqa: A002
        timeout_s: float,
    ) -> SearchResult:
        """See `Searcher`. ``generation`` is the lowest of the responding shards.

        Searches of the same turn of the event loop travel together.
        """
        loop = asyncio.get_running_loop()
        query = (vector.astype(_WIRE, copy=False).tobytes(), k, list(exclude), filter.tree if filter else None)
        search = _Search(query, timeout_s, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._send_waiting)
        self._waiting.append(search)
        response = await search.response
        return SearchResult(
            hits=merge(response.hits_of_shards, k),
            generation=response.generation,
            shards_ok=len(response.hits_of_shards),
            shards_total=len(self._shards),
        )

    async def lookup(self, id: str, *, timeout_s: float) -> IndexedVector | None:  # noqa: A002
        """See `Searcher`."""
        shard = shard_of(id, len(self._shards))
        response = await self._call(shard, "lookup", {"id": id, "fingerprint": self._fingerprint}, timeout_s)
        if response is None:
            raise ShardUnavailable(f"shard {shard} does not respond")
        if not response:
            return None
        return IndexedVector(response["version"], np.frombuffer(response["vector"], dtype=_WIRE))

    async def holds(self, id: str, *, timeout_s: float) -> bool:  # noqa: A002
        """See `Searcher`."""
        shard = self._shards[shard_of(id, len(self._shards))]
        params = {"id": id, "fingerprint": self._fingerprint}
        return any(await shard.call_each("lookup", params, timeout_s=timeout_s))

    async def vectors(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, Floats]:
        """See `Searcher`."""
        vectors = await self._of_ids("vectors", ids, timeout_s)
        return {id_: np.frombuffer(vector, dtype=_WIRE) for id_, vector in vectors}

    async def versions(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, int]:
        """See `Searcher`."""
        return dict(await self._of_ids("versions", ids, timeout_s))

    async def status(self, *, timeout_s: float) -> list[ShardStatus]:
        """See `Searcher`."""
        responses = await self._call_all("status", {"fingerprint": self._fingerprint}, timeout_s)
        return [ShardStatus(**response) for response in responses]

    async def missing(self, other: str, *, timeout_s: float) -> MissingNotes:
        """Notes that another model's indexes hold and this one's do not, or only in an older version.

        Of a shard's replicas, the one that misses the most counts. Raises ShardUnavailable when a shard has no replica
        with both models.
        """
        params = {"fingerprint": self._fingerprint, "other": other}
        calls = (shard.call_each("missing", params, timeout_s=timeout_s) for shard in self._shards)
        count, ids = 0, []
        for number, responses in enumerate(await asyncio.gather(*calls)):
            if not responses:
                raise ShardUnavailable(f"shard {number} does not respond for both models")
            worst = max(responses, key=lambda response: int(response["count"]))
            count += worst["count"]
            ids += worst["ids"]
        return MissingNotes(count, ids)

    async def close(self) -> None:
        """Break the connections."""
        await asyncio.gather(*(shard.close() for shard in self._shards))

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for searches in _batches(waiting):
            task = asyncio.get_running_loop().create_task(self._search_all(searches))
            self._searching.add(task)
            task.add_done_callback(self._searching.discard)

    async def _search_all(self, searches: "list[_Search]") -> None:
        params = {"queries": [search.query for search in searches], "fingerprint": self._fingerprint}
        responses = await self._call_all("search", params, min(search.timeout_s for search in searches))
        generation = min((response["generation"] for response in responses), default=0)
        for place, search in enumerate(searches):
            if not search.response.done():  # the caller was not cancelled
                search.response.set_result(_Response([response["hits"][place] for response in responses], generation))

    async def _of_ids(self, method: str, ids: Sequence[str], timeout_s: float) -> Iterator[tuple[str, Any]]:
        """What the shards say of ids; each gets its own."""
        of_shard: dict[int, list[str]] = {}
        for id_ in ids:
            of_shard.setdefault(shard_of(id_, len(self._shards)), []).append(id_)
        calls = (
            self._call(shard, method, {"ids": own, "fingerprint": self._fingerprint}, timeout_s)
            for shard, own in of_shard.items()
        )
        return chain.from_iterable(response.items() for response in await asyncio.gather(*calls) if response)

    async def _call_all(self, method: str, params: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """The responses of all shards that give one.

        The first call of each shard needs no task, which would cost as much as a search. If it fails, a task calls the
        other replicas.
        """
        clock = asyncio.get_running_loop().time
        end_s = clock() + timeout_s
        calls = [shard.begin(method, params) for shard in self._shards]
        await _wait([call.response for call in calls if call], SHARD_PART * timeout_s / self._replicas)
        responses = [shard.end(call) if call else None for shard, call in zip(self._shards, calls, strict=True)]
        failed = [number for number, response in enumerate(responses) if response is None]
        if failed:
            retries = (self._call(number, method, params, end_s - clock()) for number in failed)
            for number, response in zip(failed, await asyncio.gather(*retries), strict=True):
                responses[number] = response
        for number in range(len(responses)) if self._lost else ():
            if responses[number] is not None:
                self._log_back(number)
        return [response for response in responses if response is not None]

    async def _call(self, shard: int, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The shard's response, or None; logged when that changes, not at every call."""
        lost = self._fingerprint, shard
        try:
            response = await self._shards[shard].call(method, params, timeout_s=SHARD_PART * timeout_s)
        except RpcError as error:
            if lost not in self._lost:
                self._lost.add(lost)
                log.warning("shard_lost", extra={"shard": shard, "reason": f"{type(error).__name__}: {error}"})
            return None
        self._log_back(shard)
        return response

    def _log_back(self, shard: int) -> None:
        lost = self._fingerprint, shard
        if lost in self._lost:
            self._lost.discard(lost)
            log.info("shard_back", extra={"shard": shard})


class _Response(NamedTuple):
    """Ids and scores of each shard that responded, and the lowest generation among them."""

    hits_of_shards: list[tuple[list[str], list[float]]]
    generation: int


class _Search(NamedTuple):
    """A search in flight: the query in its wire format, and the future of its caller."""

    query: tuple[bytes, int, list[str], Tree | None]
    timeout_s: float
    response: asyncio.Future[_Response]


async def _wait(responses: Sequence[asyncio.Future[Any]], timeout_s: float) -> None:
    """Wait until all are done or the time is over; cancelled itself, it cancels them."""
    if not responses:
        return
    try:
        await asyncio.wait(responses, timeout=timeout_s)
    except asyncio.CancelledError:
        for response in responses:
            response.cancel()
        raise


def _batches(searches: Sequence[_Search]) -> Iterator[list[_Search]]:
    """Batches of searches of which neither the queries nor the hits outgrow a frame."""
    batch: list[_Search] = []
    ids = 0
    for search in searches:
        own = search.query[1] + len(search.query[2])
        if batch and (len(batch) == LARGEST_BATCH or ids + own > MOST_IDS):
            yield batch
            batch, ids = [], 0
        batch.append(search)
        ids += own
    yield batch


def merge(hits_of_shards: Sequence[tuple[Sequence[str], Sequence[float]]], k: int) -> Hits:
    """The k best hits of several shards, closest first, ties by id.

    An id that two shards return, as they do while their number changes, is taken once, with its best score.
    """
    ranked = sorted(
        chain.from_iterable(zip(map(neg, scores_K), ids_K, strict=True) for ids_K, scores_K in hits_of_shards)
    )
    nearest = ranked[:k]
    if len({id_ for _, id_ in nearest}) == len(nearest):
        return Hits([id_ for _, id_ in nearest], [-negative for negative, _ in nearest])
    best: dict[str, float] = {}
    for negative, id_ in ranked:
        best.setdefault(id_, -negative)
        if len(best) == k:
            break
    return Hits(list(best), list(best.values()))
