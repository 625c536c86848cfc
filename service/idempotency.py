"""Writes that may be sent again: the same ``Idempotency-Key`` gets the same answer, and nothing is done twice.

The first request with a key leaves a note that it runs, then its answer. Both are forgotten after a while; a request
whose gateway was killed leaves the first alone, which ends soon, and doing its work again changes nothing that is not
the same.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgpack

from service.errors import KeyReused, NoteLLMError, StillRunning
from service.messages import ANSWER
from service.redis_errors import redis_errors

if TYPE_CHECKING:
    from redis.asyncio import Redis

KEPT_S = 24 * 3600
RUNS_AT_MOST_S = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What a write was answered with."""

    status: int
    body: bytes
    etag: str = ""


class Answers:
    """The answers to writes with a key, on Redis."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    async def once(self, key: str, request: bytes, run: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """The answer to the first request with this key, and whether it is being given again.

        A request that fails leaves nothing behind, so that it can be sent again.

        Args:
            key: the caller's, with whatever keeps one caller's apart from another's.
            request: all that makes the request what it is.

        Raises:
            KeyReused: if the key came with another request before.
            StillRunning: if the first one has not been answered yet.
            StoreUnavailable: see the store.
        """
        name = ANSWER + hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        digest = hashlib.blake2b(request, digest_size=16).digest()
        with redis_errors():
            first = await self._redis.set(name, msgpack.packb([digest]), nx=True, ex=RUNS_AT_MOST_S)
            kept = None if first else await self._redis.get(name)
        if kept is not None:
            return _again(msgpack.unpackb(kept), digest), True
        try:
            answer = await run()
        except NoteLLMError:
            with redis_errors():
                await self._redis.delete(name)
            raise
        with redis_errors():
            await self._redis.set(name, msgpack.packb([digest, answer.status, answer.body, answer.etag]), ex=KEPT_S)
        return answer, False


def _again(kept: list[object], digest: bytes) -> Answer:
    match kept:
        case [first, *_] if first != digest:
            raise KeyReused("this idempotency key was used for another request")
        case [_, int(status), bytes(body), str(etag)]:
            return Answer(status, body, etag)
        case _:
            raise StillRunning("a request with this idempotency key is being answered")
