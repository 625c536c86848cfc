"""The composition root: the only place, with `cli`, that knows which class stands behind which seam.

Each ``run_*`` is one process: it returns after SIGINT or SIGTERM, and raises SetupError for what the operator
has to put right. What is heavy is imported where it is needed: a gateway's image holds no torch or FAISS.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from model.checkpoint import CheckpointError, Manifest, read_manifest
from service import metrics
from service.errors import StoreUnavailable
from service.health import OpsServer
from service.settings import OpsSettings, Settings, SetupError
from service.store import RedisStore, open_redis, redis_errors

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from indexer.follow import Follower
    from indexer.index import VectorIndex
    from indexer.types import Change, Searcher, Tally
    from model.backends.base import Backend
    from service.keys import Keyring
    from service.recommend import Drafter

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PROBE_EVERY_S = 1.0
_PROBE_S = 0.8
_QUEUE_EVERY_S = 2.0
_KEYS_EVERY_S = 0.5
_REPORT_EVERY_S = 1.0
_GRACE_S = 8


class Missing:
    """What a process still lacks, as /readyz says it; replaced as a whole, so any thread may ask."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self._leaving = False

    def __call__(self) -> list[str]:
        """The names now."""
        return ["draining"] if self._leaving else self.names

    def leave(self) -> None:
        """Not ready from now on, whatever is there."""
        self._leaving = True


