"""What an indexer shows of Redis: the queues, the dead letters, memory and disk.

They are measured here and not by a worker or a gateway: a queue grows old just when no worker is left to say so, and
indexers are always there. All of them see one Redis, so a query takes the ``max`` over them. This module is imported
by indexers alone, so that no other process shows a figure that it does not measure.
"""

from collections.abc import Awaitable, Callable, Iterable

from prometheus_client import Gauge

from service.errors import StoreUnavailable
from service.store.connection import RedisState
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
    """Looks at Redis, for the metrics of one process. ``state`` asks Redis for its own figures."""

    def __init__(self, state: Callable[[], Awaitable[RedisState]], registry: Registry, store: NoteStore) -> None:
        self._state = state
        self._registry = registry
        self._store = store
        self._shown: set[str] = set()

    async def look(self) -> None:
        """Measure once; to be called over and over."""
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
        state = await self._state()
        DEAD_LETTERS.set(state.dead_letters)
        REDIS_MEMORY_BYTES.set(state.memory_bytes)
        REDIS_MEMORY_LIMIT_BYTES.set(state.memory_limit_bytes)
        REDIS_AOF_BYTES.set(state.aof_bytes)
        REDIS_PERSISTENT.set(state.persistent)

    def _forget(self, retired: Iterable[str]) -> None:
        for fingerprint in retired:
            QUEUE_DEPTH.remove(fingerprint)
            QUEUE_OLDEST_SECONDS.remove(fingerprint)
