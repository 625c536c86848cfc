"""The workers as the gateway sees them: the seam `Drafter`, and `WorkerPool`, which calls them by `indexer.rpc`."""

import asyncio
import copy
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from indexer.rpc.client import RpcClient
from indexer.rpc.frames import RpcError, RpcTimeout
from model.backend import Prediction, Scored
from model.note import Note
from service.errors import WorkerUnavailable
from service.store.records import scored, unpack_vector

log = logging.getLogger(__name__)


class Drafter(Protocol):
    """Predicts for drafts."""

    async def predict(self, note: Note, max_hashtags: int, *, timeout_s: float) -> Prediction:
        """Vector, hashtags and category of a draft, by the gateway's model.

        Raises WorkerUnavailable when no worker of that model answers in time.
        """
        ...

    async def ready(self, *, timeout_s: float) -> bool:
        """Whether at least one worker answers."""
        ...


class WorkerPool:
    """`Drafter` over all workers: first the one with the fewest drafts, then the next when it fails.

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
        clock = asyncio.get_running_loop()
        deadline = clock.time() + timeout_s
        for worker in self._least_busy_first():
            left_s = deadline - clock.time()
            if left_s <= 0:
                break
            params = _params(note, max_hashtags, left_s, self._fingerprint)
            try:
                return _prediction(await worker.call("draft", params, timeout_s=left_s))
            except RpcTimeout:
                break
            except (RpcError, ValueError) as error:
                reason = {"worker": worker.address, "reason": str(error)}
                log.warning("worker_refused", extra=reason)
        raise WorkerUnavailable("no worker answered in time")

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

    def _least_busy_first(self) -> list[RpcClient]:
        own = (worker for worker in self._workers if self._models.get(worker, self._fingerprint) == self._fingerprint)
        return sorted(own, key=lambda worker: (worker.pending, random.random()))


def _params(note: Note, max_hashtags: int, timeout_s: float, fingerprint: str) -> dict[str, Any]:
    return {
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "max_hashtags": max_hashtags,
        # A duration and not a time of day: no two machines' clocks agree.
        "timeout_s": timeout_s,
        "fingerprint": fingerprint,
    }


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
