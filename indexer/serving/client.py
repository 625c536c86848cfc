"""The index as the gateway sees it: every shard asked at once, answers merged."""

import asyncio
import copy
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import neg
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from indexer.rpc.client import RpcClient
from indexer.rpc.frames import RpcError
from indexer.shards import replicas, shard_of
from indexer.types import Hits, IndexedVector, Lacking, SearchResult, ShardStatus, ShardUnavailable, label

log = logging.getLogger(__name__)

# Of the caller's time: the rest is for what came back from the others.
SHARD_PART = 0.8
REST_S = 1.0
# What one frame carries of searches and of ids, which have at most 128 characters.
LARGEST_BATCH = 64
MOST_IDS = 20_000
_WIRE = np.dtype("<f4")


class Shard:
    """One shard's replicas, of which any may answer. They take turns; one that failed rests for a second."""

    def __init__(self, addresses: str) -> None:
        self._clients = [RpcClient(address) for address in replicas(addresses)]
        self._resting_until_s = dict.fromkeys(self._clients, 0.0)

    async def call(self, method: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The answer of the first that gives one. Each gets its part of the time that is left.

        Raises:
            RpcError: the last replica's, when all have failed.
        """
        clock = asyncio.get_running_loop()
        end_s = clock.time() + timeout_s
        # Those that rest come last and not never: when all do, one of them may be back.
        turns = sorted(self._clients, key=lambda client: max(self._resting_until_s[client] - clock.time(), 0))
        self._clients.append(self._clients.pop(0))
        for untried, client in zip(range(len(turns), 0, -1), turns, strict=True):
            try:
                return await client.call(method, params, timeout_s=(end_s - clock.time()) / untried)
            except RpcError as error:
                self._rest(client, type(error).__name__)
                if untried == 1:
                    raise
        raise AssertionError("a shard has at least one replica")

    def begin(self, method: str, params: dict[str, Any]) -> "Begun | None":
        """The same call to the replica whose turn it is, without a task; `end` says what came of it.

        None when that one rests, or could not be asked at once.
        """
        client = self._clients[0]
        if self._resting_until_s[client] > asyncio.get_running_loop().time():
            return None
        answer = client.begin(method, params)
        if answer is None:
            return None
        self._clients.append(self._clients.pop(0))
        return Begun(client, answer)

    def end(self, begun: "Begun") -> dict[str, Any] | None:
        """The answer; None, and a rest for the replica, if it failed or has not answered until now."""
        answer = begun.answer
        if not answer.done():
            answer.cancel()
            self._rest(begun.client, "RpcTimeout")
            return None
        if error := answer.exception():
            self._rest(begun.client, type(error).__name__)
            return None
        return answer.result()

    async def call_each(self, method: str, params: dict[str, Any], *, timeout_s: float) -> list[dict[str, Any]]:
        """The answers of all replicas that give one."""
        calls = [client.call(method, params, timeout_s=timeout_s) for client in self._clients]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, dict)]

    async def close(self) -> None:
        """Break the connections."""
        await asyncio.gather(*(client.close() for client in self._clients))

    def _rest(self, client: RpcClient, reason: str) -> None:
        self._resting_until_s[client] = asyncio.get_running_loop().time() + REST_S
        if len(self._clients) > 1:
            log.info("replica_failed", extra={"address": client.address, "reason": reason})


class Begun(NamedTuple):
    """A call on its way, and the replica that it was sent to."""

    client: RpcClient
    answer: asyncio.Future[dict[str, Any]]


class ShardedSearcher:
    """`Searcher` over shard servers, given in the order of their numbers; see `indexer.shards.replicas`.

    It asks for the index of one model. Shards that hold none of that model refuse, and count as not answering.
    """

    def __init__(self, addresses: Sequence[str], fingerprint: str) -> None:
        self._shards = [Shard(shard) for shard in addresses]
        self._replicas = max(len(replicas(shard)) for shard in addresses)
        self._fingerprint = fingerprint
        self._lost: set[tuple[str, int]] = set()
        self._waiting: list[_Search] = []
        self._searching: set[asyncio.Task[None]] = set()

    def of(self, fingerprint: str) -> Self:
        """The same shards over the same connections, asked for another model's index."""
        other = copy.copy(self)
        other._fingerprint = fingerprint
        other._waiting = []
        return other

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
        """The k nearest over all shards that answer. ``generation`` is the lowest among them.

        Searches of the same turn of the event loop travel together.
        """
        loop = asyncio.get_running_loop()
        query = (vector.astype(_WIRE, copy=False).tobytes(), k, list(exclude), label(category), label(exclude_author))
        search = _Search(query, timeout_s, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._send_waiting)
        self._waiting.append(search)
        answers = await search.answers
        return SearchResult(
            hits=merge(answers.of_shards, k),
            generation=answers.generation,
            shards_ok=len(answers.of_shards),
            shards_total=len(self._shards),
        )

    async def lookup(self, id: str, *, timeout_s: float) -> IndexedVector | None:  # noqa: A002
        """What the id's own shard holds. Raises ShardUnavailable when that shard does not answer."""
        shard = shard_of(id, len(self._shards))
        answer = await self._ask(shard, "lookup", {"id": id, "fingerprint": self._fingerprint}, timeout_s)
        if answer is None:
            raise ShardUnavailable(f"shard {shard} does not answer")
        if not answer:
            return None
        return IndexedVector(answer["version"], np.frombuffer(answer["vector"], dtype="<f4"))

    async def vectors(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, NDArray[np.float32]]:
        """Each shard is asked for its own ids."""
        of_shard: dict[int, list[str]] = {}
        for id_ in ids:
            of_shard.setdefault(shard_of(id_, len(self._shards)), []).append(id_)
        answers = await asyncio.gather(
            *(
                self._ask(shard, "vectors", {"ids": own, "fingerprint": self._fingerprint}, timeout_s)
                for shard, own in of_shard.items()
            )
        )
        return {
            id_: np.frombuffer(vector, dtype="<f4") for answer in answers if answer for id_, vector in answer.items()
        }

    async def status(self, *, timeout_s: float) -> list[ShardStatus]:
        """State of the shards that answer, by shard number."""
        answers = await self._ask_all("status", {"fingerprint": self._fingerprint}, timeout_s)
        return [ShardStatus(**answer) for answer in answers]

    async def lacks(self, other: str, *, timeout_s: float) -> Lacking:
        """What the indexes of another model hold and those of this one do not, or only in an older version.

        Of a shard's replicas, the one that lacks the most is believed. Raises ShardUnavailable when a shard has none
        that answers for both models.
        """
        params = {"fingerprint": self._fingerprint, "other": other}
        calls = (shard.call_each("lacks", params, timeout_s=timeout_s) for shard in self._shards)
        count, ids = 0, []
        for number, answers in enumerate(await asyncio.gather(*calls)):
            if not answers:
                raise ShardUnavailable(f"shard {number} does not answer for both models")
            worst = max(answers, key=lambda answer: int(answer["count"]))
            count += worst["count"]
            ids += worst["ids"]
        return Lacking(count, ids)

    async def close(self) -> None:
        """Break the connections."""
        await asyncio.gather(*(shard.close() for shard in self._shards))

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for searches in _fitting(waiting):
            task = asyncio.get_running_loop().create_task(self._search_all(searches))
            self._searching.add(task)
            task.add_done_callback(self._searching.discard)

    async def _search_all(self, searches: "list[_Search]") -> None:
        params = {"queries": [search.query for search in searches], "fingerprint": self._fingerprint}
        found = await self._ask_all("search", params, min(search.timeout_s for search in searches))
        generation = min((answer["generation"] for answer in found), default=0)
        for place, search in enumerate(searches):
            if not search.answers.done():  # its caller gave up
                search.answers.set_result(_Answers([answer["answers"][place] for answer in found], generation))

    async def _ask_all(self, method: str, params: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """What the shards answer, those that do.

        One replica of each is asked without a task, for a task costs as much as a search. Only where that one fails,
        the others get their turns.
        """
        clock = asyncio.get_running_loop().time
        end_s = clock() + timeout_s
        begun = [shard.begin(method, params) for shard in self._shards]
        await _settled([call.answer for call in begun if call], SHARD_PART * timeout_s / self._replicas)
        answers = [shard.end(call) if call else None for shard, call in zip(self._shards, begun, strict=True)]
        silent = [number for number, answer in enumerate(answers) if answer is None]
        if silent:
            later = (self._ask(number, method, params, end_s - clock()) for number in silent)
            for number, answer in zip(silent, await asyncio.gather(*later), strict=True):
                answers[number] = answer
        for number in range(len(answers)) if self._lost else ():
            if answers[number] is not None:
                self._answered(number)
        return [answer for answer in answers if answer is not None]

    async def _ask(self, shard: int, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The shard's answer, or None; logged when that changes, not at every call."""
        lost = self._fingerprint, shard
        try:
            answer = await self._shards[shard].call(method, params, timeout_s=SHARD_PART * timeout_s)
        except RpcError as error:
            if lost not in self._lost:
                self._lost.add(lost)
                log.warning("shard_lost", extra={"shard": shard, "reason": f"{type(error).__name__}: {error}"})
            return None
        self._answered(shard)
        return answer

    def _answered(self, shard: int) -> None:
        lost = self._fingerprint, shard
        if lost in self._lost:
            self._lost.discard(lost)
            log.info("shard_back", extra={"shard": shard})


class _Answers(NamedTuple):
    """Ids and scores of each shard that answered, and the lowest generation among them."""

    of_shards: list[tuple[list[str], list[float]]]
    generation: int


class _Search(NamedTuple):
    """A search on its way: the query as it travels, and who waits for the answers."""

    query: tuple[bytes, int, list[str], int, int]
    timeout_s: float
    answers: asyncio.Future[_Answers]


async def _settled(answers: Sequence[asyncio.Future[Any]], timeout_s: float) -> None:
    """Wait until all are done, so long at most."""
    if not answers:
        return
    try:
        await asyncio.wait(answers, timeout=timeout_s)
    except asyncio.CancelledError:
        for answer in answers:
            answer.cancel()
        raise


def _fitting(searches: Sequence[_Search]) -> Iterator[list[_Search]]:
    """Searches in groups of which neither the queries nor the answers outgrow a frame."""
    group: list[_Search] = []
    ids = 0
    for search in searches:
        own = search.query[1] + len(search.query[2])
        if group and (len(group) == LARGEST_BATCH or ids + own > MOST_IDS):
            yield group
            group, ids = [], 0
        group.append(search)
        ids += own
    yield group


def merge(answers: Sequence[tuple[Sequence[str], Sequence[float]]], k: int) -> Hits:
    """The k best of several answers, each ids and scores, closest first, ties by id.

    An id that two shards answer, as they do while their number changes, is taken once, with its best score.
    """
    hits = sorted(chain.from_iterable(zip(map(neg, scores_K), ids_K, strict=True) for ids_K, scores_K in answers))
    best: dict[str, float] = {}
    for negative, id_ in hits:
        best.setdefault(id_, -negative)
        if len(best) == k:
            break
    return Hits(list(best), list(best.values()))
