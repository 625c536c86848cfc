"""The worker: one model on one thread, for drafts that somebody waits for and for the queue of stored notes.

`Engine` decides who uses the model next. `Worker` takes jobs from the queue, has them read and publishes the
readings; while one batch runs, the readings of the one before are published.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from model.backends.base import Backend, Prompt, Reading
from model.batching import batches, fits
from model.note import Note
from service import metrics
from service.errors import StoreUnavailable, WorkerUnavailable
from service.messages import StoredReading
from service.streams import Claimed, JobQueue
from service.turns import Turn, next_turn

log = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")

CLAIM_LIMIT = 256
MAX_DELIVERIES = 5
_BLOCK_S = 0.2
_NORM_TOLERANCE = 1e-3
_REASON_CHARS = 200
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class _Draft:
    note: Note
    max_hashtags: int
    expires: float
    answer: "asyncio.Future[Reading]"


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], Any]
    answer: "asyncio.Future[Any]"


class Engine:
    """The model on its own thread: drafts go first, but stored notes that wait get every second turn."""

    def __init__(self, backend: Backend, *, max_batch_tokens: int, max_drafts: int) -> None:
        self.fingerprint = backend.fingerprint
        self.max_batch_tokens = max_batch_tokens
        self._backend = backend
        self._max_drafts = max_drafts
        self._drafts: deque[_Draft] = deque()
        self._backlog: deque[_Call] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take turns until left; leaving waits for the batch that runs and drops whatever else waits."""
        turns = asyncio.create_task(self._take_turns())
        try:
            yield
        finally:
            turns.cancel()
            with suppress(asyncio.CancelledError):
                await turns
            for draft in self._drafts:
                draft.answer.cancel()
            for call in self._backlog:
                call.answer.cancel()
            await asyncio.to_thread(self._thread.shutdown)

    async def read_draft(self, note: Note, max_hashtags: int, timeout_s: float) -> Reading:
        """Read one draft.

        Raises WorkerUnavailable when too many wait or its time was up before its turn came, and whatever the
        backend raises on this draft alone.
        """
        if len(self._drafts) >= self._max_drafts:
            raise WorkerUnavailable("too many drafts wait")
        loop = asyncio.get_running_loop()
        draft = _Draft(note, max_hashtags, loop.time() + timeout_s, loop.create_future())
        self._drafts.append(draft)
        self._wake.set()
        return await draft.answer

    async def tokenize(self, notes: Sequence[Note]) -> list[Prompt | Exception]:
        """The prompts of stored notes in order, or what went wrong with each."""
        return await self._queue(lambda: each_or_error(self._backend.tokenize, notes))

    async def read(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Reading | Exception]:
        """One forward pass over prompts of stored notes, in order.

        When it raises, every prompt is tried alone, and those that fail alone come back as what was raised.
        """
        return await self._queue(lambda: self._read(prompts, max_hashtags))

    async def _queue(self, function: Callable[[], T]) -> T:
        call = _Call(function, asyncio.get_running_loop().create_future())
        self._backlog.append(call)
        self._wake.set()
        answer: T = await call.answer
        return answer

    async def _take_turns(self) -> None:
        last: Turn | None = None
        while True:
            last = next_turn(len(self._drafts), len(self._backlog), last)
            if last is Turn.DRAFTS:
                await self._run_drafts()
            elif last is Turn.BACKLOG:
                await self._run_call(self._backlog.popleft())
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _run_call(self, call: _Call) -> None:
        try:
            outcome = await self._on_thread(call.function)
        except Exception as error:
            outcome = error
        _settle(call.answer, outcome)

    async def _run_drafts(self) -> None:
        waiting = self._waiting_drafts()
        prompts = await self._on_thread(
            lambda: each_or_error(self._backend.tokenize, [draft.note for draft in waiting])
        )
        lengths = [len(prompt.token_ids) if isinstance(prompt, Prompt) else 0 for prompt in prompts]
        count = fits(lengths, self.max_batch_tokens)
        self._drafts.extendleft(reversed(waiting[count:]))
        good = []
        for draft, prompt in zip(waiting[:count], prompts, strict=False):
            if isinstance(prompt, Prompt):
                good.append((draft, prompt))
            else:
                _settle(draft.answer, prompt)
        if good:
            await self._read_drafts(good)

    async def _read_drafts(self, batch: Sequence[tuple[_Draft, Prompt]]) -> None:
        max_hashtags = batch[0][0].max_hashtags
        readings = await self._on_thread(lambda: self._read([prompt for _, prompt in batch], max_hashtags))
        for (draft, _), reading in zip(batch, readings, strict=True):
            _settle(draft.answer, reading)

    def _waiting_drafts(self) -> list[_Draft]:
        """Takes the oldest draft and those that ask for as many hashtags; drops those that nobody waits for.

        The number stands in the prompt: in a batch of several numbers, an answer would depend on its neighbors.
        """
        now = asyncio.get_running_loop().time()
        drafts = [draft for draft in self._drafts if not draft.answer.done()]
        for draft in drafts:
            if draft.expires <= now:
                _settle(draft.answer, WorkerUnavailable("the draft waited too long"))
        alive = [draft for draft in drafts if draft.expires > now]
        taken = [draft for draft in alive if draft.max_hashtags == alive[0].max_hashtags]
        self._drafts = deque(draft for draft in alive if draft.max_hashtags != alive[0].max_hashtags)
        return taken

    def _read(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Reading | Exception]:
        return each_or_error(lambda some: _checked(self._backend.read(some, max_hashtags), len(some)), prompts)

    async def _on_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


