"""The store on a real Redis Cluster: what is refused, what is repeated, and what an acknowledged write means."""

import asyncio
from collections.abc import AsyncIterator
from signal import SIGCONT, SIGSTOP

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as ConnectionFailed
from support.cluster import Cluster
from support.redis import RedisServer

from model.note import Note
from service.backup import restore as restoring
from service.backup.backup import back_up
from service.backup.files import Line, note_of
from service.errors import StoreUnavailable
from service.processes.state import free_port
from service.store.cells.ring import Cells
from service.store.cluster.keys import FIRST, prefix
from service.store.connection import open_redis, open_sync_redis
from service.store.info import examine
from service.store.notes import RedisStore
from service.store.records import StoredNote
from service.store.schema import ACTIVE, FENCE, NOTE

CELL = prefix(FIRST)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Redis]:
    """Of the cell, without a wait for replicas."""
    client = open_redis(cluster.url, timeout_s=1.0)
    yield client
    await client.aclose()


def note(number: int, title: str = "") -> StoredNote:
    return StoredNote(Note(f"n{number}", title or f"Day {number}", "京都", ("Kyoto",)), 0)


async def test_a_cell_has_all_of_its_keys_on_one_node(cluster, client):
    store = RedisStore(client, 100)

    assert await store.put([note(number) for number in range(20)]) == [1] * 20

    keys = cluster.primary()("KEYS", "*")
    assert len(keys) > 20
    assert all(key.startswith(CELL.encode()) for key in keys)
    _, found = await client.scan(0, match=NOTE + "*", count=1000)
    assert sorted(found) == sorted(f"{NOTE}n{number}".encode() for number in range(20))


async def test_a_planned_failover_refuses_at_most_the_writes_that_wait_for_the_replica_then(cluster):
    """Each writer has one under way, and goes on with it: what was refused is acknowledged when it is repeated."""
    done = asyncio.Event()

    async def write(store: RedisStore, writer: int) -> tuple[int, int]:
        count = refused = 0
        while not done.is_set():
            try:
                await store.put([note(writer, f"{writer} {count}")])
                count += 1
            except StoreUnavailable:
                refused += 1
        return count, refused

    before = cluster.primary()
    async with open_redis(cluster.url, timeout_s=5.0, replicas=1) as client, asyncio.TaskGroup() as tasks:
        store = RedisStore(client, 10_000)
        writers = [tasks.create_task(write(store, writer)) for writer in range(8)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(cluster.fail_over)
        await asyncio.sleep(0.1)
        done.set()
        written = await asyncio.gather(*writers)
        kept = await store.get([f"n{writer}" for writer in range(8)])
    cluster.settle()

    assert cluster.primary() is not before
    assert all(count and refused <= 1 for count, refused in written)
    # One that was refused and not repeated may be there.
    assert all(count <= one.version <= count + refused for one, (count, refused) in zip(kept, written, strict=True))


async def test_a_write_that_no_replica_has_is_not_acknowledged_however_often_it_comes(cluster):
    async with (
        open_redis(cluster.url, timeout_s=1.0, replicas=1) as first,
        open_redis(cluster.url, timeout_s=1.0, replicas=1) as second,
    ):
        one, other = RedisStore(first, 100), RedisStore(second, 100)
        cluster.primary()("SCRIPT FLUSH")
        assert await one.put([note(1)]) == [1]
        replica = cluster.replica()
        replica.send(SIGSTOP)
        try:
            for store in (one, one, other):
                await second.delete(FENCE)
                with pytest.raises(StoreUnavailable, match="too few replicas"):
                    await store.put([note(2)])
                # The second and the third found it stored. Redis 7.2 and later wait for the last write of a connection.
                assert await first.exists(FENCE)
            assert [found.version for found in await other.get(["n1", "n2"])] == [1, 1]
        finally:
            replica.send(SIGCONT)
        cluster.settle()
        assert await other.put([note(2)]) == [1]


async def test_while_keys_move_scripts_are_refused_before_they_write_anything(cluster, client):
    store = RedisStore(client, 100)
    await store.put([note(1), note(2)])
    source, target = cluster.primary(), cluster.another_primary()
    cluster.announce_move(source, target)
    source("MIGRATE", "127.0.0.1", target.port, f"{CELL}note:n1", 0, 5000)
    left = sorted(source("KEYS", "*"))

    for write in (store.put([note(3)]), store.put([note(2, "again")]), store.delete("n2")):
        with pytest.raises(StoreUnavailable):
            await write

    assert (sorted(source("KEYS", "*")), target("KEYS", "*")) == (left, [f"{CELL}note:n1".encode()])
    cluster.finish_move(source, target)
    assert [one.version for one in await store.get(["n1", "n2"])] == [1, 1]
    assert await store.put([note(3)]) == [1]


async def test_who_names_one_redis_and_means_a_cluster_is_told_and_the_other_way_round(cluster):
    node = f"redis://127.0.0.1:{cluster.nodes[0].port}"

    assert (await examine(cluster.url, replicas=1)).problems == ()
    assert "redis+cluster://" in (await examine(node)).unusable
    alone = RedisServer("--port", str(port := free_port("127.0.0.1", 0, "")))
    alone.start()
    try:
        assert "is one Redis" in (await examine(f"redis+cluster://127.0.0.1:{port}")).unusable
    finally:
        alone.close()
    assert [one.cause for one in (await examine(cluster.url, replicas=2)).problems] == ["replicas"]


async def test_a_store_moves_into_a_cluster_by_backup_and_restore_whatever_fails_meanwhile(
    cluster, client, redis, redis_server, tmp_path, monkeypatch
):
    store = RedisStore(redis, 100_000)
    for first in range(0, 3000, 500):
        await store.put([note(number) for number in range(first, first + 500)])
    await store.delete("n7")
    with open_sync_redis(redis_server.url) as source:
        back_up(Cells.of([source]), tmp_path / "backup")
    faults, tries, lines = {500: cluster.fail_over, 1500: cluster.replace_primary}, 0, 0

    def counted(line: Line) -> StoredNote:
        nonlocal lines
        lines += 1
        faults.pop(lines, lambda: None)()
        return note_of(line)

    monkeypatch.setattr(restoring, "note_of", counted)
    while True:
        tries += 1
        with open_sync_redis(cluster.url) as target:
            try:
                restored = restoring.restore(Cells.of([target]), tmp_path / "backup")
                break
            except StoreUnavailable as error:
                assert not error.cause  # noqa: PT017 - it passes by itself

    assert (restored.live, restored.deleted) == (2999, 1)
    assert tries >= 3
    ids = [f"n{number}" for number in range(3000)]
    assert await RedisStore(client, 100_000).get(ids) == await store.get(ids)
    with open_sync_redis(cluster.url) as target:  # the way back
        manifest = back_up(Cells.of([target]), tmp_path / "back")
    assert (manifest.live, manifest.deleted, manifest.malformed) == (2999, 1, 0)


def test_a_thread_never_goes_on_with_another_primary_unaware(cluster):
    """It may lack the last writes, so that a restore has to begin again."""
    with open_sync_redis(cluster.url) as client:
        client.set(ACTIVE, "a")
        cluster.fail_over()
        cluster.settle()
        client.connection_pool.disconnect()  # as when nothing was under way
        with pytest.raises(ConnectionFailed):
            client.get(ACTIVE)
        assert client.get(ACTIVE) == b"a"
