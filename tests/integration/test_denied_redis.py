"""A user of Redis who lacks rights: the service says so, refuses what needs them, and goes on when they are there."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.checkpoint import tiny_checkpoint
from support.gateway import MemoryGateway
from support.redis import RedisServer
from support.service import NOTELLM, UNSET
from support.working import idle, until, working

from model.inference.hashing import HashingBackend
from model.note import Note
from service.errors import StoreUnavailable
from service.store.changes import RedisChangeStream
from service.store.connection import open_redis, open_sync_redis
from service.store.events import RedisEvents
from service.store.idempotency import RedisAnswers
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import Event, StoredNote
from service.store.registry import Registry

MARK = "x-mark-x"
NOTE = StoredNote(Note("n1", MARK, hashtags=(MARK,)), 0)
# What a client needs to connect and to try; every key, and no command that the service is about.
FEW = ["resetkeys", "~*", "-@all", "+@connection", "+multi", "+exec", "+evalsha", "+script|load"]


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    server = RedisServer()
    server.start()
    await allow(server, *FEW)
    yield server
    server.close()


async def allow(server: RedisServer, *rights: str) -> None:
    async with Redis(unix_socket_path=str(server.socket)) as redis:
        await redis.execute_command("ACL", "SETUSER", "few", "on", "nopass", *rights)


def url(server: RedisServer) -> str:
    return f"unix://few:any@{server.socket}"


@pytest.fixture
async def few(server: RedisServer) -> AsyncIterator[Redis]:
    client = open_redis(url(server))
    yield client
    await client.aclose()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda redis: RedisStore(redis, 10).get([MARK]), "the command MGET"),
        (lambda redis: RedisStore(redis, 10).spellings([MARK]), "the command ZREVRANGE"),  # in a pipeline
        (lambda redis: RedisStore(redis, 10).put([NOTE]), "a command or a key, which ACL LOG names"),  # in a script
        (lambda redis: RedisEvents(redis).append([Event("e", MARK, "n", "click", 1.0)]), "a command or a key"),
        (lambda redis: Registry(redis).registered(), "the command HGETALL"),
        (lambda redis: JobQueue(redis, "w0", "m", 16).claim(1, 0.01), "the command XREADGROUP"),
    ],
)
async def test_what_is_denied_is_unavailable_and_named_without_the_callers_text(few, caplog, call, named):
    with pytest.raises(StoreUnavailable, match=named) as refused:
        await call(few)

    [record] = [record for record in caplog.records if record.message == "redis_denied"]
    assert record.problem.startswith(f"Redis denies its user {named}")
    assert "users.acl" in record.problem
    assert MARK not in f"{refused.value} {vars(record)}"


async def test_a_key_that_is_denied_is_not_named(server, few, caplog):
    await allow(server, *FEW, "resetkeys", "~elsewhere", "+mget")

    with pytest.raises(StoreUnavailable, match="ACL LOG"):
        await RedisStore(few, 10).get([MARK])
    assert MARK not in caplog.text


async def test_the_stream_of_changes_is_unavailable_where_it_may_not_be_read(server):
    with open_sync_redis(url(server)) as redis, pytest.raises(StoreUnavailable, match="the command XREAD"):
        await asyncio.to_thread(RedisChangeStream(redis, "m").read, "0-0", 10, 0.0)


async def test_a_model_is_not_called_idle_because_its_workers_may_not_be_counted(server, few):
    await allow(server, *FEW, "+hlen", "+xlen", "+sismember")

    with pytest.raises(StoreUnavailable, match=r"the command XINFO"):
        await Registry(few).progress("m")


async def test_a_client_is_told_to_come_again_and_nothing_is_stored(server, few):
    gateway = MemoryGateway(answers=RedisAnswers(few))
    body = {"title": MARK}
    async with gateway.client() as client:
        refused = await client.put("/notes/n1", json=body, headers={"Idempotency-Key": "once"})
        await allow(server, *FEW, "+@all")
        taken = await client.put("/notes/n1", json=body, headers={"Idempotency-Key": "once"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert int(refused.headers["Retry-After"]) >= 1
    assert (taken.status_code, taken.json()["version"]) == (202, 1)


async def test_a_worker_waits_until_it_may_and_then_reads(server, few, caplog):
    backend = HashingBackend()
    async with Redis(unix_socket_path=str(server.socket)) as everything:
        await RedisStore(everything, 10).put([NOTE])
        async with working(backend, few) as worker:
            running = asyncio.create_task(worker.run())
            await until(lambda: asyncio.sleep(0, caplog.text.count("redis_denied") > 1))
            assert not running.done()
            assert not worker.connected

            await allow(server, *FEW, "+@all")
            await until(lambda: idle(everything, backend.fingerprint))
            worker.stop()
            await running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


@pytest.mark.parametrize("role", ["worker", "indexer"])  # a gateway needs rights only when it is asked something
async def test_a_process_says_what_it_may_not_and_stays(server, checkpoint, tmp_path, role):
    await allow(server, *FEW, "+get")  # without this, it would not start
    command = [*NOTELLM, role]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(server, checkpoint, tmp_path), stderr=log)
    try:
        lines = await asyncio.to_thread(_lines_when, tmp_path / "log", lambda line: line["event"] == "redis_denied")
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)
    assert [line["event"] for line in lines if "places" in line] == []


def _lines_when(file: Path, said: Callable[[dict[str, str]], bool]) -> list[dict[str, str]]:
    """The log, once one of its lines is the one that is waited for; every line is one of ours."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if any(map(said, lines)):
            return lines
        time.sleep(0.05)
    raise AssertionError(file.read_text())


async def test_a_command_says_it_in_one_line(server, checkpoint, tmp_path):
    told = await asyncio.to_thread(
        subprocess.run,
        [*NOTELLM, "model", "list"],
        env=environment(server, checkpoint, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 2
    assert told.stderr.startswith("notellm: Redis denies its user the command GET: ")
    assert len(told.stderr.splitlines()) == 1


def environment(server: RedisServer, checkpoint: Path, folder: Path) -> dict[str, str]:
    return {
        **UNSET,
        "NOTELLM_REDIS_URL": url(server),
        "NOTELLM_CHECKPOINT": str(checkpoint),
        "NOTELLM_HTTP__PORT": "0",
        "NOTELLM_OPS__PORT": "0",
        "NOTELLM_WORKER__THREADS": "1",
        "NOTELLM_WORKER__ADDRESSES": json.dumps([str(folder / "worker.sock")]),
        "NOTELLM_INDEX__ADDRESSES": json.dumps([str(folder / "shard.sock")]),
        "NOTELLM_INDEX__SNAPSHOT_DIR": str(folder / "index"),
    }
