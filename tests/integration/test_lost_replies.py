"""Redis does what it was asked and its reply is lost: the request again, with its idempotency key, writes nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from redis.asyncio import Redis
from support.redis import RedisServer
from support.wire import Wire

from model.note import Note
from service.errors import StillRunning, StoreUnavailable
from service.store.connection import open_redis
from service.store.events import RedisEvents
from service.store.idempotency import REQUEST, RedisAnswers
from service.store.interfaces import Answer
from service.store.notes import RedisStore
from service.store.records import Event, StoredNote
from service.store.schema import ANSWER


@pytest.fixture
def wire(redis_server: RedisServer) -> Iterator[Wire]:
    with Wire(redis_server.socket) as wire:
        yield wire


@pytest.fixture
async def far(wire: Wire, redis: Redis) -> AsyncIterator[Redis]:
    """A client whose replies may get lost; ``redis`` is one beside it. Redis knows the scripts already."""
    await RedisStore(redis, 100).put([StoredNote(Note("other", "text"), 0)])
    await RedisStore(redis, 100).delete("other")
    await RedisEvents(redis).append([Event("other", "u", "n", "click", 1.0)])
    client = open_redis(f"redis://127.0.0.1:{wire.port}/0", timeout_s=2)
    yield client
    await client.aclose()


def text(words: str) -> StoredNote:
    return StoredNote(Note("n", words), 0)


async def lost(wire: Wire, far: Redis, run: Callable[[], Awaitable[Answer]], *, cleaned: bool = True) -> None:
    """The request, whose write is done and whose reply is lost; ``cleaned``: and nothing else is."""

    async def cut() -> Answer:
        wire.lose(1000)
        try:
            return await run()
        finally:
            wire.set("none" if cleaned else "lose replies")

    with pytest.raises(StoreUnavailable):
        await RedisAnswers(far).once("k", b"request", cut)
    wire.set("none")


@pytest.mark.parametrize("cleaned", [True, False])
async def test_a_write_whose_reply_is_lost_does_not_overwrite_a_later_one(wire, far, redis, cleaned):
    async def put() -> Answer:
        [version] = await RedisStore(far, 100).put([text("first")])
        return Answer(202, str(version).encode())

    await lost(wire, far, put, cleaned=cleaned)
    assert await RedisStore(redis, 100).put([text("of another client")]) == [2]

    for _ in range(2):
        assert await RedisAnswers(far).once("k", b"request", put) == (Answer(202, b"1"), True)
    [kept] = await RedisStore(redis, 100).get(["n"])
    assert kept
    assert (kept.note.title, kept.version) == ("of another client", 2)


async def test_a_delete_whose_reply_is_lost_does_not_delete_what_was_written_since(wire, far, redis):
    store = RedisStore(redis, 100)
    await store.put([text("first")])

    async def delete() -> Answer:
        await RedisStore(far, 100).delete("n")
        return Answer(204, b"")

    await lost(wire, far, delete)
    assert await store.put([text("written since")]) == [3]

    assert await RedisAnswers(far).once("k", b"request", delete) == (Answer(204, b""), True)
    [kept] = await store.get(["n"])
    assert kept
    assert not kept.deleted


async def test_events_whose_reply_is_lost_are_still_called_accepted(wire, far):
    async def append() -> Answer:
        return Answer(202, str(await RedisEvents(far).append([Event("e", "u", "n", "click", 1.0)])).encode())

    await lost(wire, far, append)

    assert await RedisAnswers(far).once("k", b"request", append) == (Answer(202, b"1"), True)


async def test_without_a_key_a_write_runs_again(far, redis):
    store = RedisStore(far, 100)
    assert [await store.put([text(words)]) for words in ("a", "b", "a")] == [[1], [2], [3]]
    assert await redis.keys("notellm:v1:answer:*") == []


async def test_a_write_that_comes_late_changes_nothing_once_its_retry_was_answered(redis):
    answers, store = RedisAnswers(redis), RedisStore(redis, 100)

    async def put() -> Answer:
        return Answer(202, str(await store.put([text("first")])).encode())

    await answers.once("k", b"request", put)
    await store.put([text("of another client")])
    [name] = await redis.keys(ANSWER + "*")
    token = REQUEST.set((name.decode().removeprefix(ANSWER), "digest"))
    try:
        with pytest.raises(StoreUnavailable):
            await store.put([text("first")])
    finally:
        REQUEST.reset(token)

    [kept] = await store.get(["n"])
    assert kept
    assert kept.note.title == "of another client"


async def test_a_retry_meets_the_first_request_before_it_has_written(redis):
    answers = RedisAnswers(redis)

    async def twice() -> Answer:
        with pytest.raises(StillRunning):
            await answers.once("k", b"request", _answer)
        return Answer(202, b"{}")

    assert (await answers.once("k", b"request", twice))[1] is False


async def _answer() -> Answer:
    return Answer(202, b"{}")
