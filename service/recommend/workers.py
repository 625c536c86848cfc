"""The workers as the gateway sees them: the seam `Drafter`, and `WorkerPool`, which calls them by `indexer.rpc`."""

import asyncio
import copy
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from indexer.rpc.client import RpcClient
from indexer.rpc.frames import RpcError, RpcTimeout
from model.backend import Embedding, Prediction, Scored
from model.note import Note
from service.errors import WorkerUnavailable
from service.store.records import scored, unpack_vector

log = logging.getLogger(__name__)

T = TypeVar("T")
# The longest ones together fit into a frame (`indexer.rpc.frames`), and other drafts come in between.
_NOTES_A_CALL = 16


class Drafter(Protocol):
    """Predicts for drafts."""

    async def predict(self, note: Note, max_hashtags: int, *, timeout_s: float) -> Prediction:
        """Vector, hashtags and category of a draft, by the gateway's model.

        Raises WorkerUnavailable when no worker of that model answers in time.
        """
        ...

    async def embed(self, notes: Sequence[Note], *, timeout_s: float) -> list[Embedding]:
        """The vectors of drafts, in order, and nothing generated; of a note as it is stored, that of the index.

        Raises WorkerUnavailable when no worker of that model answers in time.
        """
        ...

    async def ready(self, *, timeout_s: float) -> bool:
        """Whether at least one worker answers."""
        ...


class WorkerPool:
    """`Drafter` over all workers: first the one with the fewest calls, then the next when it fails.

    A prediction has no side effect, so a retry is safe. A worker gets no drafts when it last reported another model
    than ``fingerprint``.
    """

    def __init__(self, addresses: Sequence[str], fingerprint: str) -> None:
        self._workers = [RpcClient(address) for address in addresses]
        self._fingerprint = fingerprint
        self._models: dict[RpcClient, str] = {}

    def of(self, fingerprint: str) -> Self:
        """The same workers over the same connections, for another model."""
        other = copy.copy(self)
        other._fingerprint = fingerprint
        return other

    async def predict(self, note: Note, max_hashtags: int, *, timeout_s: float) -> Prediction:
        """See `Drafter`. Raises WorkerUnavailable when no worker of this model answers in time."""
        params = {
            "title": note.title,
            "content": note.content,
            "hashtags": note.hashtags,
            "max_hashtags": max_hashtags,
        }
        return await self._first("draft", params, _prediction, timeout_s)

    async def embed(self, notes: Sequence[Note], *, timeout_s: float) -> list[Embedding]:
        """See `Drafter`. Many notes are shared out among the workers."""
        parts = [notes[start : start + _NOTES_A_CALL] for start in range(0, len(notes), _NOTES_A_CALL)]
        try:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self._embed_part(part, timeout_s)) for part in parts]
        except* WorkerUnavailable as errors:
            raise errors.exceptions[0] from None
        return [embedding for call in calls for embedding in call.result()]

    async def ready(self, *, timeout_s: float) -> bool:
        """Whether at least one worker of this model answers. Updates the models of the workers."""
        calls = [worker.call("ping", {}, timeout_s=timeout_s) for worker in self._workers]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for worker, answer in zip(self._workers, answers, strict=True):
            if isinstance(answer, dict):
                self._models[worker] = str(answer.get("fingerprint"))
            else:
                self._models.pop(worker, None)
        return self._fingerprint in self._models.values()

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(worker.close() for worker in self._workers))

    async def _embed_part(self, notes: Sequence[Note], timeout_s: float) -> list[Embedding]:
        params = {"notes": [(note.title, note.content, note.hashtags) for note in notes]}
        return await self._first("embed", params, partial(_embeddings, count=len(notes)), timeout_s)

    async def _first(
        self, method: str, params: Mapping[str, Any], decode: Callable[[Mapping[str, Any]], T], timeout_s: float
    ) -> T:
        """The answer of the first worker that gives one."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + timeout_s
        for worker in self._least_busy_first():
            left_s = deadline - clock.time()
            if left_s <= 0:
                break
            # A duration and not a time of day: no two machines' clocks agree.
            call = {**params, "timeout_s": left_s, "fingerprint": self._fingerprint}
            try:
                return decode(await worker.call(method, call, timeout_s=left_s))
            except RpcTimeout:
                break
            except (RpcError, ValueError) as error:
                reason = {"worker": worker.address, "reason": str(error)}
                log.warning("worker_refused", extra=reason)
        raise WorkerUnavailable("no worker answered in time")

    def _least_busy_first(self) -> list[RpcClient]:
        own = (worker for worker in self._workers if self._models.get(worker, self._fingerprint) == self._fingerprint)
        return sorted(own, key=lambda worker: (worker.pending, random.random()))


def _prediction(answer: Mapping[str, Any]) -> Prediction:
    try:
        category = answer["category"]
        return Prediction(
            unpack_vector(answer["vector"]),
            tuple(Scored(*scored(tag)) for tag in answer["hashtags"]),
            None if category is None else Scored(*scored(category)),
        )
    except (KeyError, TypeError) as error:
        raise ValueError("the answer is not a prediction") from error


def _embeddings(answer: Mapping[str, Any], count: int) -> list[Embedding]:
    try:
        embeddings = [Embedding(unpack_vector(vector), int(tokens)) for vector, tokens in answer["embeddings"]]
    except (KeyError, TypeError) as error:
        raise ValueError("the answer is not a list of embeddings") from error
    if len(embeddings) != count:
        raise ValueError(f"{count} notes gave {len(embeddings)} embeddings")
    return embeddings
