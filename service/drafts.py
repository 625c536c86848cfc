"""Drafts between gateway and worker: `WorkerPool` asks, `draft_handlers` answer, over `indexer.rpc`."""

import asyncio
import copy
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Self

from indexer.rpc import Handler, RpcClient, RpcError, RpcRefused, RpcTimeout
from model.backends.base import Reading, Scored
from model.note import Note
from service.engine import Engine
from service.errors import WorkerUnavailable
from service.messages import pack_vector, scored, unpack_vector

log = logging.getLogger(__name__)


class WorkerPool:
    """`Drafter` over all workers: the one with the fewest drafts first, the next when it refuses or is gone.

    A draft leaves nothing behind, so that one whose connection broke may be read a second time. Workers that last
    said that they run another model than ``fingerprint`` are not asked.
    """

    def __init__(self, addresses: Sequence[str], fingerprint: str) -> None:
        self._workers = [RpcClient(address) for address in addresses]
        self._fingerprint = fingerprint
        self._models: dict[RpcClient, str] = {}

    def of(self, fingerprint: str) -> Self:
        """The same workers over the same connections, as far as they run another model."""
        other = copy.copy(self)
        other._fingerprint = fingerprint
        return other

    async def read(self, note: Note, max_hashtags: int, *, timeout_s: float) -> Reading:
        """See `Drafter`. Raises WorkerUnavailable when no worker of this model answers in time."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + timeout_s
        for worker in self._least_busy_first():
            left_s = deadline - clock.time()
            if left_s <= 0:
                break
            params = _draft(note, max_hashtags, left_s, self._fingerprint)
            try:
                return _reading(await worker.call("draft", params, timeout_s=left_s))
            except RpcTimeout:
                break
            except (RpcError, ValueError) as error:
                reason = {"worker": worker.address, "reason": str(error)}
                log.warning("worker_refused", extra=reason)
        raise WorkerUnavailable("no worker answered in time")

    async def ready(self, *, timeout_s: float) -> bool:
        """Whether at least one worker of this model answers. Takes note of what model each of them runs."""
        calls = [worker.call("ping", {}, timeout_s=timeout_s) for worker in self._workers]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for worker, answer in zip(self._workers, answers, strict=True):
            if isinstance(answer, dict):
                self._models[worker] = str(answer.get("fingerprint"))
            else:
                self._models.pop(worker, None)
        return self._fingerprint in self._models.values()

    async def close(self) -> None:
        """Break the connections."""
        await asyncio.gather(*(worker.close() for worker in self._workers))

    def _least_busy_first(self) -> list[RpcClient]:
        own = (worker for worker in self._workers if self._models.get(worker, self._fingerprint) == self._fingerprint)
        return sorted(own, key=lambda worker: (worker.pending, random.random()))


def draft_handlers(engine: Engine) -> Mapping[str, Handler]:
    """What a worker answers: ``draft``, unless it is meant for another model, and ``ping``, which says what it runs."""

    async def draft(params: dict[str, Any]) -> dict[str, Any]:
        if params.get("fingerprint") != engine.fingerprint:
            raise RpcRefused("another model")
        try:
            note = Note("", params["title"], params["content"], tuple(params["hashtags"]))
            max_hashtags, timeout_s = int(params["max_hashtags"]), float(params["timeout_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise RpcRefused("not a draft") from error
        try:
            reading = await engine.read_draft(note, max_hashtags, timeout_s)
        except WorkerUnavailable as error:
            raise RpcRefused(str(error)) from error
        return {
            "vector": pack_vector(reading.vector),
            "hashtags": [(tag.name, tag.score) for tag in reading.hashtags],
            "category": reading.category and (reading.category.name, reading.category.score),
        }

    async def ping(params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
        return {"fingerprint": engine.fingerprint}

    return {"draft": draft, "ping": ping}


def _draft(note: Note, max_hashtags: int, timeout_s: float, fingerprint: str) -> dict[str, Any]:
    return {
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "max_hashtags": max_hashtags,
        # Seconds and not a time of day: no two machines' clocks agree.
        "timeout_s": timeout_s,
        "fingerprint": fingerprint,
    }


def _reading(answer: Mapping[str, Any]) -> Reading:
    try:
        category = answer["category"]
        return Reading(
            unpack_vector(answer["vector"]),
            tuple(Scored(*scored(tag)) for tag in answer["hashtags"]),
            None if category is None else Scored(*scored(category)),
        )
    except (KeyError, TypeError) as error:
        raise ValueError("the answer is not a reading") from error
