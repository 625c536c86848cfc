"""Searches that arrive while others run wait for them, and then run together: FAISS answers many faster than each.

Nothing is ever held back in the hope of company: as long as a thread is free, a search starts at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faiss

from indexer.types import Hits, Query

LARGEST_BATCH = 64

Waiting = tuple[list[Query], "asyncio.Future[list[Hits]]"]


class Batcher:
    """Runs checked queries on ``searchers`` threads, each search itself on so many ``threads``. For one event loop."""

    def __init__(self, answer: Callable[[Sequence[Query]], list[Hits]], *, searchers: int, threads: int) -> None:
        self._answer = answer
        # OpenMP counts threads per calling thread: setting it once for the process would miss the pool.
        self._pool = ThreadPoolExecutor(searchers, "search", faiss.omp_set_num_threads, (threads,))
        self._free = searchers
        self._waiting: deque[Waiting] = deque()

    async def search(self, queries: list[Query]) -> list[Hits]:
        """The answers to one caller's queries, whoever else's they were searched with."""
        future: asyncio.Future[list[Hits]] = asyncio.get_running_loop().create_future()
        self._waiting.append((queries, future))
        self._start()
        return await future

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown()

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            queries = [query for own, _ in batch for query in own]
            running = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, queries)
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

    def _finish(self, batch: list[Waiting], done: "asyncio.Future[list[Hits]]") -> None:
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
