"""`notellm deadletters`: notes that failed, listed and read again."""

import asyncio

import pytest
from click.testing import CliRunner
from redis.asyncio import Redis
from support.redis import RedisServer
from support.working import changes, drain, stored

from model.inference.hashing import BAD, HashingBackend
from service.cli.main import cli
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredFailure
from service.store.schema import DEAD, FAILED

MODEL = "hashing-a"


class Mended(HashingBackend):
    """Reads what the other one cannot."""

    def tokenize(self, notes):
        return super().tokenize([type(note)(note.id, note.title.replace(BAD, "")) for note in notes])


@pytest.fixture
async def failed(redis: Redis) -> RedisStore:
    """Of three poison notes one was written again since, and one deleted."""
    await JobQueue(redis, "somebody", MODEL, 16).open()
    store = RedisStore(redis, max_queue=100)
    await store.put([stored("n1", BAD), stored("n2", BAD), stored("n3", BAD), stored("n4")])
    await drain(HashingBackend(), redis)
    await store.put([stored("n2", "good")])
    await store.delete("n3")
    await drain(HashingBackend(), redis)
    return store


async def run(server: RedisServer, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setenv("NOTELLM_REDIS_URL", server.url)
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["deadletters", *words])
    return result.exit_code, result.output


async def test_each_is_listed_with_its_reason_and_no_control_character(redis, redis_server, failed, monkeypatch):
    await redis.xadd(DEAD, {"id": "n9", "version": 3, "fingerprint": "m", "reason": "\x1b[2J"})
    status, printed = await run(redis_server, monkeypatch, "list")

    reason = f"{MODEL}\tRuntimeError: cannot read '\\x07'"
    assert status == 0
    assert printed.splitlines() == [f"n{number}\t1\t{reason}" for number in (1, 2, 3)] + ["n9\t3\tm\t\\x1b[2J"]
    assert (await run(redis_server, monkeypatch, "list", "--limit", "1"))[1] == f"n1\t1\t{reason}\n"


async def test_what_still_fails_is_read_again_and_the_rest_is_left_alone(redis, redis_server, failed, monkeypatch):
    announced = len(await changes(redis))
    told = await run(redis_server, monkeypatch, "retry")
    await drain(Mended(), redis)

    assert told == (0, "1 notes are read again, 2 dead letters were out of date\n")
    assert [(change.id, change.version) for change in (await changes(redis))[announced:]] == [("n1", 1)]
    assert await redis.xlen(DEAD) == 0
    assert (await failed.counts(MODEL)).failed == 0


async def test_a_note_that_fails_again_gets_a_new_letter(redis, redis_server, failed, monkeypatch):
    await run(redis_server, monkeypatch, "retry", "n1")
    assert await redis.xlen(DEAD) == 2
    await drain(HashingBackend(), redis)

    assert await redis.xlen(DEAD) == 3
    assert (await failed.counts(MODEL)).failed == 1


async def test_what_an_index_refused_is_announced_again(redis, redis_server, failed, monkeypatch):
    await redis.hset(FAILED + MODEL, "n4", StoredFailure(1, "no room").encode())
    await redis.xadd(DEAD, {"id": "n4", "version": 1, "fingerprint": MODEL, "reason": "no room"})
    announced = len(await changes(redis))
    await run(redis_server, monkeypatch, "retry", "n4")
    await drain(HashingBackend(), redis)

    assert [change.id for change in (await changes(redis))[announced:]] == ["n4"]


async def test_an_id_without_a_letter_is_named(redis_server, failed, monkeypatch):
    status, printed = await run(redis_server, monkeypatch, "retry", "n7")
    assert (status, printed) == (1, "Error: no dead letter of 'n7'; 0 notes are read again\n")
