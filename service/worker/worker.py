"""The worker: claims jobs, runs the model on their notes and publishes the predictions.

Jobs are claimed and tokenized ahead, so that the engine never waits for notes, and each prediction is published when it
is complete, together with those that became so during the publication before. A job is in flight from its claim until
Redis has confirmed its prediction or failure; the jobs in flight when the worker ends are released.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from model.backend import Prediction, Prompt
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

CLAIM_LIMIT = 512
MAX_DELIVERIES = 5
# Tokenized while the model is full: enough to choose notes of like length from, and little to keep from other workers.
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
        self._in_flight: dict[str, int] = {}  # tokens of the note of each entry
        self._complete: list[tuple[_Ready, Prediction | Exception]] = []
        self._publishing = asyncio.Lock()
        self._mean_tokens = max(1, engine.batch_tokens // _NOTES_A_BATCH)
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Finish the notes that are in the model, and no other."""
        self._stop.set()
        self._engine.withdraw()
        self._changed.set()

    async def run(self) -> None:
        """Work until `stop`. Raises BackendBroken when the model cannot predict any more."""
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(self._heartbeat()), tasks.create_task(self._watch_engine())]
            async with asyncio.TaskGroup() as self._work:
                self._work.create_task(self._claim_jobs())
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
        elif await self._until(self._has_room):
            await self._prepare(await self._queue.claim(self._room(), _BLOCK_S))

    def _has_room(self) -> bool:
        """Whether a claim is worth a call: a batch is missing of one in the model and those ahead."""
        tokens = sum(self._in_flight.values())
        return tokens <= _BATCHES_AHEAD * self._engine.batch_tokens and len(self._in_flight) < CLAIM_LIMIT

    def _room(self) -> int:
        """How many more notes of mean length keep the model busy: no more than those ahead, as the mean is a guess."""
        batch = self._engine.batch_tokens
        tokens = min(_BATCHES_AHEAD * batch, (1 + _BATCHES_AHEAD) * batch - sum(self._in_flight.values()))
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
        self._in_flight |= {one.work.item.entry: one.tokens for one in ready}
        if not self._stop.is_set():
            for one in ready:
                self._work.create_task(self._predict(one))

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

    async def _predict(self, ready: _Ready) -> None:
        """Predict and publish, unless the engine withdraws the note or breaks: then it is left in flight."""
        item = ready.work.item
        outcome: Prediction | Exception
        try:
            with traces.following("read", [item.job.traceparent]):
                outcome = await self._engine.predict(ready.prompt, self._hashtags, item.queued_s)
        except BackendBroken:
            return
        except Exception as error:
            outcome = error
        self._complete.append((ready, outcome))
        async with self._publishing:
            complete, self._complete = self._complete, []
            if complete:
                await self._publish(complete)

    async def _publish(self, complete: Sequence[tuple[_Ready, Prediction | Exception]]) -> None:
        good = [(ready, self._record(ready.work, one)) for ready, one in complete if isinstance(one, Prediction)]
        bad = [(ready.work.item, one) for ready, one in complete if isinstance(one, Exception)]
        records = [(ready.work.item, record) for ready, record in good]
        try:
            metrics.NOTES_EMBEDDED.inc(await self._retry(lambda: self._queue.publish(records)))
            for item, error in bad:
                await self._settle_failure(item, error)
        except StoreUnavailable:
            log.warning("notes_left", extra={"notes": len(complete)})
            return
        finally:
            for ready, _ in complete:
                self._in_flight.pop(ready.work.item.entry, None)
            self._changed.set()
        log.info("notes_read", extra={"notes": len(complete), "tokens": sum(ready.tokens for ready, _ in complete)})
        for _, record in records:
            self._cache.put(record)
        if not self._stop.is_set():
            self._work.create_task(self._sampler.sample([ready.prompt for ready, _ in good]))

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
