"""`ShardedSearcher` over real servers: replicas, frames, models; tests/contract/test_searcher.py has its contract."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from support.index import Shards, neighbors, serving, silent_server

from indexer.index import VectorIndex
from indexer.rpc.frames import RpcRefused
from indexer.rpc.server import serve
from indexer.serving.client import ShardedSearcher, merge
from indexer.serving.server import serve_shard
from indexer.shards import shard_of
from indexer.types import Change, Hits, ShardUnavailable

SHARDS = 3
DIM = 16
ROWS = 300
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = VECTORS[:20] + 0.3 * VECTORS[20:40]
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


@pytest.fixture
async def cluster() -> AsyncIterator[Shards]:
    cluster = Shards(DIM, SHARDS)
    await cluster.start()
    yield cluster
    await cluster.stop()


@pytest.fixture
async def sharded(cluster: Shards) -> AsyncIterator[ShardedSearcher]:
    searcher = ShardedSearcher(cluster.addresses, "m")
    yield searcher
    await searcher.close()


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    async with silent_server() as address:
        yield address


def nearest(query: np.ndarray, k: int) -> list[str]:
    """By the definition, in double precision."""
    return [f"n{row}" for row in np.argsort(-(VECTORS.astype(np.float64) @ query.astype(np.float64)))[:k]]


async def test_three_shards_return_the_hits_of_one_big_index(cluster, sharded):
    big = VectorIndex(DIM, "m")
    for row, vector in enumerate(VECTORS):
        cluster.put(f"n{row}", 1, vector)
        big.apply([Change("0-1", f"n{row}", 1, "m", vector)])
    cluster.indexes[1].compact()

    for query, expected in zip(QUERIES, neighbors(big, QUERIES, 20), strict=True):
        found = await sharded.search(query, 20, timeout_s=5)
        assert [neighbor.id for neighbor in found.neighbors] == [neighbor.id for neighbor in expected]


async def test_a_shard_that_comes_back_is_asked_again(cluster, sharded, caplog):
    address = cluster.addresses[1]
    await cluster.servers[1].close()
    for _ in range(3):
        assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).shards_ok == SHARDS - 1
    cluster.servers[1] = await serving(cluster.indexes[1], 1, address)

    assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).shards_ok == SHARDS
    assert [record.message for record in caplog.records].count("shard_lost") == 1


@pytest.mark.parametrize("other", ["dead", "silent", "of another model"])
async def test_any_replica_responds_for_its_shard_and_a_failed_one_is_avoided(cluster, silent, other, caplog):
    cluster.put("a", 1, VECTORS[0])
    foreign = await serving(VectorIndex(DIM, "another"), 0)
    bad = {"dead": "127.0.0.1:1", "silent": silent, "of another model": foreign.address}[other]
    searcher = ShardedSearcher([f"{bad}, {address}" for address in cluster.addresses], "m")

    with caplog.at_level("INFO"):
        for _ in range(3):
            found = await searcher.search(VECTORS[0], 5, timeout_s=4)
            assert found.shards_ok == SHARDS
            assert [neighbor.id for neighbor in found.neighbors] == ["a"]
        assert await searcher.lookup("a", timeout_s=4) is not None

    assert {record.message for record in caplog.records} == {"replica_failed"}
    await searcher.close()
    await foreign.close()


@pytest.mark.parametrize("trouble", ["hangs", "refuses"])
async def test_other_replicas_respond_for_one_that_no_longer_does(cluster, trouble, caplog, monkeypatch):
    monkeypatch.setattr("indexer.serving.client.COOLDOWN_S", 60.0)
    cluster.put("a", 1, VECTORS[0])
    well, calls = asyncio.Event(), []
    well.set()

    async def search(params: dict[str, Any]) -> dict[str, Any]:
        calls.append(params)
        if not well.is_set() and trouble == "refuses":
            raise RpcRefused("not today")
        await well.wait()
        return {"hits": [(["a"], [1.0])] * len(params["queries"]), "generation": 0}

    moody = await serve("127.0.0.1:0", {"search": search})
    searcher = ShardedSearcher([f"{moody.address},{address}" for address in cluster.addresses], "m")
    for _ in range(4):
        assert (await searcher.search(VECTORS[0], 5, timeout_s=4)).shards_ok == SHARDS
    well.clear()
    asked = len(calls)

    with caplog.at_level("INFO"):
        for _ in range(4):
            found = await searcher.search(VECTORS[0], 5, timeout_s=1.0)
            assert (found.shards_ok, found.neighbors[0].id) == (SHARDS, "a")

    assert len(calls) - asked == SHARDS  # once for each shard, and then it is avoided
    assert {record.message for record in caplog.records} == {"replica_failed"}
    await searcher.close()
    await moody.close()


async def test_replicas_take_turns(cluster):
    cluster.indexes[0].apply([Change("0-1", "zero", 1, "m", VECTORS[0])])
    cluster.indexes[1].apply([Change("0-1", "one", 1, "m", VECTORS[0])])
    searcher = ShardedSearcher([",".join(cluster.addresses[:2])], "m")

    ids = [(await searcher.search(VECTORS[0], 1, timeout_s=5)).neighbors[0].id for _ in range(6)]

    assert sorted(ids) == ["one"] * 3 + ["zero"] * 3
    await searcher.close()


async def test_a_replica_that_is_back_gets_its_turns_again(cluster, monkeypatch):
    monkeypatch.setattr("indexer.serving.client.COOLDOWN_S", 0.05)
    for version, index in enumerate(cluster.indexes[:2]):
        index.apply([Change("0-1", "a", 1 + version, "m", VECTORS[0])])
    searcher = ShardedSearcher([",".join(cluster.addresses[:2])], "m")
    address = cluster.addresses[0]
    await cluster.servers[0].close()
    assert {(await searcher.lookup("a", timeout_s=5)).version for _ in range(4)} == {2}

    cluster.servers[0] = await serving(cluster.indexes[0], 0, address)
    await asyncio.sleep(0.06)

    assert {(await searcher.lookup("a", timeout_s=5)).version for _ in range(4)} == {1, 2}
    await searcher.close()


async def test_a_shard_without_replicas_is_left_out_until_one_is_back(cluster):
    address = cluster.addresses[0]
    searcher = ShardedSearcher([f"127.0.0.1:1,{address}", cluster.addresses[1]], "m")
    await cluster.servers[0].close()
    assert (await searcher.search(VECTORS[0], 5, timeout_s=5)).shards_ok == 1
    cluster.servers[0] = await serving(cluster.indexes[0], 0, address)

    assert (await searcher.search(VECTORS[0], 5, timeout_s=5)).shards_ok == 2
    await searcher.close()


async def test_searches_that_together_outgrow_a_frame_travel_in_several(cluster, sharded):
    for row, vector in enumerate(VECTORS):
        cluster.put(f"n{row}", 1, vector)
    excluded = [f"{'x' * 120}{number}" for number in range(15_000)]
    searches = [sharded.search(query, 7, excluded, timeout_s=10) for query in QUERIES[:6]]

    found = await asyncio.gather(*searches)

    for query, result in zip(QUERIES, found, strict=False):
        assert [near.score for near in result.neighbors] == pytest.approx(sorted(VECTORS @ query)[:-8:-1], abs=1e-5)


async def test_shards_of_another_model_do_not_respond(cluster):
    searcher = ShardedSearcher(cluster.addresses, "another")

    assert (await searcher.search(VECTORS[0], 5, timeout_s=5)).shards_ok == 0
    with pytest.raises(ShardUnavailable):
        await searcher.lookup("n0", timeout_s=5)
    await searcher.close()


async def test_indexes_of_two_models_are_searched_side_by_side(cluster, sharded):
    other = sharded.of("n")
    for number, server in enumerate(cluster.servers):
        index = VectorIndex(DIM, "n")
        server.add(index, cursor=lambda: "0-1")
        for row in range(ROWS):
            if shard_of(f"n{row}", SHARDS) == number:
                index.apply([Change("0-1", f"n{row}", 1, "n", -VECTORS[row])])
    for row, vector in enumerate(VECTORS):
        cluster.put(f"n{row}", 1, vector)

    for query in QUERIES:
        expected = nearest(query, 5), nearest(-query, 5)
        found = [await searcher.search(query, 5, timeout_s=5) for searcher in (sharded, other)]
        assert tuple([neighbor.id for neighbor in one.neighbors] for one in found) == expected
    indexed = await other.lookup("n7", timeout_s=5)
    assert np.allclose(indexed.vector, -VECTORS[7], atol=1e-6)
    assert {state.fingerprint for state in await other.status(timeout_s=5)} == {"n"}

    cluster.servers[0].remove("n")
    assert (await other.search(QUERIES[0], 5, timeout_s=5)).shards_ok == SHARDS - 1
    assert (await sharded.search(QUERIES[0], 5, timeout_s=5)).shards_ok == SHARDS


async def test_missing_notes_are_those_of_the_worst_replica_of_each_shard(cluster, sharded):
    replica = VectorIndex(DIM, "m"), VectorIndex(DIM, "n")
    replica_server = await serve_shard("127.0.0.1:0", shard=0)
    for index in replica:
        replica_server.add(index, cursor=lambda: "0-1")
    ids = [next(f"{shard}-{at}" for at in range(100) if shard_of(f"{shard}-{at}", SHARDS) == shard) for shard in (0, 1)]
    for id_ in ids:
        cluster.put(id_, 1, VECTORS[0])
    for server in cluster.servers:
        server.add(VectorIndex(DIM, "n"), cursor=lambda: "0-1")
    replica[0].apply([Change("0-1", f"{ids[0]}{more}", 1, "m", VECTORS[0]) for more in "ab"])
    shards = [f"{cluster.addresses[0]},{replica_server.address},127.0.0.1:1", *cluster.addresses[1:]]
    searcher = ShardedSearcher(shards, "n")

    missing = await searcher.missing("m", timeout_s=5)
    assert (missing.count, sorted(missing.ids)) == (3, sorted([f"{ids[0]}a", f"{ids[0]}b", ids[1]]))
    assert (await sharded.missing("n", timeout_s=5)).count == 0

    cluster.servers[2].remove("n")
    with pytest.raises(ShardUnavailable, match="shard 2"):
        await searcher.missing("m", timeout_s=5)
    await searcher.close()
    await replica_server.close()


async def test_the_generation_is_the_lowest_of_the_responding_shards(cluster, sharded):
    cluster.indexes[0].compact()
    cluster.indexes[1].compact()
    assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).generation == 0

    cluster.indexes[2].compact()
    assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).generation == 1


def test_merging_takes_an_id_once_with_its_best_score_and_breaks_ties_by_id():
    merged = merge([(["a", "b", "c"], [0.9, 0.5, 0.4]), (["b", "d"], [0.7, 0.4])], 4)

    assert merged == Hits(["a", "b", "c", "d"], [0.9, 0.7, 0.4, 0.4])
