"""The worker: takes jobs from the queue, has their notes read and publishes the readings.

Three things go on at once: jobs are claimed and tokenized until there is enough for two forward passes, the engine
reads one batch after the other, and the readings of the batch before are published. Jobs stay in the worker's hand
from the claim until Redis has confirmed what became of them; what is in hand when the worker ends is handed back.
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
# Tokenized and waiting while a batch runs: enough to choose notes of like length from, little to hold back from others.
_BATCHES_AHEAD = 2
_NOTES_A_BATCH = 8
_BLOCK_S = 0.2
_REASON_CHARS = 200
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class _Work:
    """A job whose note is to be read, and the name of what will be asked."""

    item: Claimed
    note: Note
    source: bytes


@dataclass(frozen=True, slots=True)
class _Ready:
    """A job that waits for the model."""

    work: _Work
    prompt: Prompt

    @property
    def tokens(self) -> int:
        return len(self.prompt.token_ids)


class Worker:
    """Reads the queue's notes until told to stop. A dead Redis is waited for, a bad note is given up.

    Memory is bounded: at most `CLAIM_LIMIT` jobs are in hand.
    """

    def __init__(
        self, engine: Engine, queue: JobQueue, sampler: CategorySampler, *, hashtags: int, cached_readings: int
    ) -> None:
        self.connected = False
        self._engine = engine
        self._queue = queue
        self._sampler = sampler
        self._hashtags = hashtags
        self._cache = PredictionCache(cached_readings)
        self._hand: set[str] = set()
        self._ready: list[_Ready] = []
        self._mean_tokens = max(1, engine.batch_tokens // _NOTES_A_BATCH)
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Finish the batch that runs, and no other. What was claimed beyond it is handed back."""
        self._stop.set()
        self._changed.set()

    async def run(self) -> None:
        """Work until `stop`. Raises BackendBroken when the model can read nothing any more."""
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._heartbeat()), tasks.create_task(self._watch_engine())]
            async with asyncio.TaskGroup() as work:
                work.create_task(self._claim_on())
                work.create_task(self._read_on())
            for task in beside:
                task.cancel()
        with suppress(StoreUnavailable):
            await self._queue.release(list(self._hand))
        if self._engine.broken.is_set():
            raise BackendBroken("the model can read nothing any more")

    async def _claim_on(self) -> None:
        pauses = backoff()
        while not self._stop.is_set():
            try:
                # Opening finds what this worker left pending, and must not find what it holds.
                if await self._empty_handed():
                    await self._open()
                while not self._stop.is_set():
                    await self._claim()
                    pauses = backoff()
            except StoreUnavailable:
                self.connected = False
                log.warning("store_unavailable")
                await self._pause(next(pauses))

    async def _open(self) -> None:
        queued = await self._queue.open()
        if queued:
            log.info("model_registered", extra={"queued": queued})
        self.connected = True

    async def _claim(self) -> None:
        if await self._queue.has_abandoned():
            # It may have killed a worker: nothing else is in hand while it is read.
            if await self._empty_handed():
                await self._prepare(await self._queue.reclaim(CLAIM_LIMIT))
                await self._empty_handed()
        elif await self._until(lambda: self._room() > 0):
            await self._prepare(await self._queue.claim(self._room(), _BLOCK_S))

    def _room(self) -> int:
        """How many more notes of middling length keep the model busy."""
        tokens = _BATCHES_AHEAD * self._engine.batch_tokens - sum(ready.tokens for ready in self._ready)
        return min(-(-tokens // self._mean_tokens), CLAIM_LIMIT - len(self._hand))

    async def _prepare(self, claimed: Sequence[Claimed]) -> None:
        """Deal with the jobs that need no model, and make the others ready for it."""
        if not claimed:
            return
        wanted = await self._not_known(await self._still_wanted(claimed))
        prompts = await self._engine.tokenize([work.note for work in wanted]) if wanted else []
        ready = []
        for work, prompt in zip(wanted, prompts, strict=True):
            if isinstance(prompt, Prompt):
                ready.append(_Ready(work, prompt))
            else:
                await self._fail(work.item, prompt)
        if ready:
            self._mean_tokens = max(1, sum(one.tokens for one in ready) // len(ready))
        self._hand.update(one.work.item.entry for one in ready)
        self._ready += ready
        self._changed.set()

    async def _still_wanted(self, claimed: Sequence[Claimed]) -> list[_Work]:
        """The jobs whose note is still of their version; the others are finished, the killers given up."""
        records = await self._queue.notes(claimed)
        wanted, outdated = [], []
        for item, record in zip(claimed, records, strict=True):
            if record is None or record.deleted or record.version != item.job.version:
                outdated.append(item.entry)
            elif item.deliveries > MAX_DELIVERIES:
                times = item.deliveries - 1
                await self._fail(item, RuntimeError(f"{times} workers or their memory did not survive this note"))
            else:
                wanted.append(_Work(item, record.note, source_of(record.note, self._hashtags)))
        await self._queue.finish(outdated)
        return wanted

    async def _not_known(self, wanted: Sequence[_Work]) -> list[_Work]:
        """Those that the model has to read; where it was asked the same before, that answer is published again."""
        stored = await self._queue.predictions([work.item for work in wanted])
        known, unknown = [], []
        for work, prediction in zip(wanted, stored, strict=True):
            if prediction and (prediction.source, prediction.fingerprint) == (work.source, self._engine.fingerprint):
                metrics.EMBED_CACHE_HITS.labels("stored").inc()
            elif prediction := self._cache.get(work.source):
                metrics.EMBED_CACHE_HITS.labels("recent").inc()
            else:
                unknown.append(work)
                continue
            known.append((work.item, replace(prediction, version=work.item.job.version)))
        metrics.NOTES_EMBEDDED.inc(await self._until_it_answers(lambda: self._queue.publish(known)))
        return unknown

    async def _read_on(self) -> None:
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
        """The oldest note that is ready and others of like length; none when told to stop."""
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
            metrics.NOTES_EMBEDDED.inc(await self._until_it_answers(lambda: self._queue.publish(records)))
            for item, error in bad:
                await self._give_up(item, error)
        except StoreUnavailable:
            log.warning("batch_left", extra={"notes": len(batch)})
            return
        finally:
            self._hand.difference_update(ready.work.item.entry for ready in batch)
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

    async def _give_up(self, item: Claimed, error: Exception) -> None:
        if ran_out_of_memory(error):
            # Left pending: there may be room another time, or at another worker. `MAX_DELIVERIES` ends it.
            log.warning("note_left", extra={"entry": item.entry, "error": type(error).__name__})
        else:
            await self._fail(item, error)

    async def _fail(self, item: Claimed, error: Exception) -> None:
        kind = type(error).__name__
        metrics.NOTES_FAILED.inc()
        # The message may quote the note, so it goes to the note's owner and not to the log.
        log.warning("note_failed", extra={"entry": item.entry, "error": kind})
        reason = f"{kind}: {error}"[:_REASON_CHARS].encode(errors="replace").decode()
        await self._until_it_answers(lambda: self._queue.fail(item, reason))

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._queue.take_over_s / 3)
            with suppress(StoreUnavailable):
                await self._queue.heartbeat(list(self._hand))

    async def _watch_engine(self) -> None:
        await self._engine.broken.wait()
        self.stop()

    async def _empty_handed(self) -> bool:
        return await self._until(lambda: not self._hand)

    async def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition on the hand or on what is ready; False when told to stop."""
        while not (self._stop.is_set() or condition()):
            self._changed.clear()
            await self._changed.wait()
        return not self._stop.is_set()

    async def _until_it_answers(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat what is safe to repeat until Redis answers, so that no forward pass is wasted."""
        for pause_s in backoff():
            try:
                return await call()
            except StoreUnavailable:
                if self._stop.is_set():
                    raise
                log.warning("store_unavailable")
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