class Worker:
    """Reads the queue's notes until told to stop. A dead Redis is waited for, a bad note is given up."""

    def __init__(self, engine: Engine, queue: JobQueue, *, hashtags: int) -> None:
        self.connected = False
        self._engine = engine
        self._queue = queue
        self._hashtags = hashtags
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Finish the batch that runs, and no other. What was claimed beyond it stays for the next worker."""
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`."""
        pauses = backoff()
        while not self._stop.is_set():
            try:
                requeued = await self._queue.open(self._engine.fingerprint)
                if requeued:
                    log.info("model_changed", extra={"requeued": requeued})
                self.connected = True
                while not self._stop.is_set():
                    await self.step()
                    pauses = backoff()
            except* StoreUnavailable:
                self.connected = False
                log.warning("store_unavailable")
                await self._pause(next(pauses))

    async def step(self) -> int:
        """Claim some jobs and deal with them; returns how many were claimed, 0 after a short wait for any."""
        claimed = await self._queue.claim(CLAIM_LIMIT, _BLOCK_S)
        if claimed:
            work = await self._still_wanted(claimed)
            await self._embed(work)
        return len(claimed)

    async def _still_wanted(self, claimed: Sequence[Claimed]) -> list[tuple[Claimed, Note]]:
        """The jobs whose note is still of their version; the others are finished, the killers given up."""
        records = await self._queue.notes(claimed)
        work, outdated = [], []
        for item, record in zip(claimed, records, strict=True):
            if record is None or record.deleted or record.version != item.job.version:
                outdated.append(item.entry)
            elif item.deliveries > MAX_DELIVERIES:
                await self._fail(item, RuntimeError(f"{item.deliveries - 1} workers did not survive this note"))
            else:
                work.append((item, record.note))
        await self._queue.finish(outdated)
        return work

    async def _embed(self, work: Sequence[tuple[Claimed, Note]]) -> None:
        started = time.perf_counter()
        prompts = await self._engine.tokenize([note for _, note in work])
        metrics.EMBED_STAGE_SECONDS.labels("tokenize").observe(time.perf_counter() - started)
        ready = []
        for (item, _), prompt in zip(work, prompts, strict=True):
            if isinstance(prompt, Prompt):
                ready.append((item, prompt))
            else:
                await self._fail(item, prompt)
        async with asyncio.TaskGroup() as publishing:
            lengths = [len(prompt.token_ids) for _, prompt in ready]
            for positions in batches(lengths, self._engine.max_batch_tokens):
                if self._stop.is_set():
                    return
                results = await self._read([ready[position] for position in positions])
                publishing.create_task(self._publish(results))

    async def _read(self, batch: Sequence[tuple[Claimed, Prompt]]) -> list[tuple[Claimed, Reading | Exception]]:
        metrics.EMBED_STAGE_SECONDS.labels("queue").observe(max(item.queued_s for item, _ in batch))
        started = time.perf_counter()
        readings = await self._engine.read([prompt for _, prompt in batch], self._hashtags)
        infer_s = time.perf_counter() - started
        metrics.EMBED_STAGE_SECONDS.labels("infer").observe(infer_s)
        tokens = sum(len(prompt.token_ids) for _, prompt in batch)
        log.info("batch_read", extra={"notes": len(batch), "tokens": tokens, "infer_s": round(infer_s, 4)})
        return [(item, reading) for (item, _), reading in zip(batch, readings, strict=True)]

    async def _publish(self, results: Sequence[tuple[Claimed, Reading | Exception]]) -> None:
        good = [(item, self._record(item, reading)) for item, reading in results if isinstance(reading, Reading)]
        metrics.NOTES_EMBEDDED.inc(await self._until_it_answers(lambda: self._queue.publish(good)))
        for item, reading in results:
            if isinstance(reading, Exception):
                await self._fail(item, reading)

    def _record(self, item: Claimed, reading: Reading) -> StoredReading:
        return StoredReading(
            item.job.version,
            self._engine.fingerprint,
            reading.vector,
            tuple((tag.name, tag.score) for tag in reading.hashtags),
            None if reading.category is None else (reading.category.name, reading.category.score),
        )

    async def _fail(self, item: Claimed, error: Exception) -> None:
        kind = type(error).__name__
        metrics.NOTES_FAILED.inc()
        # The message may quote the note, so it goes to the note's owner and not to the log.
        log.warning("note_failed", extra={"entry": item.entry, "error": kind})
        reason = f"{kind}: {error}"[:_REASON_CHARS].encode(errors="replace").decode()
        await self._until_it_answers(lambda: self._queue.fail(item, reason))

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


def each_or_error(function: Callable[[Sequence[A]], Sequence[T]], items: Sequence[A]) -> list[T | Exception]:
    """``function(items)``; when that raises, ``function([item])`` for each, or what that raised, in order."""
    try:
        return list(function(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
    return [result for item in items for result in each_or_error(function, [item])]


def backoff() -> Iterator[float]:
    """Pauses in seconds, growing to a cap, without end."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)


def _checked(readings: Sequence[Reading], count: int) -> Sequence[Reading]:
    if len(readings) != count:
        raise ValueError(f"{count} prompts gave {len(readings)} readings")
    for reading in readings:
        norm = float(np.linalg.norm(reading.vector))
        if not abs(norm - 1.0) <= _NORM_TOLERANCE:
            # The index would refuse it, and the note would stay pending for ever.
            raise ValueError(f"the vector is not of unit norm but {norm:.4f}")
    return readings


def _settle(answer: "asyncio.Future[Any]", outcome: object) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
