"""The engine: runs the model on one thread, in turn for drafts, for which a client waits, and for stored notes.

Prompts are made on threads of their own, so that the next batch is tokenized while this one runs.
"""

import asyncio
import logging
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np

from model.backend import Backend, Embedding, Prediction, Prompt, Timings
from model.batching import TokenBudget, fits
from model.note import Note
from service import metrics
from service.errors import WorkerUnavailable

log = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")
# One for stored notes, one so that a draft never waits behind a thousand of them.
_TOKENIZERS = 2
_NORM_TOLERANCE = 1e-3
_CPU_FULL = "DefaultCPUAllocator: can't allocate memory"
_PROBE = Note("probe", "A walk along the river", "The market was open, and it did not rain.")


class Turn(Enum):
    """The use of the next forward pass."""

    DRAFTS = "drafts"
    BACKLOG = "backlog"


def next_turn(drafts: int, backlog: int, last: Turn | None) -> Turn | None:
    """Drafts go first, because clients wait for them; but never twice in a row while a stored note waits.

    ``drafts`` and ``backlog`` count the waiting ones. None when there are none.
    """
    if drafts and not (backlog and last is Turn.DRAFTS):
        return Turn.DRAFTS
    return Turn.BACKLOG if backlog else None


class BackendBroken(Exception):
    """The model cannot predict for a harmless note: a new process may, and this one should end."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """``max_hashtags`` is None where the vector alone is wanted."""

    prompt: Prompt
    max_hashtags: int | None
    expires: float
    answer: "asyncio.Future[Prediction]"


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], Any]
    answer: "asyncio.Future[Any]"


class Engine:
    """The model on its own thread: drafts go first, but stored notes that wait get every second turn.

    ``broken`` is set when the backend fails on every note; there are no predictions from then on.
    """

    def __init__(self, backend: Backend, *, max_batch_tokens: int, max_drafts: int) -> None:
        self.fingerprint = backend.fingerprint
        self.broken = asyncio.Event()
        self._backend = backend
        self._budget = TokenBudget(max_batch_tokens)
        self._max_drafts = max_drafts
        self._tokenizing = 0
        self._draining = False
        self._drafts: deque[_Draft] = deque()
        self._unanswered: set[asyncio.Future[Prediction]] = set()
        self._backlog: deque[_Call] = deque()
        self._wake = asyncio.Event()
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._tokenizers = ThreadPoolExecutor(_TOKENIZERS, thread_name_prefix="tokenizer")

    @property
    def batch_tokens(self) -> int:
        """Padded tokens that one forward pass may have now; fewer for a while after memory ran out."""
        return self._budget.now

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take turns inside the block. Its end waits for the batch that runs, and cancels all that wait."""
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
            for executor in (self._tokenizers, self._model):
                await asyncio.to_thread(executor.shutdown)

    async def drain(self, timeout_s: float) -> None:
        """Refuse drafts from now on, and wait for the accepted ones, at most ``timeout_s``."""
        self._draining = True
        if self._unanswered:
            await asyncio.wait(self._unanswered, timeout=timeout_s)

    async def predict_draft(self, note: Note, max_hashtags: int, timeout_s: float) -> Prediction:
        """Predict for one draft; if the caller is cancelled before its turn, there is no forward pass.

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

    async def predict(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Prediction | Exception]:
        """One forward pass over prompts of stored notes, in order.

        When it raises, every prompt is tried alone, and one that fails alone comes back as its error; when it runs out
        of memory, one half is tried after the other. Raises BackendBroken when a harmless note fails, too.
        """
        return await self._queue(lambda: self._predict(prompts, max_hashtags))

    async def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """See `Backend.write_categories`; takes a turn of stored notes."""
        return await self._queue(lambda: self._backend.write_categories(prompts))

    async def _predict_drafts(
        self, notes: Sequence[Note], max_hashtags: int | None, timeout_s: float
    ) -> list[tuple[Prompt, Prediction]]:
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
            drafts = zip(prompts, answers, strict=True)
            self._drafts.extend(_Draft(prompt, max_hashtags, expires, answer) for prompt, answer in drafts)
            self._wake.set()
            return list(zip(prompts, await asyncio.gather(*answers), strict=True))
        finally:
            for answer in answers:
                answer.cancel()

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
        if not call.answer.done():
            _settle(call.answer, await self._outcome(call.function))

    async def _run_drafts(self) -> None:
        batch = self._next_drafts()
        if not batch:
            return
        max_hashtags = batch[0].max_hashtags
        outcome = await self._outcome(lambda: self._predict([draft.prompt for draft in batch], max_hashtags))
        if isinstance(outcome, Exception):
            outcome = [WorkerUnavailable("the model is broken")] * len(batch)
        for draft, prediction in zip(batch, outcome, strict=True):
            _settle(draft.answer, prediction)

    def _next_drafts(self) -> list[_Draft]:
        """Takes the oldest draft and others with the same number of hashtags; drops expired and abandoned drafts.

        The number stands in the prompt: in a batch of several numbers, a prediction would depend on its neighbors.
        """
        now = asyncio.get_running_loop().time()
        for draft in self._drafts:
            if draft.expires <= now:
                _settle(draft.answer, WorkerUnavailable("the draft waited too long"))
        alive = [draft for draft in self._drafts if not draft.answer.done()]
        alike = [draft for draft in alive if draft.max_hashtags == alive[0].max_hashtags]
        batch = alike[: fits([len(draft.prompt.token_ids) for draft in alike], self._budget.now)]
        taken = {id(draft) for draft in batch}
        self._drafts = deque(draft for draft in alive if id(draft) not in taken)
        return batch

    async def _outcome(self, function: Callable[[], T]) -> T | Exception:
        try:
            return await self._on(self._model, function)
        except BackendBroken as error:
            log.error("backend_broken", extra={"error": type(error.__cause__).__name__})  # noqa: TRY400 - may quote
            self.broken.set()
            return error
        except Exception as error:
            return error

    def _tokenize(self, notes: Sequence[Note]) -> list[Prompt | Exception]:
        with metrics.EMBED_STAGE_SECONDS.labels("tokenize").time():
            return each_or_error(self._backend.tokenize, notes)

    def _predict(self, prompts: Sequence[Prompt], max_hashtags: int | None) -> list[Prediction | Exception]:
        predictions = each_or_error(lambda part: self._forward(part, max_hashtags), prompts, self._shed)
        if any(isinstance(prediction, Exception) for prediction in predictions):
            self._probe()
        return predictions

    def _probe(self) -> None:
        """Raises BackendBroken when a harmless note fails."""
        [prediction] = each_or_error(lambda notes: self._forward(self._backend.tokenize(notes), 1), [_PROBE])
        if isinstance(prediction, Exception):
            raise BackendBroken(f"a harmless note fails: {type(prediction).__name__}") from prediction

    def _forward(self, prompts: Sequence[Prompt], max_hashtags: int | None) -> Sequence[Prediction]:
        started = time.perf_counter()
        if max_hashtags is None:
            predictions, timings = [Prediction(vector, (), None) for vector in self._backend.embed(prompts)], None
        else:
            predictions, timings = self._backend.predict(prompts, max_hashtags), self._backend.timings
        _check(predictions, len(prompts))
        _measure(prompts, time.perf_counter() - started, timings)
        self._budget.recover()
        return predictions

    def _shed(self, prompts: Sequence[Prompt]) -> None:
        metrics.EMBED_OUT_OF_MEMORY.inc()
        self._budget.shed(len(prompts) * max(len(prompt.token_ids) for prompt in prompts))

    async def _on(self, executor: Executor, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, function)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a GPU: MemoryError, or an error of torch."""
    # By name, because the service does not import torch; its allocator for CPUs has no class of its own for this.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _CPU_FULL in str(error)


