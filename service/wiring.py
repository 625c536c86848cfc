"""The composition root: the only place that knows which class stands behind which seam.

Each ``run_*`` is one process: it returns after SIGINT or SIGTERM, and raises SetupError for what the operator
has to put right. What is heavy is imported where it is needed: a gateway's image holds no torch or FAISS.
"""

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from indexer.rpc import secret
from indexer.rpc.frames import host_and_port
from indexer.shards import replicas
from model.network.checkpoint import CheckpointError, Manifest, described, prompt_builder
from service import metrics, traces
from service.background import SIGNALS, every, on_event, stop_event, task
from service.errors import StoreUnavailable
from service.processes.health import NO_WORKER, Readiness, operations
from service.processes.ports import listen, serving_at
from service.processes.redis_check import EVERY_S, RedisCheck
from service.processes.state import make_folder
from service.settings import OpsSettings, Settings, SetupError, is_loopback, reason_of
from service.store.connection import open_redis, redis_errors, redis_url
from service.store.info import redis_info
from service.store.notes import RedisStore

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from indexer.serving.client import ShardedSearcher
    from indexer.types import Searcher
    from model.backend import Backend
    from service.keys import Keyring
    from service.recommend.workers import Drafter
    from service.store.experiments.experiments import Experiments
    from service.store.registry import Registered, Registry

log = logging.getLogger(__name__)

_FOLLOW_EVERY_S = 0.25
_COMPLETE_EVERY_S = 5.0
_PROBE_EVERY_S = 1.0
_PROBE_S = 0.8
_INDEX_IDS_EVERY_S = 5.0
_LOOK_EVERY_S = 2.0
_KEYS_EVERY_S = 0.5
_ANSWERS_EVERY_S = 5.0
_REPORT_EVERY_S = 1.0
_SWITCH_S = 0.0005
_YOUNG_OBJECTS = 10_000
_GRACE_S = 8


def run_gateway(settings: Settings) -> None:
    """A gateway: HTTP in front, Redis, shards and workers behind; in several processes, if so set."""
    import uvloop

    traces.configure("gateway")
    _share_secret(settings)
    # With Python's 700, what a few requests hold counts as growth, and every two seconds the collector walks over all
    # notes that are remembered: 0.2 s in which nobody is answered. With more than these, or with Python's ten young
    # collections before a larger one, a thousand new connections cost a pause of 70 ms.
    gc.set_threshold(_YOUNG_OBJECTS, 1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_gateway(settings))


def run_worker(settings: Settings) -> None:
    """One worker: the model, the queue and the drafts."""
    # Threads that wait for each other in a loop burn four fifths of the time where other processes want the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    traces.configure("worker")
    _share_secret(settings)
    asyncio.run(_worker(settings))


def run_indexer(settings: Settings) -> None:
    """One shard: the index, its snapshots and the stream it follows."""
    import uvloop

    # Python's 5 ms are what a search would wait for a chore again and again, and the chores are in no hurry.
    sys.setswitchinterval(_SWITCH_S)
    traces.configure("indexer")
    _share_secret(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_indexer(settings))


def _share_secret(settings: Settings) -> None:
    """Before any connection between processes; one beyond this machine without a secret is told to the operator."""
    addresses = chain(settings.worker.addresses, *map(replicas, settings.index.addresses))
    if settings.rpc_secret:
        secret.SECRET = settings.rpc_secret.get_secret_value().encode()
    elif any("/" not in address and not is_loopback(host_and_port(address)[0]) for address in addresses):
        log.warning("rpc_open", extra={"remedy": "set NOTELLM_RPC_SECRET_FILE in every process"})


