"""Searches that arrive while others run wait for them, and then run together: FAISS answers many faster than each.

Nothing is ever held back in the hope of company: as long as a thread is free, a search starts at once. While none is
busy, a short one runs in the event loop itself: waking a thread, and being woken by it, would cost as much again.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faiss

from indexer.types import Answer, Query

LARGEST_BATCH = 64
# So long the event loop may be held up: the calls that came meanwhile are searched together.
SHORT_S = 0.001
_WEIGHT = 1 / 8

Waiting = tuple[list[Query], "asyncio.Future[list[Answer]]"]


class Batcher:
    """Runs checked queries on ``searchers`` threads, each search itself on so many ``threads``. For one event loop.

    Searches that should take no longer than ``short_s`` run in the loop, going by what a query took of late.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Query]], list[Answer]],
        *,
        searchers: int,
        threads: int,
        short_s: float = SHORT_S,
    ) -> None:
        self._answer = answer
        # OpenMP counts threads per calling thread: those of the pool are told, and so is that of the loop.
        self._pool = ThreadPoolExecutor(searchers, "search", faiss.omp_set_num_threads, (threads,))
        faiss.omp_set_num_threads(threads)
        self._searchers = self._free = searchers
        self._short_s = short_s
        self._query_s = math.inf
        self._waiting: deque[Waiting] = deque()

    async def search(self, queries: list[Query]) -> list[Answer]:
        """The answers to one caller's queries, whoever else's they were searched with."""
        if self._free == self._searchers and len(queries) * self._query_s <= self._short_s:
            return self._timed(queries)
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((queries, future))
        self._start()
        return await future

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown()

    def _timed(self, queries: list[Query]) -> list[Answer]:
        start_s = time.perf_counter()
        answers = self._answer(queries)
        spent_s = (time.perf_counter() - start_s) / len(queries)
        is_first = math.isinf(self._query_s)
        self._query_s = spent_s if is_first else self._query_s + _WEIGHT * (spent_s - self._query_s)
        return answers

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            queries = [query for own, _ in batch for query in own]
            running = asyncio.get_running_loop().run_in_executor(self._pool, self._timed, queries)
            running.add_done_callback(partial(self._finish, batch))

    def _next(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._waiting and size < LARGEST_BATCH:
            queries, future = self._waiting.popleft()
            if not future.done():  # its caller gave up
                batch.append((queries, future))
                size += len(queries)
        return batch

    def _finish(self, batch: list[Waiting], done: "asyncio.Future[list[Answer]]") -> None:
        self._free += 1
        error = done.exception()
        start = 0
        for queries, future in batch:
            end = start + len(queries)
            if not future.done():
                if error:
                    future.set_exception(error)
                else:
                    future.set_result(done.result()[start:end])
            start = end
        self._start()