def each_or_error(
    function: Callable[[Sequence[A]], Sequence[T]],
    items: Sequence[A],
    shed: Callable[[Sequence[A]], None] = lambda _: None,
) -> list[T | Exception]:
    """``function(items)``; when that raises, ``function([item])`` for each, or its error, in order.

    When memory ran out, ``shed(items)`` is called, and one half is tried after the other.
    """
    try:
        return list(function(items))
    except Exception as error:
        # Its frames hold the memory of the pass, and the next try needs it.
        traceback.clear_frames(error.__traceback__)
        out_of_memory = ran_out_of_memory(error)
        if out_of_memory:
            shed(items)
        if len(items) == 1:
            return [error]
    size = (len(items) + 1) // 2 if out_of_memory else 1
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return [result for part in parts for result in each_or_error(function, part, shed)]


def _measure(prompts: Sequence[Prompt], infer_s: float, timings: Timings | None) -> None:
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    metrics.EMBED_BATCH_TOKENS.observe(tokens)
    metrics.EMBED_TOKENS.inc(tokens)
    metrics.EMBED_STAGE_SECONDS.labels("infer").observe(infer_s)
    if timings:
        metrics.EMBED_STAGE_SECONDS.labels("prefill").observe(timings.prefill_s)
        metrics.EMBED_STAGE_SECONDS.labels("decode").observe(timings.decode_s)


def _check(predictions: Sequence[Prediction], count: int) -> None:
    if len(predictions) != count:
        raise ValueError(f"{count} prompts gave {len(predictions)} predictions")
    for prediction in predictions:
        norm = float(np.linalg.norm(prediction.vector))
        if not abs(norm - 1.0) <= _NORM_TOLERANCE:
            # The index would refuse it, and the note would stay pending for ever.
            raise ValueError(f"the vector is not of unit norm but {norm:.4f}")


def _settle(answer: "asyncio.Future[Any]", outcome: object) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
