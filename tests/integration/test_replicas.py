"""Shards and replicas as real processes, following one Redis: they agree, stand in for each other and come back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis
from support.indexers import Indexers
from support.redis import RedisServer

from indexer.client import ShardedSearcher
from indexer.types import Found
from model.checkpoint import read_manifest
from model.note import Note
from service.jobs import JobQueue
from service.messages import CURSORS, StoredNote, StoredReading
from service.settings import MINI
from service.store import RedisStore

SHARDS, REPLICAS = 2, 2
NOTES = 200


@pytest.fixture
async def cluster(tmp_path: Path, redis: Redis, redis_server: RedisServer) -> AsyncIterator[Indexers]:
    cluster = Indexers(tmp_path, redis_server.url, SHARDS, REPLICAS)
    yield cluster
    cluster.end_all()


async def until_found(searcher: ShardedSearcher, vector: np.ndarray, notes: int, shards: int = SHARDS) -> Found:
    async with asyncio.timeout(120):
        while True:
            found = await searcher.search(vector, NOTES + 10, timeout_s=5)
            if found.shards_ok == shards and len(found.neighbors) == notes:
                return found
            await asyncio.sleep(0.05)


async def test_replicas_agree_stand_in_for_each_other_and_come_back(cluster, redis):
    manifest = read_manifest(MINI)
    vectors = np.random.default_rng(0).normal(size=(NOTES, manifest.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store, queue = RedisStore(redis, 10_000), JobQueue(redis, "w0", manifest.fingerprint, manifest.dim)
    await queue.open()

    async def write(rows: range) -> None:
        await store.put([StoredNote(Note(f"n{row}", f"n{row}"), 0) for row in rows])
        claimed = await queue.claim(NOTES, 0.1)
        await queue.publish(
            [
                (item, StoredReading(1, manifest.fingerprint, vectors[int(item.job.note_id[1:])], (), None))
                for item in claimed
            ]
        )

    await write(range(100))
    for place in cluster.everywhere:
        cluster.start(*place)
    everybody = ShardedSearcher(cluster.addresses, manifest.fingerprint)
    seconds = ShardedSearcher([address.split(",")[1] for address in cluster.addresses], manifest.fingerprint)
    try:
        await until_found(everybody, vectors[0], 100)
        await write(range(100, NOTES))
        for searcher in (everybody, seconds):
            found = await until_found(searcher, vectors[0], NOTES)
            exact = [f"n{row}" for row in np.argsort(-(vectors @ vectors[0]))]
            assert [neighbor.id for neighbor in found.neighbors] == exact

        cluster.end(0, 0)
        found = await until_found(everybody, vectors[0], NOTES)
        assert found.shards_ok == SHARDS
        cluster.end(0, 1)
        found = await everybody.search(vectors[0], NOTES, timeout_s=5)
        assert (found.shards_ok, found.shards_total) == (SHARDS - 1, SHARDS)
        assert 0 < len(found.neighbors) < NOTES

        await store.delete("n0")
        cluster.start(0, 1)
        found = await until_found(everybody, vectors[0], NOTES - 1)
        assert "n0" not in {neighbor.id for neighbor in found.neighbors}
        # One name for each, also after a restart, whatever its address is then.
        registered = {name.decode() for name in await redis.hkeys(CURSORS)}
        names = ("shard-0", "shard-0-1", "shard-1", "shard-1-1")
        assert registered == {f"{name}/{manifest.fingerprint}" for name in names}
    finally:
        await everybody.close()
        await seconds.close()
