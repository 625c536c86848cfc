"""Searches that arrive while all threads are busy run together afterwards: FAISS is faster with many queries at once.

No search waits to fill a batch: while a thread is free, it starts at once.
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

    def __init__(self, search: Callable[[Sequence[Query]], list[Hits]], *, searchers: int, threads: int) -> None:
        self._search = search
        # OpenMP counts threads per calling thread: setting it once for the process would miss the pool.
        self._pool = ThreadPoolExecutor(searchers, "search", faiss.omp_set_num_threads, (threads,))
        self._free = searchers
        self._waiting: deque[Waiting] = deque()

    async def search(self, queries: list[Query]) -> list[Hits]:
        """The hits of one caller's queries."""
        future: asyncio.Future[list[Hits]] = asyncio.get_running_loop().create_future()
        self._waiting.append((queries, future))
        self._start()
        return await future

    def close(self) -> None:
        """Wait for the running searches."""
        self._pool.shutdown()

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            queries = [query for own, _ in batch for query in own]
            running = asyncio.get_running_loop().run_in_executor(self._pool, self._search, queries)
            running.add_done_callback(partial(self._finish, batch))

    def _next(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._waiting and size < LARGEST_BATCH:
            queries, future = self._waiting.popleft()
            if not future.done():  # the caller was not cancelled
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
