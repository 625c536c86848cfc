"""A worker with a model that hashes, on a real Redis: started, waited for, looked at."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

from redis.asyncio import Redis

from indexer.types import Change
from model.inference.hashing import HashingBackend
from model.note import Note
from service.store.jobs import JobQueue
from service.store.records import StoredNote, decode_change
from service.store.schema import EMBEDDINGS, FILLED, JOBS
from service.worker.category_sampler import CategorySampler
from service.worker.engine import Engine
from service.worker.prediction_cache import PredictionCache
from service.worker.worker import Worker


def stored(note_id: str, title: str = "Kyoto by bus") -> StoredNote:
    """A note to put."""
    return StoredNote(Note(note_id, title), 0)


@asynccontextmanager
async def working(
    backend: HashingBackend,
    redis: Redis,
    consumer: str = "w0",
    *,
    cached_readings: int = 0,
    sampled: float = 0.0,
    hashtags: int = 5,
    **queue: float,
) -> AsyncIterator[Worker]:
    """A worker with its engine running; `run` is up to the test."""
    engine = Engine(backend, max_batch_tokens=64, max_drafts=4)
    sampler = CategorySampler(engine, ["Travel"], sampled)
    async with engine.running():
        yield Worker(
            engine,
            JobQueue(redis, consumer, backend.fingerprint, backend.dim, **queue),
            sampler,
            hashtags=hashtags,
            cache=PredictionCache(cached_readings),
        )


async def drain(backend: HashingBackend, redis: Redis, **options: object) -> None:
    """One worker's life: work until nothing is left."""
    async with working(backend, redis, **options) as worker:
        running = asyncio.create_task(worker.run())
        await until(lambda: idle(redis, backend.fingerprint))
        worker.stop()
        await running


async def idle(redis: Redis, fingerprint: str) -> bool:
    """A worker of this model is at work, and nothing waits for it."""
    return await redis.sismember(FILLED, fingerprint) and await redis.xlen(JOBS + fingerprint) == 0


async def until(condition: Callable[[], Awaitable[bool]], patience_s: float = 60) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(patience_s):
        while not await condition():
            await asyncio.sleep(0.01)


async def changes(redis: Redis) -> list[Change]:
    """Everything that was announced to the index."""
    return [decode_change(cursor.decode(), fields) for cursor, fields in await redis.xrange(EMBEDDINGS)]


class Gate:
    """Holds the model's thread until it is opened: the ``before`` of a `HashingBackend`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self.open.wait(60)

    @classmethod
    def opened(cls) -> Self:
        """One that holds nothing."""
        gate = cls()
        gate.open.set()
        return gate

    async def closed_on(self) -> None:
        """Waits until the model's thread stands before it."""
        assert await asyncio.to_thread(self.reached.wait, 60)
