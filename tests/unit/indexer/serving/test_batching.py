"""Concurrent searches: which wait, which run together, and whose hits a caller gets."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from indexer.serving.batching import LARGEST_BATCH, Batcher
from indexer.types import Hits, Query


class Gated:
    """Finds the k of a query as its one id, once ``open`` allows; ``batches`` holds the k's of each call."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        self.batches.append([query.k for query in queries])
        self.entered.release()
        assert self.open.acquire(timeout=30)
        if any(query.k == 13 for query in queries):
            raise MemoryError
        return [Hits([str(query.k)], [1.0]) for query in queries]


def query(k: int) -> Query:
    return Query(np.ones(1, dtype=np.float32), k)


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
async def batcher(gated: Gated) -> AsyncIterator[Batcher]:
    batcher = Batcher(gated.search, searchers=2, threads=1)
    yield batcher
    for _ in range(100):
        gated.open.release()
    await asyncio.to_thread(batcher.close)


async def entered(gated: Gated, times: int) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(gated.entered.acquire, timeout=30)


async def test_while_a_thread_is_free_a_search_starts_alone(batcher, gated):
    searches = [asyncio.create_task(batcher.search([query(k)])) for k in (1, 2)]
    await entered(gated, 2)

    assert sorted(gated.batches) == [[1], [2]]
    gated.open.release(2)
    assert [hits.ids for [hits] in await asyncio.gather(*searches)] == [["1"], ["2"]]


async def test_searches_that_arrive_meanwhile_run_together_and_every_caller_gets_its_own_hits(batcher, gated):
    searches = [asyncio.create_task(batcher.search([query(k)])) for k in range(1, 7)]
    await entered(gated, 2)
    gated.open.release()
    await entered(gated, 1)

    assert gated.batches[2] == [3, 4, 5, 6]
    gated.open.release(2)
    assert [hits.ids for [hits] in await asyncio.gather(*searches)] == [[str(k)] for k in range(1, 7)]


async def test_one_callers_searches_go_together_and_come_back_in_order(batcher, gated):
    busy = [asyncio.create_task(batcher.search([query(20)])) for _ in range(2)]
    searches = [asyncio.create_task(batcher.search([query(k), query(k + 1)])) for k in (1, 3)]
    await entered(gated, 2)
    gated.open.release(3)

    assert [[hits.ids for hits in own] for own in await asyncio.gather(*searches)] == [
        [["1"], ["2"]],
        [["3"], ["4"]],
    ]
    assert gated.batches[2] == [1, 2, 3, 4]
    await asyncio.gather(*busy)


async def test_a_batch_has_a_largest_size(batcher, gated):
    searches = [asyncio.create_task(batcher.search([query(20)])) for _ in range(2 + LARGEST_BATCH + 1)]
    await entered(gated, 2)
    gated.open.release(4)
    await asyncio.gather(*searches)

    assert sorted(map(len, gated.batches)) == [1, 1, 1, LARGEST_BATCH]


async def test_a_cancelled_search_is_not_run(batcher, gated):
    searches = [asyncio.create_task(batcher.search([query(k)])) for k in range(1, 5)]
    await entered(gated, 2)
    searches[2].cancel()
    await asyncio.wait([searches[2]])
    gated.open.release(3)
    await asyncio.gather(searches[0], searches[1], searches[3])

    assert gated.batches[2] == [4]


async def test_a_batch_that_fails_fails_its_own_searches_only(batcher, gated):
    searches = [asyncio.create_task(batcher.search([query(k)])) for k in (1, 2, 3, 13)]
    await entered(gated, 2)
    gated.open.release(3)
    results = await asyncio.gather(*searches, return_exceptions=True)

    assert [type(result) for result in results] == [list, list, MemoryError, MemoryError]
    again = asyncio.create_task(batcher.search([query(5)]))
    gated.open.release()
    assert [hits.ids for hits in await again] == [["5"]]


async def test_close_waits_for_the_running_searches(gated):
    batcher = Batcher(gated.search, searchers=1, threads=1)
    search = asyncio.create_task(batcher.search([query(1)]))
    await entered(gated, 1)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    await asyncio.wait([closing], timeout=0.05)

    assert not closing.done()
    gated.open.release()
    await asyncio.gather(search, closing)
