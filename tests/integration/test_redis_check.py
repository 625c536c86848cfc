"""A Redis that is not as it has to be: refused at the start of a process, and named while it runs."""

import asyncio
import math
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from support.redis import RedisServer
from support.service import NOTELLM, UNSET
from support.wire import Wire

from service.processes.health import Readiness
from service.processes.redis_check import RedisCheck
from service.settings import SetupError
from service.store.info import examine


@contextmanager
def started(*options: str) -> Iterator[RedisServer]:
    server = RedisServer(*options)
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
async def admin(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """May do everything, and puts back what a test sets."""
    async with Redis(unix_socket_path=str(redis_server.socket)) as client:
        before = {name: value for name, value in (await client.config_get("*")).items() if name in SET_BY_TESTS}
        yield client
        await client.execute_command("REPLICAOF", "NO", "ONE")
        for name, value in before.items():
            await client.config_set(name, value)
        await client.execute_command("ACL", "DELUSER", "few")


SET_BY_TESTS = ("maxmemory-policy", "maxmemory", "appendonly", "appendfsync", "requirepass")


def shown(cause: str) -> float | None:
    return REGISTRY.get_sample_value("notellm_redis_problem", {"cause": cause})


@pytest.mark.parametrize(
    ("settings", "cause", "told"),
    [
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "eviction", "allkeys-lru"),
        ({"appendonly": "no"}, "persistence", "append-only file"),
        ({"appendfsync": "everysec"}, "fsync", "everysec"),
    ],
)
async def test_a_redis_that_may_lose_notes_warns_until_it_is_mended(redis_server, admin, caplog, settings, cause, told):
    caplog.set_level("INFO")
    readiness = Readiness()
    check = RedisCheck(redis_server.url, readiness)
    await check.start()
    assert (readiness.warnings, shown(cause)) == ([], 0)
    before = {name: (await admin.config_get(name))[name] for name in settings}

    for name, value in settings.items():
        await admin.config_set(name, value)
    await check.look()
    await check.look()

    [warning] = readiness.warnings
    assert told in warning
    assert (readiness.missing, shown(cause)) == ([], 1)
    assert [record.cause for record in caplog.records if record.message == "redis_problem"] == [cause]

    for name, value in before.items():
        await admin.config_set(name, value)
    await check.look()
    assert (readiness.warnings, shown(cause)) == ([], 0)
    assert [record.causes for record in caplog.records if record.message == "redis_mended"] == [[cause]]


async def refusal(url: str) -> str:
    with pytest.raises(SetupError) as refused:
        await RedisCheck(url, Readiness()).start()
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def test_a_redis_that_nothing_works_on_is_refused_and_the_reason_is_named(redis_server, admin):
    assert "no database 99" in await refusal(f"{redis_server.url}?db=99")
    assert "password in NOTELLM_REDIS_URL" in await refusal(f"unix://who:wrong@{redis_server.socket}")
    await admin.execute_command("ACL", "SETUSER", "few", "on", "nopass", "-@all", "+@connection")
    assert "the command GET" in await refusal(f"unix://few:x@{redis_server.socket}")
    await admin.config_set("requirepass", "right")
    assert "asks for a password" in await refusal(redis_server.url)
    assert "refuses" in await refusal(f"unix://:wrong@{redis_server.socket}")
    assert (await examine(f"unix://:right@{redis_server.socket}")).problems == ()


async def test_a_replica_is_refused(redis_server, admin):
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")

    assert "replica" in await refusal(redis_server.url)


async def test_a_cluster_is_refused_whatever_the_number_of_the_database():
    with started("--cluster-enabled", "yes") as server:
        assert "Cluster" in await refusal(server.url)
        assert "NOTELLM_REDIS_URL" in await refusal(f"{server.url}?db=1")


async def test_what_a_user_may_not_ask_is_unknown_and_the_process_starts(redis_server, admin):
    rights = ["on", "nopass", "~*", "-@all", "+@connection", "+get", "+evalsha", "+script|load"]
    await admin.execute_command("ACL", "SETUSER", "few", *rights)
    readiness = Readiness()
    check = RedisCheck(f"unix://few:x@{redis_server.socket}", readiness)

    await check.start()
    assert readiness.warnings == []
    assert math.isnan(shown("eviction"))
    assert shown("password") == 0

    await admin.execute_command("ACL", "SETUSER", "few", "+info")
    await admin.config_set("appendonly", "no")
    await check.look()
    assert (shown("persistence"), shown("eviction")) == (1, 0)


async def test_a_redis_that_does_not_answer_is_waited_for_and_what_was_known_stays(caplog):
    with started() as server:
        async with Redis(unix_socket_path=str(server.socket)) as admin:
            await admin.config_set("appendfsync", "no")
        readiness = Readiness()
        check = RedisCheck(server.url, readiness)
        await check.start()
        server.kill()
        await check.look()
        assert len(readiness.warnings) == 1
    await RedisCheck("unix:///nowhere", Readiness()).start()
    assert "redis_problem" in caplog.text


async def test_a_password_that_becomes_wrong_is_named_although_open_connections_go_on(redis_server, admin, redis):
    readiness = Readiness()
    check = RedisCheck(redis_server.url, readiness)
    await check.start()

    await admin.config_set("requirepass", "another")
    await check.look()

    assert await redis.ping()
    [warning] = readiness.warnings
    assert "password" in warning
    assert shown("password") == 1


async def test_tls_works_with_a_trusted_certificate_and_is_named_without_one(redis_server, tmp_path):
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    await asyncio.to_thread(subprocess.run, made, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "certificate", tmp_path / "key")

    with Wire(redis_server.socket, tls) as wire:
        url = f"rediss://localhost:{wire.port}/0"
        assert (await examine(f"{url}?ssl_ca_certs={tmp_path}/certificate")).problems == ()
        assert "self-signed" in await refusal(url)


@pytest.mark.parametrize("role", ["serve", "gateway", "worker", "indexer"])
def test_every_process_ends_with_one_line_before_anything_else_begins(redis_server, tmp_path, role):
    environment = {
        **UNSET,
        "NOTELLM_REDIS_URL": f"{redis_server.url}?db=99",
        "NOTELLM_STATE_DIR": str(tmp_path / "state"),
        "NOTELLM_HTTP__PORT": "0",
        "NOTELLM_OPS__PORT": "0",
        "NOTELLM_WORKER__ADDRESSES": f'["{tmp_path}/worker"]',
        "NOTELLM_INDEX__ADDRESSES": f'["{tmp_path}/shard"]',
    }
    ended = subprocess.run(
        [*NOTELLM, role], env=environment, capture_output=True, text=True, check=False, timeout=30, cwd=Path("/")
    )

    assert ended.returncode == 2
    told = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert told == ["notellm: Redis has no database 99, which NOTELLM_REDIS_URL names"]
