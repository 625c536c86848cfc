"""`Answers` on Redis, and the Lua by which a write remembers what came of it.

::

    [request]                         a request with this key runs; expires soon
    [request, outcome]                its write is done: stored by the script that writes, in the same step
    [request, status, body, etag]     it was answered

The answer alone would come too late: if Redis' reply to the write is lost, nobody knows whether to write again, and by
then another client may have written. A request that is repeated after such a loss runs again, and its script returns
the outcome of the first time and writes nothing.
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import msgpack

from service.errors import KeyReused, NoteLLMError, StillRunning
from service.store.connection import redis_errors
from service.store.interfaces import Answer
from service.store.schema import ANSWER

if TYPE_CHECKING:
    from redis.asyncio import Redis

ANSWER_EXPIRES_S = 24 * 3600
# Longer than a write may take. One that is later still, finds the outcome of the one that came before it.
MARK_EXPIRES_S = 5

# The first two arguments of a script that writes: digests of the idempotency key and of the request that this task
# answers; empty when it came without a key.
REQUEST: ContextVar[tuple[str, str]] = ContextVar("request", default=("", ""))

# Scripts that write begin with this: NAME and DIGEST are those arguments. They return what they `remember`, also when
# the request had written before. The first byte of a record tells how many parts it has.
OUTCOME = f"""
local NAME, DIGEST = table.remove(ARGV, 1), table.remove(ARGV, 1)
local kept = NAME ~= '' and redis.call('GET', '{ANSWER}' .. NAME)
if kept and string.byte(kept) == 0x92 then return cmsgpack.unpack(kept)[2] end
if kept and string.byte(kept) == 0x94 then return redis.error_reply('READONLY a later try was answered') end
local function remember(outcome)
  if NAME ~= '' then
    redis.call('SET', '{ANSWER}' .. NAME, cmsgpack.pack({{DIGEST, outcome}}), 'EX', {ANSWER_EXPIRES_S})
  end
  return outcome
end
"""

# KEYS: the key. ARGV: the mark, which goes if nothing else has come in its place.
FORGET = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisAnswers:
    """`Answers` on Redis."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._forget = redis.register_script(FORGET)

    async def once(self, key: str, request: bytes, run: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """See `Answers`."""
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        digest = hashlib.blake2b(request, digest_size=16).hexdigest()
        mark = msgpack.packb([digest])
        with redis_errors():
            first = await self._redis.set(ANSWER + name, mark, nx=True, ex=MARK_EXPIRES_S)
            kept = None if first else await self._redis.get(ANSWER + name)
        answer = None if kept is None else _kept_answer(msgpack.unpackb(kept), digest)
        if answer is not None:
            return answer, True
        token = REQUEST.set((name, digest))
        try:
            answer = await run()
        except NoteLLMError:
            with redis_errors():
                await self._forget(keys=[ANSWER + name], args=[mark])
            raise
        finally:
            REQUEST.reset(token)
        with redis_errors():
            record = msgpack.packb([digest, answer.status, answer.body, answer.etag])
            await self._redis.set(ANSWER + name, record, ex=ANSWER_EXPIRES_S)
        return answer, kept is not None


def _kept_answer(kept: list[object], digest: str) -> Answer | None:
    """The first request's answer; None when it has written, and no answer is known."""
    match kept:
        case [first, *_] if first != digest:
            raise KeyReused("this idempotency key was used for another request")
        case [_, int(status), bytes(body), str(etag)]:
            return Answer(status, body, etag)
        case [_, _]:
            return None
        case _:
            raise StillRunning("a request with this idempotency key is being answered")
