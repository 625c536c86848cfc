"""The metrics of Redis: the queues, the dead letters, memory and disk.

Indexers measure them, not workers or gateways: a queue grows old just when no worker is left, and indexers are always
there. All of them see one Redis, so a query takes the ``max`` over them. No other process imports this module, so that
none shows a figure that it does not measure.
"""

from collections.abc import Awaitable, Callable, Iterable

from prometheus_client import Gauge

from service.errors import StoreUnavailable
from service.store.info import RedisInfo
from service.store.interfaces import NoteStore
from service.store.registry import Registry

QUEUE_DEPTH = Gauge("notellm_queue_depth", "Jobs that wait for a worker of the model.", ["fingerprint"])
QUEUE_OLDEST_SECONDS = Gauge(
    "notellm_queue_oldest_seconds",
    "Age of the oldest job that waits for a worker of the model; 0 when none does.",
    ["fingerprint"],
)
DEAD_LETTERS = Gauge("notellm_dead_letters", "Jobs in the dead-letter stream, of all models.")
REDIS_UP = Gauge("notellm_redis_up", "1 while Redis answers the indexer, else 0; then the figures of Redis stay.")
REDIS_MEMORY_BYTES = Gauge("notellm_redis_memory_bytes", "Memory that Redis uses.")
REDIS_MEMORY_LIMIT_BYTES = Gauge(
    "notellm_redis_memory_limit_bytes", "Memory that Redis may use: its maxmemory, else all of its machine."
)
REDIS_AOF_BYTES = Gauge("notellm_redis_aof_bytes", "Size of Redis' append-only file.")
REDIS_PERSISTENT = Gauge(
    "notellm_redis_persistent", "1 while Redis keeps an append-only file and its last writes of it succeeded, else 0."
)


class StoreWatch:
    """Measures Redis, for the metrics of one process. ``info`` returns Redis' own figures."""

    def __init__(self, info: Callable[[], Awaitable[RedisInfo]], registry: Registry, store: NoteStore) -> None:
        self._info = info
        self._registry = registry
        self._store = store
        self._shown: set[str] = set()

    async def look(self) -> None:
        """Measure once; call it periodically."""
        try:
            await self._show_queues()
            await self._show_redis()
        except StoreUnavailable:
            REDIS_UP.set(0)
        else:
            REDIS_UP.set(1)

    async def _show_queues(self) -> None:
        models = (await self._registry.registered()).dims.keys()
        for fingerprint in models:
            counts = await self._store.counts(fingerprint)
            QUEUE_DEPTH.labels(fingerprint).set(counts.queue_depth)
            QUEUE_OLDEST_SECONDS.labels(fingerprint).set(counts.oldest_job_s)
        self._forget(self._shown - models)
        self._shown = set(models)

    async def _show_redis(self) -> None:
        info = await self._info()
        DEAD_LETTERS.set(info.dead_letters)
        REDIS_MEMORY_BYTES.set(info.memory_bytes)
        REDIS_MEMORY_LIMIT_BYTES.set(info.memory_limit_bytes)
        REDIS_AOF_BYTES.set(info.aof_bytes)
        REDIS_PERSISTENT.set(info.persistent)

    def _forget(self, retired: Iterable[str]) -> None:
        for fingerprint in retired:
            QUEUE_DEPTH.remove(fingerprint)
            QUEUE_OLDEST_SECONDS.remove(fingerprint)
