"""A store of several cells on real servers: its way there and back, and on a real Redis Cluster, a cell a node."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.cluster import Cluster
from support.redis import RedisServer

from model.note import Note
from service.backup import restore as restoring
from service.backup.backup import back_up
from service.backup.dead_letters import dead_letters
from service.backup.files import BackupError
from service.backup.notes import export
from service.errors import StoreUnavailable
from service.processes.health import Readiness
from service.processes.redis_check import RedisCheck
from service.store.cells.ring import Cells, names
from service.store.cluster.keys import prefix
from service.store.connection import open_sync_redis
from service.store.info import examine
from service.store.interfaces import HashtagRule
from service.store.records import Event, StoredNote, StoredPrediction
from service.store.schema import COMPLETED, EMBEDDINGS, JOBS, NEW_NOTES, NEW_TAGS, NOTE, RESTORING, WRITES
from service.store.webhook.notices import RedisNotices
from service.wiring import stores

MODEL = "00000000000000aa"
IDS = [f"n{number}" for number in range(60)]
# What a restore begins anew or the next process fills in, see `service.backup.backup`.
ANEW = (COMPLETED, EMBEDDINGS, JOBS, NEW_NOTES, NEW_TAGS, WRITES, "notellm:v1:filled", "notellm:v1:exposed")
NOT_IN_A_BACKUP = ("notellm:v1:seen:", "notellm:v1:cells", "notellm:v1:types")


def note(number: int, title: str = "") -> StoredNote:
    tags = ("Kyoto", f"t{number % 7}")
    return StoredNote(Note(f"n{number}", title or f"Day {number}", "京都", tags), 0, attributes={"price": number})


async def use(cells: Cells[Redis]) -> None:
    """Notes, some written again and some deleted, of which a worker read some; events, and a rule."""
    store, queue = stores.note_store(cells, 1000), stores.job_queue(cells, "w0", MODEL, 4)
    await queue.open()
    await store.put([note(number) for number in range(60)])
    said = np.eye(4, dtype=np.float32)
    for place, item in enumerate(await queue.claim(40, 0.1)):
        if place % 10:
            await queue.publish([(item, StoredPrediction(1, MODEL, said[place % 4], (("t", 0.5),), None))])
        else:
            await queue.dead_letter(item, f"bad {item.job.note_id}")
    await store.put([note(number, "again") for number in range(5)])
    for number in range(3, 9):
        await store.delete(f"n{number}")
    shown = [Event(f"e{n}", f"u{n % 3}", f"n{n}", "view", time.time()) for n in range(20)]
    assert await stores.event_log(cells).append(shown) == 20
    await stores.hashtag_store(cells).put_rule(HashtagRule("citywalk", "urban_walk"))


async def seen(cells: Cells[Redis]) -> list[Any]:
    """What a gateway tells of all that."""
    store, hashtags = stores.note_store(cells, 1000), stores.hashtag_store(cells)
    await store.index_ids()
    pages, after = [], ""
    while True:
        page = await hashtags.page("", after, 3)
        pages += page.items
        if not (after := page.next or ""):
            break
    counts = await store.counts(MODEL)
    return [
        await store.get(IDS),
        await store.suggestions(IDS, MODEL),
        [found and found.vector.tolist() for found in [await store.vector(note_id, MODEL) for note_id in IDS]],
        (await store.page("n2", 11)),
        (counts.live, counts.failed),
        await store.attribute_types(),
        await store.spellings(["KYOTO", "t3", "never"]),
        (pages, await hashtags.rules(None)),
    ]


async def told(cells: Cells[Redis], notices: RedisNotices) -> set[tuple[Any, Any]]:
    """Notes and versions of which a webhook hears once a worker has read them all."""
    queue = stores.job_queue(cells, "w1", MODEL, 4)
    await queue.open()
    while claimed := await queue.claim(100, 0.1):
        said = (StoredPrediction(item.job.version, MODEL, np.eye(4, dtype=np.float32)[0], (), None) for item in claimed)
        await queue.publish(list(zip(claimed, said, strict=True)))
    heard: set[tuple[Any, Any]] = set()
    while (batch := await notices.read()).notices:
        heard |= {(one.data["note_id"], one.data["version"]) for one in batch.notices}
        await notices.tell(batch.told)
    return heard


@pytest.fixture
def others() -> Iterator[list[RedisServer]]:
    """Two more, with nothing in them."""
    servers = [RedisServer(), RedisServer()]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.close()


def contents(redis: SyncRedis) -> dict[bytes, Any]:
    """Every key that a restore puts back, with its value."""
    read = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"stream": redis.xrange,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
    }
    keys = [key for key in redis.scan_iter() if not key.decode().startswith((*ANEW, *NOT_IN_A_BACKUP))]
    return {key: read[redis.type(key)](key) for key in keys}


async def test_a_store_becomes_several_cells_and_one_again_wherever_the_restore_ends(
    redis, redis_server, others, tmp_path, monkeypatch
):
    await use(Cells.of([redis]))
    with ExitStack() as stack:
        source, back = (stack.enter_context(open_sync_redis(server.url)) for server in (redis_server, others[1]))
        target = stack.enter_context(stores.open_sync_cells(others[0].url, 3))
        back_up(Cells.of([source]), tmp_path / "one")
        before, kept = contents(source), await seen(Cells.of([redis]))

        finish, ends = restoring._Restore._finish, iter([0, 1, 2])

        def ending(work: restoring._Restore, cell: SyncRedis) -> Any:
            """Each try comes one cell further."""
            if not left:
                raise StoreUnavailable("it ended")
            left.pop()
            return finish(work, cell)

        monkeypatch.setattr(restoring._Restore, "_finish", ending)
        for end in ends:
            left = [None] * end
            with pytest.raises(StoreUnavailable, match="it ended"):
                restoring.restore(target, tmp_path / "one")
            assert target.first.exists(RESTORING)
        monkeypatch.undo()
        restored = restoring.restore(target, tmp_path / "one")

        assert (restored.live, restored.deleted) == (54, 6)
        assert all(cell.hlen("notellm:v1:counts") for cell in target)
        async with stores.open_cells(others[0].url, 3) as cells:
            assert await seen(cells) == kept
            assert len(await stores.event_log(cells).seen("u1")) == 0  # until a gateway has filled it in
            await stores.event_log(cells).complete()
            assert len(await stores.event_log(cells).seen("u1")) == 7
        assert sorted(letter.note_id for cell in target for letter in dead_letters(cell)) == sorted(
            letter.note_id for letter in dead_letters(source)
        )
        assert export(target, tmp_path / "notes.parquet") == 54
        with pytest.raises(BackupError, match="the store is not empty"):
            restoring.restore(target, tmp_path / "one")

        manifest = back_up(target, tmp_path / "three")
        assert (manifest.live, manifest.deleted, manifest.malformed) == (54, 6, 0)
        restoring.restore(Cells.of([back]), tmp_path / "three")
        assert contents(back) == before


async def test_on_a_cluster_each_cell_is_on_a_node_of_its_own_and_the_others_outlive_its_end(cluster: Cluster):
    """Of 200 notes with a version each that was acknowledged, none is lost when the node of one cell is killed."""
    own = names(3)
    cluster.spread(own)  # other tests move slots
    assert len({cluster.primary(name).port for name in own}) == 3
    async with stores.open_cells(cluster.url, 3, replicas=1) as cells:
        await use(cells)
        store, notices = stores.note_store(cells, 10_000), RedisNotices(cells)
        await notices.tell((await notices.read()).told)
        for name in own:
            keys = [key.decode() for key in cluster.primary(name)("KEYS", "*")]
            assert {key.partition("}")[0] + "}:" for key in keys} == {prefix(name)}
            assert sum(key.startswith(prefix(name) + NOTE.rpartition(":v1:")[2]) for key in keys) > 10

        written, refused, done = {}, dict.fromkeys(range(3), 0), asyncio.Event()

        async def write() -> None:
            count = 0
            while not done.is_set():
                note_id = f"w{(count := count + 1) % 200}"
                try:
                    [written[note_id]] = await store.put([StoredNote(Note(note_id, f"{count}"), 0)])
                except StoreUnavailable:
                    refused[cells.place_of(note_id)] += 1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(cluster.replace_primary, own[1])
            await asyncio.to_thread(cluster.settle)
            while len(written) < 200:
                await asyncio.sleep(0.05)
            done.set()

        found = await store.get(list(written))
        assert all(record and record.version >= written[record.note.id] for record in found)
        assert len({cluster.primary(name).port for name in own}) == 3
        assert sum(refused[cell] for cell in (0, 2)) == 0
        assert await told(cells, notices) >= {(record.note.id, record.version) for record in found if record}
        assert [(await examine(cluster.url, replicas=1, cell=name, cells=3)).problems for name in own] == [()] * 3
        for node in cluster.nodes:
            node("CONFIG SET", "cluster-require-full-coverage", "yes")
        readiness = Readiness()
        await RedisCheck(cluster.url, readiness, 1, own).start()
        for node in cluster.nodes:
            node("CONFIG SET", "cluster-require-full-coverage", "no")
        [warning] = readiness.warnings
        assert "set it to no on every node" in warning
