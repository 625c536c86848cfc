"""One worker: the model, the queue and the drafts."""

import asyncio
import logging
import os
import socket
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from model.network.checkpoint import CheckpointError, Manifest, prompt_builder
from service import metrics, traces
from service.background import every, on_event, stop_event, task
from service.errors import StoreUnavailable
from service.processes.health import Readiness
from service.processes.ports import serving_at
from service.processes.state import make_folder
from service.settings import Settings, SetupError
from service.wiring.process import (
    LOOK_EVERY_S,
    manifest_of,
    observed,
    own_address,
    setup_errors,
    share_secret,
    watched_cells,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from model.backend import Backend
    from service.store.cells.ring import Cells
    from service.store.registry import Registry

log = logging.getLogger(__name__)

GRACE_S = 8


def run(settings: Settings) -> None:
    """One worker: the model, the queue and the drafts."""
    # Threads that wait for each other in a loop burn four fifths of the time where other processes want the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    traces.configure("worker")
    share_secret(settings)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from indexer.rpc.server import serve
    from service.experiments.way_back import EVERY_S, WayBack
    from service.store.experiments.watches import Watches
    from service.wiring import stores
    from service.worker import precomputed
    from service.worker.category_sampler import CategorySampler
    from service.worker.drafts import draft_handlers
    from service.worker.engine import Engine
    from service.worker.known import publish_known
    from service.worker.prediction_cache import PredictionCache
    from service.worker.worker import Worker

    own = settings.worker
    stop = stop_event()
    manifest = manifest_of(settings)
    address = own_address(own.addresses, own.number, "NOTELLM_WORKER__NUMBER")
    missing = Readiness("the model", "redis")
    with observed(settings.ops, missing, "worker", manifest.fingerprint):
        # Redis first: the model may take minutes.
        async with watched_cells(settings, missing) as cells:
            opening = asyncio.create_task(asyncio.to_thread(_open_backend, settings, manifest))
            consumer = f"{socket.gethostname()}-{own.number}"
            queue = stores.job_queue(cells, consumer, manifest.fingerprint, manifest.dim)
            known = precomputed.read(settings.checkpoint, manifest.fingerprint)
            if known:  # otherwise, a model that fails at its canaries must not be registered
                await publish_known(queue, known, own.hashtags, until=opening.done)
            with setup_errors(CheckpointError):
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
                taking_over = task(_take_over(settings, cells, manifest.fingerprint))
                way_back = every(EVERY_S, WayBack(manifest.fingerprint, Watches(cells.first).take_back))
                following = every(LOOK_EVERY_S, partial(_follow, stores.registry(cells)))
                async with every(LOOK_EVERY_S, look), taking_over, way_back, following, on_event(stop, worker.stop):
                    await worker.run()
                await engine.drain(GRACE_S)
                await server.close()


async def _follow(registry: "Registry") -> None:
    with suppress(StoreUnavailable):
        await registry.follow()


async def _take_over(settings: Settings, cells: "Cells[Redis]", fingerprint: str) -> None:
    from indexer.serving.client import ShardedSearcher
    from service.store.rollout import take_over
    from service.wiring import stores

    if settings.worker.takes_over:
        searcher = ShardedSearcher(settings.index.addresses, fingerprint)
        try:
            await take_over(stores.registry(cells), searcher, fingerprint)
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