def run_gateway(settings: Settings) -> None:
    """One gateway: HTTP in front, Redis, shards and workers behind."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_gateway(settings))


def run_worker(settings: Settings) -> None:
    """One worker: the model, the queue and the drafts."""
    asyncio.run(_worker(settings))


def run_indexer(settings: Settings) -> None:
    """One shard: the index, its snapshots and the stream it follows."""
    asyncio.run(_indexer(settings))


async def _gateway(settings: Settings) -> None:
    from indexer.client import ShardedSearcher
    from service import audit
    from service.app import create_app
    from service.drafts import WorkerPool
    from service.keys import Keyring
    from service.limits import Gate
    from service.recommend import Recommender
    from service.server import BACKLOG, GatewayServer, allow_connections, doors

    manifest = _manifest(settings)
    keys = Keyring(settings.keys_file) if settings.keys_file else None
    try:
        audit.configure(settings.audit_file)
    except OSError as error:
        raise SetupError(f"NOTELLM_AUDIT_FILE={settings.audit_file}: {error.strerror}") from error
    missing = Missing("redis", "the index", "a worker")
    searcher = ShardedSearcher(settings.index.addresses, manifest.fingerprint)
    workers = WorkerPool(settings.worker.addresses, manifest.fingerprint)
    allow_connections(settings.limits.connections)
    listener = _listener(settings.http.host, settings.http.port, BACKLOG)
    with _operations(settings.ops, missing, "gateway", manifest.fingerprint):
        async with _redis(settings, timeout_s=settings.http.write_s) as redis:
            store = RedisStore(redis, settings.max_queue)
            recommender = Recommender(store, searcher, workers, settings, manifest.fingerprint)
            app = create_app(recommender, settings, keys)
            gate = Gate(settings.limits, keys, app.routes)
            server = GatewayServer(app, gate, on_leave=missing.leave)
            # uvicorn raises the signal that stopped it again, which would end us before we have cleaned up.
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)
            probe = _probe(redis, searcher, workers, len(settings.index.addresses), manifest.fingerprint, missing)
            async with (
                _repeating(probe, _PROBE_EVERY_S),
                _repeating(_follow(keys), _KEYS_EVERY_S),
                _repeating(gate.report, _REPORT_EVERY_S),
            ):
                await server.serve(sockets=doors(listener))
            await searcher.close()
            await workers.close()


def _follow(keys: "Keyring | None") -> Callable[[], Awaitable[None]]:
    async def follow() -> None:
        if keys:
            await asyncio.to_thread(keys.refresh)

    return follow


async def _worker(settings: Settings) -> None:
    from indexer import rpc
    from service.drafts import draft_handlers
    from service.engine import Engine
    from service.sampling import CategorySampler
    from service.streams import JobQueue
    from service.worker import Worker

    own = settings.worker
    stop = _stop_event()
    manifest = _manifest(settings)
    address = _own_address(own.addresses, own.number, "NOTELLM_WORKER__NUMBER")
    missing = Missing("the model", "redis")
    with _operations(settings.ops, missing, "worker", manifest.fingerprint):
        with _setup_errors(CheckpointError):
            backend = await asyncio.to_thread(_open_backend, settings, manifest)
        missing.names = ["redis"]
        engine = Engine(backend, max_batch_tokens=own.max_batch_tokens, max_drafts=own.max_drafts)
        async with _redis(settings) as redis, engine.running():
            queue = JobQueue(redis, consumer=f"{socket.gethostname()}-{own.number}")
            sampler = CategorySampler(engine, manifest.categories, own.free_category_share)
            worker = Worker(engine, queue, sampler, hashtags=own.hashtags, cached_readings=own.cached_readings)
            store = RedisStore(redis, settings.max_queue)

            async def measure() -> None:
                missing.names = [] if worker.connected else ["redis"]
                await _measure_queue(store)

            with _setup_errors(OSError, ValueError):
                server = await rpc.serve(address, draft_handlers(engine))
            async with _repeating(measure, _QUEUE_EVERY_S), _when(stop, worker.stop):
                await worker.run()
            await engine.drain(_GRACE_S)
            await server.close()


def _open_backend(settings: Settings, manifest: Manifest) -> "Backend":
    """The model, once it has said of the canaries what its checkpoint says; they warm it up, too."""
    from model import golden
    from model.backends import Runtime, gpu_memory, open_backend

    own = settings.worker
    runtime = Runtime(own.dtype, own.threads, own.serving_dir, own.tensor_parallel, own.gpu_memory)
    backend = open_backend(own.backend, settings.checkpoint, runtime)
    started = time.monotonic()
    golden.check(backend, manifest)
    log.info("canaries_read", extra={"seconds": round(time.monotonic() - started, 3)})
    metrics.GPU_MEMORY_BYTES.set_function(gpu_memory)
    return backend


async def _indexer(settings: Settings) -> None:
    # It tells at length which of its builds it tried.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    from indexer.follow import Follower
    from indexer.index import VectorIndex
    from indexer.server import serve_shard
    from indexer.shards import replicas
    from indexer.snapshot import Snapshots
    from service.streams import RedisChangeStream, open_sync_redis

    own = settings.index
    stop = _stop_event()
    manifest = _manifest(settings)
    shard = replicas(_own_address(own.addresses, own.number, "NOTELLM_INDEX__NUMBER"))
    address = _own_address(shard, own.replica, "NOTELLM_INDEX__REPLICA")
    folder = own.snapshot_dir / (f"shard-{own.number}" if own.replica == 0 else f"shard-{own.number}-{own.replica}")
    missing = Missing("the snapshot")
    with _operations(settings.ops, missing, "indexer", manifest.fingerprint):
        snapshots = Snapshots(folder, manifest.fingerprint, own.number, len(own.addresses))
        loaded = await asyncio.to_thread(snapshots.load)
        index, cursor = loaded or (VectorIndex(manifest.dim, manifest.fingerprint, folder), None)
        missing.names = ["the changes so far"]
        # Not by its address: `serve` has other sockets after every start, and a name left behind holds the stream back.
        stream = RedisChangeStream(open_sync_redis(_redis_url(settings)), follower=folder.name)
        follower = Follower(
            index,
            stream,
            snapshots,
            cursor,
            snapshot_every_s=own.snapshot_every_s,
            on_batch=_count_changes(own.number),
            on_failure=lambda chore: metrics.INDEX_CHORES_FAILED.labels(str(own.number), chore).inc(),
        )
        _watch_index(own.number, index, follower)
        follower.start()
        try:
            # Without a snapshot there is nothing to answer from yet; with one, it is better than silence.
            while not (loaded or stop.is_set() or follower.caught_up.is_set()):
                await asyncio.sleep(0.05)
            with _setup_errors(OSError, ValueError):
                server = await serve_shard(
                    index, address, shard=own.number, cursor=lambda: follower.cursor, threads=own.threads
                )

            async def check() -> None:
                missing.names = [] if follower.caught_up.is_set() else ["the changes so far"]

            async def measure_lag() -> None:
                with contextlib.suppress(StoreUnavailable):
                    changes, age_s = await asyncio.to_thread(stream.lag, follower.cursor)
                    metrics.INDEX_LAG_CHANGES.labels(str(own.number)).set(changes)
                    metrics.INDEX_LAG_SECONDS.labels(str(own.number)).set(age_s)

            async with _repeating(check, _PROBE_EVERY_S / 4), _repeating(measure_lag, _QUEUE_EVERY_S):
                await stop.wait()
            await server.close()
        finally:
            await asyncio.to_thread(follower.stop)


def _probe(
    redis: "Redis",
    searcher: "Searcher",
    drafter: "Drafter",
    shards: int,
    fingerprint: str,
    missing: Missing,
) -> Callable[[], Awaitable[None]]:
    async def redis_answers() -> bool:
        try:
            with redis_errors():
                async with asyncio.timeout(_PROBE_S):
                    await redis.ping()
        except (StoreUnavailable, TimeoutError):
            return False
        return True

    async def probe() -> None:
        answers, states, ready = await asyncio.gather(
            redis_answers(), searcher.status(timeout_s=_PROBE_S), drafter.ready(timeout_s=_PROBE_S)
        )
        there = {state.shard for state in states if state.fingerprint == fingerprint}
        missing.names = [
            *([] if answers else ["redis"]),
            *(f"shard {shard}" for shard in range(shards) if shard not in there),
            *([] if ready else ["a worker"]),
        ]

    return probe


async def _measure_queue(store: RedisStore) -> None:
    with contextlib.suppress(StoreUnavailable):
        counts = await store.counts()
        metrics.QUEUE_DEPTH.set(counts.queue_depth)
        metrics.QUEUE_OLDEST_SECONDS.set(counts.oldest_job_s)


def _count_changes(shard: int) -> "Callable[[Sequence[Change], Tally], None]":
    freshness = metrics.INDEX_FRESHNESS_SECONDS.labels(str(shard))

    def count(changes: "Sequence[Change]", tally: "Tally") -> None:
        metrics.INDEX_CHANGES.labels(str(shard), "applied").inc(tally.applied)
        metrics.INDEX_CHANGES.labels(str(shard), "stale").inc(tally.stale)
        for _, reason in tally.refused:
            metrics.INDEX_CHANGES.labels(str(shard), reason).inc()
        for change in changes:
            if age_s := _age_s(change.cursor):  # what comes from the store has no place in the stream
                freshness.observe(age_s)

    return count


def _watch_index(shard: int, index: "VectorIndex", follower: "Follower") -> None:
    name = str(shard)
    metrics.INDEX_NOTES.labels(name).set_function(lambda: len(index))
    metrics.INDEX_GENERATION.labels(name).set_function(lambda: index.generation)
    metrics.INDEX_CURSOR_AGE_SECONDS.labels(name).set_function(lambda: _age_s(follower.cursor))
    metrics.INDEX_RECALL.labels(name).set_function(lambda: follower.recall)
    metrics.INDEX_IMBALANCE.labels(name).set_function(index.imbalance)
    metrics.INDEX_BYTES_PER_NOTE.labels(name).set_function(lambda: _own_memory_bytes() / max(len(index), 1))
    for part in ("base", "delta", "dead", "tombstones"):
        metrics.INDEX_ROWS.labels(name, part).set_function(partial(_figure, index, part))


def _figure(index: "VectorIndex", part: str) -> int:
    figure: int = getattr(index.figures, part)
    return figure


def _own_memory_bytes() -> int:
    """Anonymous memory of this process."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:  # noqa: PTH123
        for line in status:
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def _age_s(cursor: str) -> float:
    milliseconds = int(cursor.partition("-")[0])
    return max(0.0, time.time() - milliseconds / 1000) if milliseconds else 0.0


