"""A gateway: HTTP in front, Redis, shards and workers behind."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from model.network.checkpoint import CheckpointError
from service import metrics, traces
from service.background import SIGNALS, every
from service.errors import StoreUnavailable
from service.processes.health import NO_WORKER, Readiness
from service.processes.ports import listen
from service.settings import Settings, SetupError, reason_of
from service.store.cells.ring import gathered
from service.store.connection import redis_errors
from service.wiring.process import FOLLOW_EVERY_S, manifest_of, observed, setup_errors, share_secret, watched_cells

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from indexer.serving.client import ShardedSearcher
    from indexer.types import Searcher
    from service.keys import Keyring
    from service.recommend.workers import Drafter
    from service.store.cells.ring import Cells

_COMPLETE_EVERY_S = 5.0
_PROBE_EVERY_S = 1.0
_PROBE_S = 0.8
_INDEX_IDS_EVERY_S = 5.0
_KEYS_EVERY_S = 0.5
_ANSWERS_EVERY_S = 5.0
_REPORT_EVERY_S = 1.0
_WEBHOOK_S = 10.0
_YOUNG_OBJECTS = 10_000


def run(settings: Settings) -> None:
    """A gateway: HTTP in front, Redis, shards and workers behind; in several processes, if so set."""
    import uvloop

    traces.configure("gateway")
    share_secret(settings)
    # With Python's 700, what a few requests hold counts as growth, and every two seconds the collector walks over all
    # notes that are remembered: 0.2 s in which nobody is answered. With more than these, or with Python's ten young
    # collections before a larger one, a thousand new connections cost a pause of 70 ms.
    gc.set_threshold(_YOUNG_OBJECTS, 1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from indexer.serving.client import ShardedSearcher
    from model.inference.calibration import scores_of
    from model.text import languages
    from service.api import audit
    from service.api.app import create_app
    from service.experiments.assignment import Assignments
    from service.experiments.guard import EVERY_S as EVERY_GUARD_S
    from service.experiments.guard import Guard
    from service.experiments.overview import EVERY_S as EVERY_OVERVIEW_S
    from service.experiments.overview import Overview
    from service.keys import open_keyring
    from service.recommend.active_model import ActiveModel
    from service.recommend.recommender import Recommender
    from service.recommend.vocabulary import HashtagVocabulary
    from service.recommend.workers import WorkerPool
    from service.server.admission import Admission
    from service.server.server import BACKLOG, GatewayServer, allow_connections
    from service.store.attribution.buffer import AnswerBuffer
    from service.store.attribution.exposure import EVERY_S as EVERY_EXPOSURE_S
    from service.store.attribution.quality import Quality
    from service.store.attribution.reach import EVERY_S as EVERY_REACH_S
    from service.store.attribution.reach import ReachWatch
    from service.store.experiments.experiments import Experiments
    from service.store.experiments.findings import Findings
    from service.store.experiments.watches import Watches
    from service.store.idempotency import RedisAnswers
    from service.store.rollout import obstacle
    from service.wiring import stores

    manifest = manifest_of(settings)
    with setup_errors(CheckpointError):
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
    with observed(settings.ops, missing, "gateway", manifest.fingerprint):
        async with watched_cells(settings, missing, timeout_s=settings.http.write_s) as cells:
            redis = cells.first
            store = stores.note_store(cells, settings.max_queue)
            logged = settings.attribution
            answer_log = stores.answer_log(cells, logged.answers, logged.days)
            buffer = AnswerBuffer(answer_log, logged.share)
            reach = ReachWatch(answer_log)
            events = stores.event_log(cells, answer_log)
            vocabulary = HashtagVocabulary(stores.hashtag_store(cells), settings.http.related_s)

            def recommender(fingerprint: str) -> Recommender:
                own = searcher.of(fingerprint), workers.of(fingerprint)
                # What another model's figures mean is not known here: its checkpoint is elsewhere.
                calibrated = scores if fingerprint == manifest.fingerprint else None
                return Recommender(store, events, vocabulary, *own, settings, fingerprint, calibrated)

            experiments = Experiments(redis)
            assignments = Assignments(experiments.changed)
            overview = Overview(experiments.changed, Findings(redis).changed)
            registry = stores.registry(cells)
            quality = Quality(redis, buffer.counts)
            way_back = partial(obstacle, registry, searcher)
            guard = Guard(Watches(redis), quality, way_back, settings.guard)
            active = ActiveModel(registry.active, manifest.fingerprint, recommender, assignments)
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
                reach=lambda: reach.latest,
                watch=lambda: guard.latest,
                overview=overview,
            )
            admission = Admission(traces.around(app), settings.limits, keys, app.routes)
            server = GatewayServer(admission, missing.leave, settings.http.cors_origins)
            # uvicorn raises the signal that stopped it again, which would end us before we have cleaned up.
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)

            async def probe() -> None:
                model, shards = active.fingerprint, len(settings.index.addresses)
                missing.names = await _missing(cells, searcher.of(model), workers.of(model), shards, model)

            async def index_ids() -> None:
                with contextlib.suppress(StoreUnavailable):
                    await store.index_ids()

            # A stack: of so many in one statement the compiler of Python 3.12.1 crashes, and pip with it.
            async with contextlib.AsyncExitStack() as background:
                for period_s, work in (
                    (FOLLOW_EVERY_S, active.follow),
                    (FOLLOW_EVERY_S, assignments.follow),
                    (FOLLOW_EVERY_S, vocabulary.follow),
                    (EVERY_OVERVIEW_S, overview.follow),
                    (_COMPLETE_EVERY_S, stores.completion(cells)),
                    (_COMPLETE_EVERY_S, events.complete),
                    (_INDEX_IDS_EVERY_S, index_ids),
                    (_PROBE_EVERY_S, probe),
                    (_KEYS_EVERY_S, _follow(keys)),
                    (_ANSWERS_EVERY_S, buffer.flush),
                    (_ANSWERS_EVERY_S, quality.flush),
                    (EVERY_GUARD_S, guard),
                    (EVERY_EXPOSURE_S, stores.exposure(cells)),
                    (EVERY_REACH_S, reach),
                    (_REPORT_EVERY_S, admission.report),
                    (_REPORT_EVERY_S, app.state.refusals.report),
                ):
                    await background.enter_async_context(every(period_s, work))
                await background.enter_async_context(_webhook(settings, cells, searcher))
                await server.serve(sockets=[listener])
            await buffer.flush()
            await searcher.close()
            await workers.close()


@contextlib.asynccontextmanager
async def _webhook(settings: Settings, cells: "Cells[Redis]", searcher: "ShardedSearcher") -> AsyncIterator[None]:
    """Tells the webhook during the block, if there is one."""
    if settings.webhook_url is None or settings.webhook_secret is None:
        yield
        return
    import httpx

    from service.store.webhook.notices import RedisNotices
    from service.webhook import EVERY_S, Webhook

    url, secret = settings.webhook_url.get_secret_value(), settings.webhook_secret.get_secret_value()
    async with httpx.AsyncClient(timeout=_WEBHOOK_S) as client:
        webhook = Webhook(url, secret, RedisNotices(cells), searcher.of, len(settings.index.addresses), client)
        async with every(EVERY_S, webhook):
            yield


def _follow(keys: "Keyring | None") -> Callable[[], Awaitable[None]]:
    async def follow() -> None:
        if keys:
            await asyncio.to_thread(keys.refresh)

    return follow


async def _missing(
    cells: "Cells[Redis]", searcher: "Searcher", drafter: "Drafter", shards: int, fingerprint: str
) -> list[str]:
    """What a gateway lacks to answer for the model of searcher and drafter."""
    answers, states, ready = await asyncio.gather(
        _answers(cells), searcher.status(timeout_s=_PROBE_S), drafter.ready(timeout_s=_PROBE_S)
    )
    there = {state.shard for state in states}
    for shard in range(shards):
        metrics.SHARD_UP.labels(str(shard)).set(shard in there)
    return [
        *([] if answers else ["redis"]),
        *(f"shard {shard}" for shard in range(shards) if shard not in there),
        *([] if ready else [f"{NO_WORKER} of model {fingerprint}"]),
    ]


async def _answers(cells: "Cells[Redis]") -> bool:
    try:
        with redis_errors():
            async with asyncio.timeout(_PROBE_S):
                await gathered(redis.ping() for redis in cells)
    except (StoreUnavailable, TimeoutError):
        return False
    return True
