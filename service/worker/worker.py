"""The worker: claims jobs, runs the model on their notes and publishes the predictions.

Three loops overlap: jobs are claimed and tokenized until there is enough for two forward passes, the engine predicts
one batch after the other, and the predictions of the batch before are published. A job is in flight from its claim
until Redis has confirmed its prediction or failure; the jobs in flight when the worker ends are released.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from model.backend import Prediction, Prompt
from model.batching import together
from model.note import Note
from service import metrics, traces
from service.errors import StoreUnavailable
from service.store.jobs import Claimed, JobQueue
from service.store.records import StoredPrediction, source_of
from service.worker.category_sampler import CategorySampler
from service.worker.engine import BackendBroken, Engine, ran_out_of_memory
from service.worker.prediction_cache import PredictionCache

log = logging.getLogger(__name__)

T = TypeVar("T")

CLAIM_LIMIT = 256
MAX_DELIVERIES = 5
# Tokenized while a batch runs: enough to choose notes of similar length from, and little to keep from other workers.
_BATCHES_AHEAD = 2
_NOTES_A_BATCH = 8
_BLOCK_S = 0.2
_REASON_CHARS = 200
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class _Work:
    """A job with its note, in the version that the job names."""

    item: Claimed
    note: Note
    source: bytes


@dataclass(frozen=True, slots=True)
class _Ready:
    """Work that waits for the model."""

    work: _Work
    prompt: Prompt

    @property
    def tokens(self) -> int:
        return len(self.prompt.token_ids)


class Worker:
    """Works through the queue until stopped. It waits for a dead Redis, and dead-letters a note that the model refuses.

    Memory is bounded: at most `CLAIM_LIMIT` jobs are in flight.
    """

    def __init__(
        self, engine: Engine, queue: JobQueue, sampler: CategorySampler, *, hashtags: int, cache: PredictionCache
    ) -> None:
        self.connected = False
        self._engine = engine
        self._queue = queue
        self._sampler = sampler
        self._hashtags = hashtags
        self._cache = cache
        self._in_flight: set[str] = set()
        self._ready: list[_Ready] = []
        self._mean_tokens = max(1, engine.batch_tokens // _NOTES_A_BATCH)
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Finish the batch that runs, and no other."""
        self._stop.set()
        self._changed.set()

    async def run(self) -> None:
        """Work until `stop`. Raises BackendBroken when the model cannot predict any more."""
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(self._heartbeat()), tasks.create_task(self._watch_engine())]
            async with asyncio.TaskGroup() as work:
                work.create_task(self._claim_jobs())
                work.create_task(self._predict_batches())
            for task in background:
                task.cancel()
        with suppress(StoreUnavailable):
            await self._queue.release(list(self._in_flight))
        if self._engine.broken.is_set():
            raise BackendBroken("the model cannot predict any more")

    async def _claim_jobs(self) -> None:
        pauses = backoff()
        while not self._stop.is_set():
            try:
                # A queue that was opened takes every pending job of this worker for abandoned.
                if await self._until_none_in_flight():
                    await self._open()
                while not self._stop.is_set():
                    await self._claim()
                    pauses = backoff()
            except StoreUnavailable as error:
                self.connected = False
                log.warning("store_unavailable", extra={"reason": str(error)})
                await self._pause(next(pauses))

    async def _open(self) -> None:
        queued = await self._queue.open()
        if queued:
            log.info("model_registered", extra={"queued": queued})
        self.connected = True

    async def _claim(self) -> None:
        if await self._queue.has_abandoned():
            # An abandoned job may have killed a worker: no other is in flight while its note is predicted.
            if await self._until_none_in_flight():
                await self._prepare(await self._queue.reclaim(CLAIM_LIMIT))
                await self._until_none_in_flight()
        elif await self._until(lambda: self._room() > 0):
            await self._prepare(await self._queue.claim(self._room(), _BLOCK_S))

    def _room(self) -> int:
        """How many more notes of mean length keep the model busy."""
        tokens = _BATCHES_AHEAD * self._engine.batch_tokens - sum(ready.tokens for ready in self._ready)
        return min(-(-tokens // self._mean_tokens), CLAIM_LIMIT - len(self._in_flight))

    async def _prepare(self, claimed: Sequence[Claimed]) -> None:
        """Finish the jobs that need no forward pass, and make the others ready for one."""
        if not claimed:
            return
        works = await self._unpredicted(await self._current(claimed))
        prompts = await self._engine.tokenize([work.note for work in works]) if works else []
        ready = []
        for work, prompt in zip(works, prompts, strict=True):
            if isinstance(prompt, Prompt):
                ready.append(_Ready(work, prompt))
            else:
                await self._dead_letter(work.item, prompt)
        if ready:
            self._mean_tokens = max(1, sum(one.tokens for one in ready) // len(ready))
        self._in_flight.update(one.work.item.entry for one in ready)
        self._ready += ready
        self._changed.set()

    async def _current(self, claimed: Sequence[Claimed]) -> list[_Work]:
        """The jobs for their note's present version; finishes outdated jobs, dead-letters jobs that kill workers."""
        records = await self._queue.notes(claimed)
        current, outdated = [], []
        for item, record in zip(claimed, records, strict=True):
            if record is None or record.deleted or record.version != item.job.version:
                outdated.append(item.entry)
            elif item.deliveries > MAX_DELIVERIES:
                error = RuntimeError(f"{item.deliveries - 1} workers or their memory did not survive this note")
                await self._dead_letter(item, error)
            else:
                current.append(_Work(item, record.note, source_of(record.note, self._hashtags)))
        await self._queue.finish(outdated)
        return current

    async def _unpredicted(self, works: Sequence[_Work]) -> list[_Work]:
        """The jobs that need a forward pass; where the prediction for the same source is known, publishes it again."""
        stored = await self._queue.predictions([work.item for work in works])
        known, unknown = [], []
        for work, prediction in zip(works, stored, strict=True):
            if prediction and (prediction.source, prediction.fingerprint) == (work.source, self._engine.fingerprint):
                metrics.EMBED_CACHE_HITS.labels("stored").inc()
            elif prediction := self._cache.get(work.source):
                metrics.EMBED_CACHE_HITS.labels("recent").inc()
            else:
                unknown.append(work)
                continue
            known.append((work.item, replace(prediction, version=work.item.job.version)))
        metrics.NOTES_EMBEDDED.inc(await self._retry(lambda: self._queue.publish(known)))
        return unknown

    async def _predict_batches(self) -> None:
        async with asyncio.TaskGroup() as publishing:
            while batch := await self._next_batch():
                prompts = [ready.prompt for ready in batch]
                metrics.EMBED_STAGE_SECONDS.labels("queue").observe(max(ready.work.item.queued_s for ready in batch))
                try:
                    with traces.following("read", (ready.work.item.job.traceparent for ready in batch)):
                        predictions = await self._engine.predict(prompts, self._hashtags)
                except BackendBroken:
                    return
                log.info("batch_read", extra={"notes": len(batch), "tokens": sum(ready.tokens for ready in batch)})
                publishing.create_task(self._publish(batch, predictions))

    async def _next_batch(self) -> list[_Ready]:
        """The oldest note that is ready and others of similar length; none when stopped."""
        if not await self._until(lambda: bool(self._ready)):
            return []
        positions = set(together([ready.tokens for ready in self._ready], self._engine.batch_tokens))
        batch = [ready for position, ready in enumerate(self._ready) if position in positions]
        self._ready = [ready for position, ready in enumerate(self._ready) if position not in positions]
        self._changed.set()
        return batch

    async def _publish(self, batch: Sequence[_Ready], predictions: Sequence[Prediction | Exception]) -> None:
        good, bad = [], []
        for ready, prediction in zip(batch, predictions, strict=True):
            if isinstance(prediction, Prediction):
                good.append((ready, self._record(ready.work, prediction)))
            else:
                bad.append((ready.work.item, prediction))
        records = [(ready.work.item, record) for ready, record in good]
        try:
            metrics.NOTES_EMBEDDED.inc(await self._retry(lambda: self._queue.publish(records)))
            for item, error in bad:
                await self._settle_failure(item, error)
        except StoreUnavailable:
            log.warning("batch_left", extra={"notes": len(batch)})
            return
        finally:
            self._in_flight.difference_update(ready.work.item.entry for ready in batch)
            self._changed.set()
        for _, record in records:
            self._cache.put(record)
        if not self._stop.is_set():
            await self._sampler.sample([ready.prompt for ready, _ in good])

    def _record(self, work: _Work, prediction: Prediction) -> StoredPrediction:
        return StoredPrediction(
            work.item.job.version,
            self._engine.fingerprint,
            prediction.vector,
            tuple((tag.name, tag.score) for tag in prediction.hashtags),
            None if prediction.category is None else (prediction.category.name, prediction.category.score),
            work.source,
        )

    async def _settle_failure(self, item: Claimed, error: Exception) -> None:
        if ran_out_of_memory(error):
            # Abandoned: later, or at another worker, there may be memory. `MAX_DELIVERIES` ends it.
            log.warning("note_left", extra={"entry": item.entry, "error": type(error).__name__})
        else:
            await self._dead_letter(item, error)

    async def _dead_letter(self, item: Claimed, error: Exception) -> None:
        kind = type(error).__name__
        metrics.NOTES_FAILED.inc()
        # The message may quote the note, so it goes to the note's owner and not to the log.
        log.warning("note_failed", extra={"entry": item.entry, "error": kind})
        reason = f"{kind}: {error}"[:_REASON_CHARS].encode(errors="replace").decode()
        await self._retry(lambda: self._queue.dead_letter(item, reason))

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._queue.take_over_s / 3)
            with suppress(StoreUnavailable):
                await self._queue.heartbeat(list(self._in_flight))

    async def _watch_engine(self) -> None:
        await self._engine.broken.wait()
        self.stop()

    async def _until_none_in_flight(self) -> bool:
        return await self._until(lambda: not self._in_flight)

    async def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition on the jobs in flight or ready; False when stopped."""
        while not (self._stop.is_set() or condition()):
            self._changed.clear()
            await self._changed.wait()
        return not self._stop.is_set()

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent call until Redis answers, so that no forward pass is wasted."""
        for pause_s in backoff():
            try:
                return await call()
            except StoreUnavailable as error:
                if self._stop.is_set():
                    raise
                log.warning("store_unavailable", extra={"reason": str(error)})
                await self._pause(pause_s)
        raise AssertionError("backoff never ends")

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


def backoff() -> Iterator[float]:
    """Pauses in seconds, growing to a cap, without end."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
