"""The engine: runs the model on one thread, for drafts, for which a client waits, and for stored notes.

Notes join and leave between two steps of the model, each as soon as there is room and it is complete. Prompts are made
on threads of their own, so that the next notes are tokenized while the model runs.
"""

import asyncio
import itertools
import logging
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from model.backend import Backend, Embedding, Prediction, Prompt, Request
from model.batching import TokenBudget, admits, together
from model.note import Note
from service import metrics
from service.errors import WorkerUnavailable
from service.worker.turns import Turn, next_turn

log = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")
# One for stored notes, one so that a draft never waits behind a thousand of them.
_TOKENIZERS = 2
_NORM_TOLERANCE = 1e-3
_CPU_FULL = "DefaultCPUAllocator: can't allocate memory"
_PROBE = Note("probe", "A walk along the river", "The market was open, and it did not rain.")


class BackendBroken(Exception):
    """The model cannot predict for a harmless note: a new process may, and this one should end."""


@dataclass(eq=False, slots=True)
class _Job:
    """A request with its answer to come. ``expires``: when a draft has waited too long; None for a stored note.

    ``queued_s``: what a stored note had waited before. ``is_alone``: it was in the model when that failed, and runs
    with no other, to find out whose fault it was.
    """

    request: Request
    answer: "asyncio.Future[Prediction]"
    expires: float | None = None
    queued_s: float | None = None
    is_alone: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def is_draft(self) -> bool:
        return self.expires is not None


