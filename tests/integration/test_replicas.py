"""Shards and replicas as real processes, following one Redis: they agree, stand in for each other and come back."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis
from support.redis import RedisServer
from support.service import NOTELLM

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


class Cluster:
    """Every replica of every shard, by (shard, replica)."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.addresses = [
            ",".join(str(folder / f"{shard}-{replica}.sock") for replica in range(REPLICAS)) for shard in range(SHARDS)
        ]
        self.redis_url = redis_url
        self.processes: dict[tuple[int, int], subprocess.Popen[bytes]] = {}

    def start(self, shard: int, replica: int) -> None:
        listed = ", ".join(f'"{address}"' for address in self.addresses)
        environment = {
            "NOTELLM_REDIS_URL": self.redis_url,
            "NOTELLM_INDEX__ADDRESSES": f"[{listed}]",
            "NOTELLM_INDEX__NUMBER": str(shard),
            "NOTELLM_INDEX__REPLICA": str(replica),
            "NOTELLM_INDEX__SNAPSHOT_DIR": str(self.folder / "snapshots"),
            "NOTELLM_INDEX__SNAPSHOT_EVERY_S": "0.2",
            "NOTELLM_OPS__PORT": "0",
        }
        log = (self.folder / f"{shard}-{replica}.log").open("ab")
        command = [*NOTELLM, "indexer"]
        self.processes[shard, replica] = subprocess.Popen(command, env={**os.environ, **environment}, stderr=log)
        log.close()

    def end(self, shard: int, replica: int, how: signal.Signals = signal.SIGKILL) -> None:
        process = self.processes.pop((shard, replica))
        process.send_signal(how)
        process.wait()


@pytest.fixture
async def cluster(tmp_path: Path, redis: Redis, redis_server: RedisServer) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path, redis_server.url)
    yield cluster
    for place in list(cluster.processes):
        cluster.end(*place)


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
    store, queue = RedisStore(redis, 10_000), JobQueue(redis, "w0")
    await queue.open(manifest.fingerprint)

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
    for shard in range(SHARDS):
        for replica in range(REPLICAS):
            cluster.start(shard, replica)
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
        assert registered == {"shard-0", "shard-0-1", "shard-1", "shard-1-1"}
    finally:
        await everybody.close()
        await seconds.close()
