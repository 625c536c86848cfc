"""The stores of a service by its number of cells: those of one cell as they are, or those over several.

``cells`` has a client a cell, see `open_cells`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from service.store.attribution.exposure import Exposure
from service.store.attribution.log import RedisAnswerLog
from service.store.cells.changes import CellChangeStream
from service.store.cells.events import CellEvents, CellExposure
from service.store.cells.hashtags import CellHashtags
from service.store.cells.jobs import CellQueue
from service.store.cells.notes import CellNotes
from service.store.cells.registry import CellRegistry
from service.store.cells.ring import Cells, gathered, names
from service.store.changes import RedisChangeStream
from service.store.connection import open_redis, open_sync_redis
from service.store.events import RedisEvents
from service.store.hashtags.completion import Completion
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.info import RedisInfo, redis_info
from service.store.interfaces import AnswerLog
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.registry import Registry

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis


@asynccontextmanager
async def open_cells(
    url: str, cells: int, *, timeout_s: float = 5.0, replicas: int = 0
) -> "AsyncIterator[Cells[Redis]]":
    """A client of each cell; see `service.store.connection.open_redis`."""
    opened = Cells.of(open_redis(url, timeout_s=timeout_s, replicas=replicas, cell=name) for name in names(cells))
    try:
        yield opened
    finally:
        await gathered(redis.aclose() for redis in opened)


@contextmanager
def open_sync_cells(url: str, cells: int) -> "Iterator[Cells[SyncRedis]]":
    """The same for commands."""
    with ExitStack() as stack:
        yield Cells.of(stack.enter_context(open_sync_redis(url, cell=name)) for name in names(cells))


def note_store(cells: "Cells[Redis]", max_queue: int) -> RedisStore | CellNotes:
    """`NoteStore`, which also lists its ids."""
    return RedisStore(cells.first, max_queue) if len(cells) == 1 else CellNotes(cells, max_queue)


def hashtag_store(cells: "Cells[Redis]") -> RedisHashtags:
    """`HashtagStore`."""
    return RedisHashtags(cells.first) if len(cells) == 1 else CellHashtags(cells)


def event_log(cells: "Cells[Redis]", answers: AnswerLog | None = None) -> RedisEvents:
    """`EventLog`."""
    return RedisEvents(cells.first, answers) if len(cells) == 1 else CellEvents(cells, answers)


def answer_log(cells: "Cells[Redis]", most: int, days: float) -> RedisAnswerLog:
    """`AnswerLog`, in the first cell."""
    return RedisAnswerLog(cells.first, most, days, cells=len(cells))


def exposure(cells: "Cells[Redis]") -> Callable[[], Awaitable[None]]:
    """What announces how often notes were shown."""
    return Exposure(cells.first) if len(cells) == 1 else CellExposure(cells)


def completion(cells: "Cells[Redis]") -> Callable[[], Awaitable[None]]:
    """What fills in what the store of an older release lacks."""
    each = cells.map(Completion)

    async def complete() -> None:
        await gathered(one() for one in each)

    return complete


def registry(cells: "Cells[Redis]") -> Registry:
    """The registered models."""
    return Registry(cells.first) if len(cells) == 1 else CellRegistry(cells)


def job_queue(cells: "Cells[Redis]", consumer: str, fingerprint: str, dim: int) -> JobQueue:
    """The jobs of a model, for one worker."""
    if len(cells) == 1:
        return JobQueue(cells.first, consumer, fingerprint, dim)
    return CellQueue(cells, consumer, fingerprint, dim)


def change_stream(cells: "Cells[SyncRedis]", fingerprint: str, indexer: str) -> RedisChangeStream:
    """The changes for an index."""
    if len(cells) == 1:
        return RedisChangeStream(cells.first, fingerprint, indexer)
    return CellChangeStream(cells, fingerprint, indexer)


async def cells_info(cells: "Cells[Redis]") -> RedisInfo:
    """`redis_info`: the dead letters of all cells, and of the node that is fullest its figures."""
    found = await gathered(redis_info(redis) for redis in cells)
    fullest = max(found, key=lambda info: info.memory_bytes / max(1, info.memory_limit_bytes))
    return RedisInfo(
        sum(info.dead_letters for info in found),
        fullest.memory_bytes,
        fullest.memory_limit_bytes,
        fullest.aof_bytes,
        all(info.persistent for info in found),
    )