async def _gateway(settings: Settings) -> None:
    from indexer.serving.client import ShardedSearcher
    from model.inference.calibration import scores_of
    from model.text import languages
    from service.api import audit
    from service.api.app import create_app
    from service.experiments.assignment import Assignments
    from service.keys import open_keyring
    from service.recommend.active_model import ActiveModel
    from service.recommend.recommender import Recommender
    from service.recommend.vocabulary import HashtagVocabulary
    from service.recommend.workers import WorkerPool
    from service.server.admission import Admission
    from service.server.server import BACKLOG, GatewayServer, allow_connections
    from service.store.attribution.buffer import AnswerBuffer
    from service.store.attribution.exposure import EVERY_S as EVERY_EXPOSURE_S
    from service.store.attribution.exposure import Exposure
    from service.store.attribution.log import RedisAnswerLog
    from service.store.attribution.reach import EVERY_S as EVERY_REACH_S
    from service.store.attribution.reach import ReachWatch
    from service.store.events import RedisEvents
    from service.store.experiments.experiments import Experiments
    from service.store.hashtags.completion import Completion
    from service.store.hashtags.vocabulary import RedisHashtags
    from service.store.idempotency import RedisAnswers
    from service.store.registry import Registry

    manifest = _manifest(settings)
    with _setup_errors(CheckpointError):
        scores = scores_of(manifest)
    keys = open_keyring(settings)
    try:
        audit.configure(settings.audit_file)
    except OSError as error:
        raise SetupError(f"NOTELLM_AUDIT_FILE cannot be written: {reason_of(error)}") from error
    missing = Readiness("redis", "the index", NO_WORKER)
    languages.load()
    searcher = ShardedSearcher(settings.index.addresses, manifest.fingerprint)
    workers = WorkerPool(settings.worker.addresses, manifest.fingerprint)
    allow_connections()
    listener = listen(settings.http.host, settings.http.port, "NOTELLM_HTTP__PORT", BACKLOG)
    with _operations(settings.ops, missing, "gateway", manifest.fingerprint):
        async with _redis(settings, missing, timeout_s=settings.http.write_s) as redis:
            store = RedisStore(redis, settings.max_queue)
            logged = settings.attribution
            answer_log = RedisAnswerLog(redis, logged.answers, logged.days)
            buffer = AnswerBuffer(answer_log, logged.share)
            watch = ReachWatch(answer_log)
            events = RedisEvents(redis, answer_log)
            vocabulary = HashtagVocabulary(RedisHashtags(redis), settings.http.related_s)

            def recommender(fingerprint: str) -> Recommender:
                own = searcher.of(fingerprint), workers.of(fingerprint)
                # What another model's figures mean is not known here: its checkpoint is elsewhere.
                calibrated = scores if fingerprint == manifest.fingerprint else None
                return Recommender(store, events, vocabulary, *own, settings, fingerprint, calibrated)

            assignments = Assignments(Experiments(redis).changed)
            active = ActiveModel(Registry(redis).active, manifest.fingerprint, recommender, assignments)
            await active.follow()
            await assignments.follow()
            await vocabulary.follow()
            app = create_app(
                active,
                RedisAnswers(redis),
                settings,
                keys,
                warnings=lambda: missing.warnings,
                buffer=buffer,
                reach=lambda: watch.latest,
            )
            admission = Admission(traces.around(app), settings.limits, keys, app.routes)
            server = GatewayServer(admission, missing.leave, settings.http.cors_origins)
            # uvicorn raises the signal that stopped it again, which would end us before we have cleaned up.
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)

            async def probe() -> None:
                model, shards = active.fingerprint, len(settings.index.addresses)
                missing.names = await _missing(redis, searcher.of(model), workers.of(model), shards, model)

            async def index_ids() -> None:
                with contextlib.suppress(StoreUnavailable):
                    await store.index_ids()

            async with (
                every(_FOLLOW_EVERY_S, active.follow),
                every(_FOLLOW_EVERY_S, assignments.follow),
                every(_FOLLOW_EVERY_S, vocabulary.follow),
                every(_COMPLETE_EVERY_S, Completion(redis)),
                every(_COMPLETE_EVERY_S, events.complete),
                every(_INDEX_IDS_EVERY_S, index_ids),
                every(_PROBE_EVERY_S, probe),
                every(_KEYS_EVERY_S, _follow(keys)),
                every(_ANSWERS_EVERY_S, buffer.flush),
                every(EVERY_EXPOSURE_S, Exposure(redis)),
                every(EVERY_REACH_S, watch),
                every(_REPORT_EVERY_S, admission.report),
                every(_REPORT_EVERY_S, app.state.refusals.report),
            ):
                await server.serve(sockets=[listener])
            await buffer.flush()
            await searcher.close()
            await workers.close()


def _follow(keys: "Keyring | None") -> Callable[[], Awaitable[None]]:
    async def follow() -> None:
        if keys:
            await asyncio.to_thread(keys.refresh)

    return follow


