"""Searches that arrive while others run wait for them, and then run together: FAISS answers many faster than each.

Nothing is ever held back in the hope of company: as long as a thread is free, a search starts at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faiss

from indexer.types import Answer, Query

LARGEST_BATCH = 64


class Batcher:
    """Runs checked queries on ``searchers`` threads, each search itself on so many ``threads``. For one event loop."""

    def __init__(self, answer: Callable[[Sequence[Query]], list[Answer]], *, searchers: int, threads: int) -> None:
        self._answer = answer
        # OpenMP counts threads per calling thread: setting it once for the process would miss the pool.
        self._pool = ThreadPoolExecutor(searchers, "search", faiss.omp_set_num_threads, (threads,))
        self._free = searchers
        self._waiting: deque[tuple[Query, asyncio.Future[Answer]]] = deque()

    async def search(self, query: Query) -> Answer:
        """The answer to one query, whoever else's it was searched with."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, future))
        self._start()
        return await future

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown()

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            queries = [query for query, _ in batch]
            running = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, queries)
            running.add_done_callback(partial(self._finish, batch))

    def _next(self) -> list[tuple[Query, asyncio.Future[Answer]]]:
        batch: list[tuple[Query, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < LARGEST_BATCH:
            query, future = self._waiting.popleft()
            if not future.done():  # its caller gave up
                batch.append((query, future))
        return batch

    def _finish(self, batch: list[tuple[Query, asyncio.Future[Answer]]], done: "asyncio.Future[list[Answer]]") -> None:
        self._free += 1
        error = done.exception()
        for place, (_, future) in enumerate(batch):
            if future.done():
                continue
            if error:
                future.set_exception(error)
            else:
                future.set_result(done.result()[place])
        self._start()