def _manifest(settings: Settings) -> Manifest:
    with _setup_errors(CheckpointError):
        return read_manifest(settings.checkpoint)


def _own_address(addresses: Sequence[str], number: int, variable: str) -> str:
    if number >= len(addresses):
        raise SetupError(f"{variable}={number}, but there are only {len(addresses)} addresses, from 0 on")
    return addresses[number]


def _redis_url(settings: Settings) -> str:
    from redis.connection import parse_url

    if settings.redis_url is None:
        raise SetupError("NOTELLM_REDIS_URL is not set; `notellm serve` starts a private Redis by itself")
    url = settings.redis_url.get_secret_value()
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        # The message may quote the password.
        raise SetupError("NOTELLM_REDIS_URL is not a redis://, rediss:// or unix:// URL") from None
    return url


@asynccontextmanager
async def _redis(settings: Settings, *, timeout_s: float = 5.0) -> "AsyncIterator[Redis]":
    redis = open_redis(_redis_url(settings), timeout_s=timeout_s)
    try:
        yield redis
    finally:
        await redis.aclose()


def _listener(host: str, port: int, backlog: int) -> socket.socket:
    with _binding(host, port, "NOTELLM_HTTP__PORT"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=backlog)


@contextmanager
def _operations(ops: OpsSettings, missing: Missing, process: str, fingerprint: str) -> Iterator[None]:
    with _binding(ops.host, ops.port, "NOTELLM_OPS__PORT"):
        server = OpsServer(ops.host, ops.port, missing)
    metrics.BUILD_INFO.labels(process, importlib.metadata.version("notellm"), fingerprint).set(1)
    server.start()
    if ops.port_file:
        ops.port_file.write_text(str(server.port))
    try:
        yield
    finally:
        server.stop()


@contextmanager
def _binding(host: str, port: int, variable: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; set {variable} to another port"
        ) from error


@contextmanager
def _setup_errors(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise SetupError(str(error)) from error


@asynccontextmanager
async def _repeating(call: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    async def repeat() -> None:
        while True:
            try:
                await call()
            except Exception:
                log.exception("check_failed")
            await asyncio.sleep(every_s)

    async with _task(repeat()):
        yield


@asynccontextmanager
async def _when(event: asyncio.Event, call: Callable[[], None]) -> AsyncIterator[None]:
    async def wait() -> None:
        await event.wait()
        call()

    async with _task(wait()):
        yield


@asynccontextmanager
async def _task(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
