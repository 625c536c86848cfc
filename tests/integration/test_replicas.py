"""Shards and replicas as real processes, following one Redis: they agree, replace each other and come back."""

import asyncio
import os
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from redis.asyncio import Redis
from support.index import neighbors
from support.indexers import Indexers
from support.redis import RedisServer
from support.service import NOTELLM

from indexer.index import VectorIndex
from indexer.serving.client import ShardedSearcher
from indexer.shards import shard_of
from indexer.types import Change, SearchResult
from model.note import Note
from service.api.app import create_app
from service.recommend.recommender import Recommender
from service.recommend.vocabulary import HashtagVocabulary
from service.recommend.workers import WorkerPool
from service.setting_groups import HttpSettings, IndexSettings
from service.settings import Settings
from service.store.events import RedisEvents
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.idempotency import RedisAnswers
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.schema import CURSORS

SHARDS, REPLICAS = 4, 2
NOTES = 200
MODEL = "000000000000000a"
VECTORS = np.random.default_rng(0).normal(size=(NOTES, 16)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
LOST = 2
# Of a shard that is not lost.
ASKED = next(row for row in range(NOTES) if shard_of(f"n{row}", SHARDS) != LOST)


@pytest.fixture
async def cluster(tmp_path: Path, redis: Redis, redis_server: RedisServer) -> AsyncIterator[Indexers]:
    cluster = Indexers(tmp_path, redis_server.url, SHARDS, REPLICAS)
    yield cluster
    cluster.end_all()


async def until_indexed(searcher: ShardedSearcher, notes: int) -> SearchResult:
    async with asyncio.timeout(120):
        while True:
            result = await searcher.search(VECTORS[ASKED], NOTES + 10, timeout_s=5)
            if result.shards_ok == SHARDS and len(result.neighbors) == notes:
                return result
            await asyncio.sleep(0.05)


async def exported(cluster: Indexers) -> list[dict[str, Any]]:
    """The lists of seven notes, by the command."""
    out = cluster.folder / "lists.parquet"
    words = ["export", "related", "--k", "7", "--out", str(out)]
    command = await asyncio.create_subprocess_exec(
        *NOTELLM, *words, env={**os.environ, **cluster.environment}, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await command.communicate()
    assert said.decode() == f"lists of {NOTES} notes by model {MODEL} in {out}\n"
    return pq.read_table(out).to_pylist()


async def test_replicas_agree_stand_in_for_each_other_and_come_back(cluster, redis):
    store, queue = RedisStore(redis, 10_000), JobQueue(redis, "w0", MODEL, VECTORS.shape[1])
    await queue.open()
    everybody = ShardedSearcher(cluster.addresses, MODEL)
    seconds = ShardedSearcher([address.split(",")[1] for address in cluster.addresses], MODEL)
    settings = Settings(http=HttpSettings(related_s=10), index=IndexSettings(addresses=tuple(cluster.addresses)))
    seams = store, RedisEvents(redis), HashtagVocabulary(RedisHashtags(redis), 1.0), everybody, WorkerPool([], MODEL)
    recommender = Recommender(*seams, settings, MODEL)
    gateway = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(lambda _: recommender, RedisAnswers(redis), settings)),
        base_url="http://localhost",
    )

    async def write(rows: range) -> None:
        await store.put([StoredNote(Note(f"n{row}", f"n{row}"), 0) for row in rows])
        claimed = await queue.claim(NOTES, 0.1)
        await queue.publish(
            [(claim, StoredPrediction(1, MODEL, VECTORS[int(claim.job.note_id[1:])], (), None)) for claim in claimed]
        )

    async def related() -> tuple[list[str], dict[str, int]]:
        answer = await gateway.get(f"/notes/n{ASKED}/related", params={"k": 10})
        assert answer.status_code == 200, answer.text
        return [note["note_id"] for note in answer.json()["items"]], answer.json()["shards"]

    await write(range(NOTES // 2))
    for place in cluster.everywhere:
        cluster.start(*place)
    whole = VectorIndex(VECTORS.shape[1], MODEL)
    whole.apply([Change("0-0", f"n{row}", 1, MODEL, vector) for row, vector in enumerate(VECTORS)])
    [expected] = neighbors(whole, VECTORS[ASKED][None], NOTES)
    order = [f"n{row}" for row in np.argsort(-(VECTORS @ VECTORS[ASKED]))]
    try:
        await until_indexed(everybody, NOTES // 2)
        await write(range(NOTES // 2, NOTES))
        for searcher in (everybody, seconds):
            result = await until_indexed(searcher, NOTES)
            assert [neighbor.id for neighbor in result.neighbors] == [neighbor.id for neighbor in expected] == order
            assert np.allclose([near.score for near in result.neighbors], [near.score for near in expected], atol=1e-6)
        assert await related() == (order[1:11], {"ok": SHARDS, "total": SHARDS})
        rows = await exported(cluster)
        assert len(rows) == NOTES
        for row in rows[:20]:
            answer = await gateway.get(f"/notes/{row['note_id']}/related", params={"k": 7})
            assert row["related_ids"] == [note["note_id"] for note in answer.json()["items"]]
            scores = [note["score"] for note in answer.json()["items"]]
            assert np.allclose(row["scores"], scores, atol=1e-6)

        cluster.end(LOST, 0)
        assert (await until_indexed(everybody, NOTES)).shards_ok == SHARDS
        cluster.end(LOST, 1)
        left = [id_ for id_ in order[1:] if shard_of(id_, SHARDS) != LOST]
        assert await related() == (left[:10], {"ok": SHARDS - 1, "total": SHARDS})

        gone = next(id_ for id_ in order if shard_of(id_, SHARDS) == LOST)
        await store.delete(gone)
        cluster.start(LOST, 1)
        result = await until_indexed(everybody, NOTES - 1)
        assert gone not in {neighbor.id for neighbor in result.neighbors}
        there = [id_ for id_ in order[1:] if id_ != gone]
        assert await related() == (there[:10], {"ok": SHARDS, "total": SHARDS})
        # One name for each, also after a restart, whatever its address is then.
        names = {f"shard-{shard}{suffix}/{MODEL}" for shard in range(SHARDS) for suffix in ("", "-1")}
        assert {name.decode() for name in await redis.hkeys(CURSORS)} == names
    finally:
        await gateway.aclose()
        await everybody.close()
        await seconds.close()
