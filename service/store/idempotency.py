"""`Answers` on Redis.

The first request with a key stores a mark that it runs, then its answer; both expire. A request whose gateway was
killed leaves the mark alone, which expires soon: the write may then run a second time, and changes nothing.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgpack

from service.errors import KeyReused, NoteLLMError, StillRunning
from service.store.connection import redis_errors
from service.store.interfaces import Answer
from service.store.schema import ANSWER

if TYPE_CHECKING:
    from redis.asyncio import Redis

ANSWER_EXPIRES_S = 24 * 3600
MARK_EXPIRES_S = 30


class RedisAnswers:
    """`Answers` on Redis."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    async def once(self, key: str, request: bytes, run: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """See `Answers`."""
        name = ANSWER + hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        digest = hashlib.blake2b(request, digest_size=16).digest()
        with redis_errors():
            first = await self._redis.set(name, msgpack.packb([digest]), nx=True, ex=MARK_EXPIRES_S)
            kept = None if first else await self._redis.get(name)
        if kept is not None:
            return _repeated(msgpack.unpackb(kept), digest), True
        try:
            answer = await run()
        except NoteLLMError:
            with redis_errors():
                await self._redis.delete(name)
            raise
        with redis_errors():
            record = msgpack.packb([digest, answer.status, answer.body, answer.etag])
            await self._redis.set(name, record, ex=ANSWER_EXPIRES_S)
        return answer, False


def _repeated(kept: list[object], digest: bytes) -> Answer:
    match kept:
        case [first, *_] if first != digest:
            raise KeyReused("this idempotency key was used for another request")
        case [_, int(status), bytes(body), str(etag)]:
            return Answer(status, body, etag)
        case _:
            raise StillRunning("a request with this idempotency key is being answered")