class Engine:
    """The model on its own thread: drafts join first, but stored notes that wait get every second turn.

    When a step fails, the notes in it are tried again: half as many tokens at once where memory ran out, else each
    alone, and one that fails alone gets its error. ``broken`` is set when a harmless note fails, too; there are no
    predictions from then on.
    """

    def __init__(self, backend: Backend, *, max_batch_tokens: int, max_drafts: int) -> None:
        self.fingerprint = backend.fingerprint
        self.broken = asyncio.Event()
        self._backend = backend
        self._budget = TokenBudget(max_batch_tokens)
        self._max_drafts = max_drafts
        self._tokenizing, self._draining = 0, False
        self._drafts: deque[_Job] = deque()
        self._backlog: deque[_Job] = deque()
        self._under_way: dict[int, _Job] = {}
        self._leaving: set[int] = set()
        self._keys = itertools.count()
        self._last: Turn | None = None
        self._unanswered: set[asyncio.Future[Prediction]] = set()
        self._wake = asyncio.Event()
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._tokenizers = ThreadPoolExecutor(_TOKENIZERS, thread_name_prefix="tokenizer")

    @property
    def batch_tokens(self) -> int:
        """Padded tokens that the notes in the model may have now; fewer for a while after memory ran out."""
        return self._budget.now

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take steps inside the block. Its end waits for the step that runs, and cancels all notes."""
        steps = asyncio.create_task(self._take_steps())
        try:
            yield
        finally:
            steps.cancel()
            with suppress(asyncio.CancelledError):
                await steps
            for job in (*self._under_way.values(), *self._drafts, *self._backlog):
                job.answer.cancel()
            for executor in (self._tokenizers, self._model):
                await asyncio.to_thread(executor.shutdown)

    async def drain(self, timeout_s: float) -> None:
        """Refuse drafts from now on, and wait for the accepted ones, at most ``timeout_s``."""
        self._draining = True
        if self._unanswered:
            await asyncio.wait(self._unanswered, timeout=timeout_s)

    def withdraw(self) -> None:
        """Cancel the stored notes that have not joined; those in the model are finished."""
        for job in self._backlog:
            job.answer.cancel()
        self._backlog.clear()

    async def predict_draft(self, note: Note, max_hashtags: int, timeout_s: float) -> Prediction:
        """Predict for one draft; if the caller is cancelled, it leaves the model or never joins.

        Raises WorkerUnavailable when too many wait, its time was up before its turn or the worker is about to end, and
        any error of the backend on this draft alone.
        """
        [(_, prediction)] = await self._predict_drafts([note], max_hashtags, timeout_s)
        return prediction

    async def embed_drafts(self, notes: Sequence[Note], timeout_s: float) -> list[Embedding]:
        """The vectors of drafts, in order, with nothing generated. Otherwise as `predict_draft`, all or none."""
        predicted = await self._predict_drafts(notes, None, timeout_s)
        return [Embedding(prediction.vector, len(prompt.token_ids)) for prompt, prediction in predicted]

    async def tokenize(self, notes: Sequence[Note]) -> list[Prompt | Exception]:
        """The prompts of notes in order, or the error of each. Runs while the model does."""
        return await self._on(self._tokenizers, lambda: self._tokenize(notes))

    async def predict(self, prompt: Prompt, max_hashtags: int, queued_s: float = 0.0) -> Prediction:
        """Predict for a stored note, which has waited ``queued_s`` seconds before.

        Raises its error when the model fails on this note alone, and BackendBroken when a harmless note fails, too. Is
        cancelled by `withdraw`.
        """
        return await self._stored(Request(prompt, max_hashtags), queued_s)

    async def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """Freely written categories of stored notes, see `model.backend.Request`; they wait as `predict` does."""
        written = await asyncio.gather(*(self._stored(Request(prompt, is_free=True), None) for prompt in prompts))
        return [prediction.category.name if prediction.category else "" for prediction in written]

    async def _stored(self, request: Request, queued_s: float | None) -> Prediction:
        if self.broken.is_set():
            raise BackendBroken("a harmless note fails")
        job = _Job(request, asyncio.get_running_loop().create_future(), queued_s=queued_s)
        self._backlog.append(job)
        self._wake.set()
        return await job.answer

    async def _predict_drafts(
        self, notes: Sequence[Note], max_hashtags: int | None, timeout_s: float
    ) -> list[tuple[Prompt, Prediction]]:
        if self.broken.is_set():
            raise WorkerUnavailable("the model is broken")
        if self._draining:
            raise WorkerUnavailable("the worker is about to end")
        if len(self._drafts) + self._tokenizing >= self._max_drafts:
            raise WorkerUnavailable("too many drafts wait")
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Prediction]] = [loop.create_future() for _ in notes]
        for answer in answers:
            self._unanswered.add(answer)
            answer.add_done_callback(self._unanswered.discard)
        expires = loop.time() + timeout_s
        try:
            prompts = await self._draft_prompts(notes)
            for prompt, answer in zip(prompts, answers, strict=True):
                self._drafts.append(_Job(Request(prompt, max_hashtags), answer, expires))
            self._wake.set()
            return list(zip(prompts, await asyncio.gather(*answers), strict=True))
        finally:
            for answer in answers:
                answer.cancel()
            self._wake.set()

    async def _draft_prompts(self, notes: Sequence[Note]) -> list[Prompt]:
        self._tokenizing += len(notes)
        try:
            prompts = await self.tokenize(notes)
        finally:
            self._tokenizing -= len(notes)
        for prompt in prompts:
            if isinstance(prompt, Exception):
                raise prompt
        return [prompt for prompt in prompts if isinstance(prompt, Prompt)]

    async def _take_steps(self) -> None:
        try:
            await self._take_steps_forever()
        except Exception:
            # A mistake of the engine's own: silence would hold up every note for ever.
            log.exception("engine_failed")
            self._break(self._under_way.values())

    async def _take_steps_forever(self) -> None:
        while True:
            self._forget_unwanted()
            joining = {next(self._keys): job for job in self._next_to_join()}
            self._under_way |= joining
            if self._under_way or self._leaving:
                await self._take_step(joining)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _forget_unwanted(self) -> None:
        """Notes whose caller is gone, and drafts that have waited too long."""
        now = asyncio.get_running_loop().time()
        for draft in self._drafts:
            if draft.expires is not None and draft.expires <= now:
                _settle(draft.answer, WorkerUnavailable("the draft waited too long"))
        self._drafts = deque(job for job in self._drafts if not job.answer.done())
        self._backlog = deque(job for job in self._backlog if not job.answer.done())
        unwanted = {key for key, job in self._under_way.items() if job.answer.done()}
        self._leaving |= unwanted
        self._under_way = {key: job for key, job in self._under_way.items() if key not in unwanted}

    def _next_to_join(self) -> list[_Job]:
        """The oldest drafts, or stored notes of like length, as many as there is room for."""
        under_way, stored = list(self._under_way.values()), self._stored_with_room()
        drafts = sum(job.is_draft for job in under_way)
        turn = next_turn(len(self._drafts), len(stored), drafts, self._last)
        if turn is None or any(job.is_alone for job in under_way):
            return []
        queue, positions = (self._backlog, stored) if turn is Turn.BACKLOG else (self._drafts, range(len(self._drafts)))
        if queue[0].is_alone:
            positions = [] if under_way else [0]
        lengths = [queue[position].request.tokens for position in positions]
        positions = positions[: admits(lengths, self._budget.now, [job.request.tokens for job in under_way])]
        joining = [queue[position] for position in positions]
        for position in sorted(positions, reverse=True):
            del queue[position]
        if joining:
            self._last = turn
        return joining

    def _stored_with_room(self) -> Sequence[int]:
        """Positions of the stored notes that may join; they leave half of the room to drafts, if there are any."""
        if not self._backlog or self._backlog[0].is_alone:
            return [0] if self._backlog else []
        stored = [job.request.tokens for job in self._under_way.values() if not job.is_draft]
        room = self._budget.now // 2 if self._drafts or len(stored) < len(self._under_way) else self._budget.now
        lengths = [job.request.tokens for job in self._backlog]
        positions = together(lengths, min(room, self._backend.join_tokens))
        return positions[: admits([lengths[position] for position in positions], room, stored)]

    async def _take_step(self, joining: Mapping[int, _Job]) -> None:
        leaving, self._leaving = self._leaving, set()
        is_idle = not self._under_way
        try:
            complete = await self._on(self._model, lambda: self._step(leaving, joining, is_idle))
        except Exception as error:
            await self._recover(error)
            return
        jobs = {key: self._under_way.pop(key) for key in complete}
        failures = {}
        for key, job in jobs.items():
            metrics.EMBED_STAGE_SECONDS.labels("infer").observe(time.monotonic() - job.since)
            if refusal := _refusal(complete[key]):
                failures[job] = refusal
            else:
                _settle(job.answer, complete[key])
        if failures:
            await self._fail(failures)

    async def _recover(self, error: Exception) -> None:
        """A step failed: try its notes again, or give one up that was alone in it."""
        # Its frames hold the memory of the step, and the next try needs it.
        traceback.clear_frames(error.__traceback__)
        jobs = list(self._under_way.values())
        if ran_out_of_memory(error):
            metrics.EMBED_OUT_OF_MEMORY.inc()
            self._budget.shed(len(jobs) * max((job.request.tokens for job in jobs), default=1))
        if len(jobs) > 1:
            self._put_back(is_alone=not ran_out_of_memory(error))
        else:
            self._leaving |= self._under_way.keys()
            self._under_way.clear()
            await self._fail(dict.fromkeys(jobs, error))

    async def _fail(self, failures: Mapping[_Job, Exception]) -> None:
        """Give notes up, unless a harmless one fails, too: then the model is broken."""
        self._put_back(is_alone=False)
        leaving, self._leaving = self._leaving, set()
        cause = await self._on(self._model, lambda: self._probe(leaving))
        if cause is None:
            for job, error in failures.items():
                _settle(job.answer, error)
            return
        log.error("backend_broken", extra={"error": type(cause).__name__})
        self._break(failures)

    def _break(self, jobs: Iterable[_Job]) -> None:
        """No predictions from now on, for these and for all that wait."""
        self.broken.set()
        for job in (*jobs, *self._drafts, *self._backlog):
            broken = (
                WorkerUnavailable("the model is broken") if job.is_draft else BackendBroken("a harmless note fails")
            )
            _settle(job.answer, broken)

    def _put_back(self, *, is_alone: bool) -> None:
        """What is in the model waits again, before all others."""
        for job in reversed(self._under_way.values()):
            job.is_alone = is_alone
            (self._drafts if job.is_draft else self._backlog).appendleft(job)
        self._leaving |= self._under_way.keys()
        self._under_way.clear()

    def _tokenize(self, notes: Sequence[Note]) -> list[Prompt | Exception]:
        with metrics.EMBED_STAGE_SECONDS.labels("tokenize").time():
            return each_or_error(self._backend.tokenize, notes)

    def _step(self, leaving: Collection[int], joining: Mapping[int, _Job], is_idle: bool) -> dict[int, Prediction]:
        self._backend.drop(leaving)
        if is_idle:
            return {}
        for key, job in joining.items():
            if job.queued_s is not None:
                metrics.EMBED_STAGE_SECONDS.labels("queue").observe(job.queued_s + time.monotonic() - job.since)
                job.queued_s = None  # if it has to join again
            job.since = time.monotonic()
            self._backend.add(key, job.request)
        complete = self._backend.step()
        if joining:
            self._budget.recover()
        self._measure(sum(job.request.tokens for job in joining.values()))
        return complete

    def _measure(self, joined_tokens: int) -> None:
        if joined_tokens:
            metrics.EMBED_BATCH_TOKENS.observe(joined_tokens)
            metrics.EMBED_TOKENS.inc(joined_tokens)
        if timings := self._backend.timings:
            if joined_tokens:
                metrics.EMBED_STAGE_SECONDS.labels("prefill").observe(timings.prefill_s)
            metrics.EMBED_STAGE_SECONDS.labels("decode").observe(timings.decode_s)

    def _probe(self, leaving: Collection[int]) -> Exception | None:
        """What is wrong with the model, if it fails on a harmless note alone."""
        try:
            self._backend.drop(leaving)
            [prediction] = self._backend.predict(self._backend.tokenize([_PROBE]), 1)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            return error
        return _refusal(prediction)

    async def _on(self, executor: Executor, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, function)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a GPU: MemoryError, or an error of torch."""
    # By name, because the service does not import torch; its allocator for CPUs has no class of its own for this.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _CPU_FULL in str(error)


def each_or_error(function: Callable[[Sequence[A]], Sequence[T]], items: Sequence[A]) -> list[T | Exception]:
    """``function(items)``; when that raises, ``function([item])`` for each, or its error, in order."""
    try:
        return list(function(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
    return [result for item in items for result in each_or_error(function, [item])]


def _refusal(prediction: Prediction) -> ValueError | None:
    """What is wrong with a prediction, if anything is."""
    norm = float(np.linalg.norm(prediction.vector))
    if abs(norm - 1.0) <= _NORM_TOLERANCE:
        return None
    # The index would refuse it, and the note would stay pending for ever.
    return ValueError(f"the vector is not of unit norm but {norm:.4f}")


def _settle(answer: "asyncio.Future[Prediction]", outcome: Prediction | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