async def _worker(settings: Settings) -> None:
    from indexer.rpc.server import serve
    from service.store.jobs import JobQueue
    from service.worker import precomputed
    from service.worker.category_sampler import CategorySampler
    from service.worker.drafts import draft_handlers
    from service.worker.engine import Engine
    from service.worker.known import publish_known
    from service.worker.prediction_cache import PredictionCache
    from service.worker.worker import Worker

    own = settings.worker
    stop = stop_event()
    manifest = _manifest(settings)
    address = _own_address(own.addresses, own.number, "NOTELLM_WORKER__NUMBER")
    missing = Readiness("the model", "redis")
    with _operations(settings.ops, missing, "worker", manifest.fingerprint):
        # Redis first: the model may take minutes.
        async with _redis(settings, missing) as redis:
            opening = asyncio.create_task(asyncio.to_thread(_open_backend, settings, manifest))
            consumer = f"{socket.gethostname()}-{own.number}"
            queue = JobQueue(redis, consumer, manifest.fingerprint, manifest.dim)
            known = precomputed.read(settings.checkpoint, manifest.fingerprint)
            if known:  # otherwise, a model that fails at its canaries must not be registered
                await publish_known(queue, known, own.hashtags, until=opening.done)
            with _setup_errors(CheckpointError):
                backend = await opening
            missing.names = ["redis"]
            engine = Engine(backend, max_batch_tokens=own.max_batch_tokens, max_drafts=own.max_drafts)
            sampler = CategorySampler(engine, manifest.categories, own.free_category_share)
            cache = PredictionCache(own.cached_readings, known)
            worker = Worker(engine, queue, sampler, hashtags=own.hashtags, cache=cache)

            async def look() -> None:
                missing.names = [] if worker.connected else ["redis"]

            async with engine.running():
                with serving_at(address, "NOTELLM_WORKER__ADDRESSES"):
                    server = await serve(address, draft_handlers(engine))
                taking_over = task(_take_over(settings, redis, manifest.fingerprint))
                async with every(_LOOK_EVERY_S, look), taking_over, on_event(stop, worker.stop):
                    await worker.run()
                await engine.drain(_GRACE_S)
                await server.close()


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the commands about models ask: the registry, what it said, and the shards."""

    registry: "Registry"
    experiments: "Experiments"
    registered: "Registered"
    searcher: "ShardedSearcher"


@asynccontextmanager
async def rollout(settings: Settings) -> AsyncIterator[Rollout]:
    """The service that is set, or the one that `notellm serve` runs in the state folder. Raises SetupError."""
    from indexer.serving.client import ShardedSearcher
    from service.processes.state import reach
    from service.store.experiments.experiments import Experiments
    from service.store.registry import Registry

    _share_secret(settings)
    url, shards = reach(settings)
    redis, searcher = open_redis(url), ShardedSearcher(shards, "")
    try:
        registry = Registry(redis)
        yield Rollout(registry, Experiments(redis), await registry.registered(), searcher)
    finally:
        await searcher.close()
        await redis.aclose()


async def _take_over(settings: Settings, redis: "Redis", fingerprint: str) -> None:
    from indexer.serving.client import ShardedSearcher
    from service.store.registry import Registry
    from service.store.rollout import take_over

    if settings.worker.takes_over:
        searcher = ShardedSearcher(settings.index.addresses, fingerprint)
        try:
            await take_over(Registry(redis), searcher, fingerprint)
        finally:
            await searcher.close()


def _open_backend(settings: Settings, manifest: Manifest) -> "Backend":
    """The model, once it has said of the canaries what its checkpoint says; they warm it up, too.

    It abstains from notes that its tokenizer cannot read. The checkpoint of an adapter is made by the first start.
    """
    from model.inference import golden
    from model.inference.abstention import AbstainingBackend
    from model.inference.open import Runtime, gpu_memory, open_backend
    from model.network.adapter import AdapterError, merged

    own = settings.worker
    if own.backend == "vllm":
        make_folder(own.serving_dir, "NOTELLM_WORKER__SERVING_DIR")
    runtime = Runtime(own.dtype, own.threads, own.serving_dir, own.tensor_parallel, own.gpu_memory)
    try:
        checkpoint = merged(settings.checkpoint)
    except AdapterError as error:
        raise SetupError(f"{error} (NOTELLM_CHECKPOINT)") from error
    backend = open_backend(own.backend, checkpoint, runtime)
    started = time.monotonic()
    golden.check(backend, manifest)
    log.info("canaries_read", extra={"seconds": round(time.monotonic() - started, 3)})
    metrics.GPU_MEMORY_BYTES.set_function(gpu_memory)
    return AbstainingBackend(backend, prompt_builder(checkpoint, manifest).reads)


async def _indexer(settings: Settings) -> None:
    # It tells at length which of its builds it tried.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    from indexer.serving.server import serve_shard
    from service.shard.indexes import Indexes
    from service.shard.store_metrics import StoreWatch
    from service.store.changes import RedisChangeStream
    from service.store.connection import open_sync_redis
    from service.store.registry import Registry

    own = settings.index
    stop = stop_event()
    shard = replicas(_own_address(own.addresses, own.number, "NOTELLM_INDEX__NUMBER"))
    address = _own_address(shard, own.replica, "NOTELLM_INDEX__REPLICA")
    # Not the address: `serve` has other sockets after every start, and a name left behind holds the stream back.
    name = f"shard-{own.number}" if own.replica == 0 else f"shard-{own.number}-{own.replica}"
    url = redis_url(settings)
    missing = Readiness("the snapshot")

    def stream_of(fingerprint: str) -> RedisChangeStream:
        return RedisChangeStream(open_sync_redis(url), fingerprint, name)

    with _operations(settings.ops, missing, "indexer", ""):
        make_folder(own.snapshot_dir / name, "NOTELLM_INDEX__SNAPSHOT_DIR")
        with serving_at(address, "NOTELLM_INDEX__ADDRESSES"):
            server = await serve_shard(address, shard=own.number, threads=own.threads)
        indexes = Indexes(
            own.snapshot_dir / name,
            server,
            stream_of,
            shard=own.number,
            shards=len(own.addresses),
            snapshot_every_s=own.snapshot_every_s,
        )
        async with _redis(settings, missing) as redis:
            registry = Registry(redis)
            watch = StoreWatch(partial(redis_info, redis), registry, RedisStore(redis, settings.max_queue))

            async def adjust() -> None:
                with contextlib.suppress(StoreUnavailable):
                    registered = await registry.registered()
                    await indexes.adjust(registered.dims)
                    ready = registered.active is None or indexes.caught_up(registered.active)
                    missing.names = [] if ready else ["the changes so far"]

            try:
                await indexes.load()
                missing.names = ["the changes so far"]
                async with (
                    every(_FOLLOW_EVERY_S, adjust),
                    every(_LOOK_EVERY_S, indexes.measure_lag),
                    every(_LOOK_EVERY_S, watch.look),
                ):
                    await stop.wait()
                await server.close()
            finally:
                await indexes.close()


async def _missing(
    redis: "Redis", searcher: "Searcher", drafter: "Drafter", shards: int, fingerprint: str
) -> list[str]:
    """What a gateway lacks to answer for the model of searcher and drafter."""
    answers, states, ready = await asyncio.gather(
        _answers(redis), searcher.status(timeout_s=_PROBE_S), drafter.ready(timeout_s=_PROBE_S)
    )
    there = {state.shard for state in states}
    for shard in range(shards):
        metrics.SHARD_UP.labels(str(shard)).set(shard in there)
    return [
        *([] if answers else ["redis"]),
        *(f"shard {shard}" for shard in range(shards) if shard not in there),
        *([] if ready else [f"{NO_WORKER} of model {fingerprint}"]),
    ]


async def _answers(redis: "Redis") -> bool:
    try:
        with redis_errors():
            async with asyncio.timeout(_PROBE_S):
                await redis.ping()
    except (StoreUnavailable, TimeoutError):
        return False
    return True


def _manifest(settings: Settings) -> Manifest:
    with _setup_errors(CheckpointError):
        return described(settings.checkpoint)


def _own_address(addresses: Sequence[str], number: int, variable: str) -> str:
    if number >= len(addresses):
        raise SetupError(f"{variable}={number}, but there are only {len(addresses)} addresses, from 0 on")
    return addresses[number]


@asynccontextmanager
async def _redis(settings: Settings, readiness: Readiness, *, timeout_s: float = 5.0) -> "AsyncIterator[Redis]":
    url = redis_url(settings)
    check = RedisCheck(url, readiness)
    await check.start()
    redis = open_redis(url, timeout_s=timeout_s)
    try:
        async with every(EVERY_S, check.look):
            yield redis
    finally:
        await redis.aclose()


@contextmanager
def _operations(ops: OpsSettings, missing: Readiness, process: str, fingerprint: str) -> Iterator[None]:
    metrics.BUILD_INFO.labels(process, importlib.metadata.version("notellm"), fingerprint).set(1)
    with operations(ops, missing):
        yield


@contextmanager
def _setup_errors(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise SetupError(str(error)) from error
