"""What every `Searcher` promises, and what `ShardedSearcher` promises when shards fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from indexer.index import VectorIndex
from indexer.rpc.frames import RpcRefused
from indexer.rpc.server import serve
from indexer.serving.client import ShardedSearcher, merge
from indexer.serving.memory import MemorySearcher
from indexer.serving.server import ShardServer, serve_shard
from indexer.shards import shard_of
from indexer.types import Change, Hits, IndexedVector, Searcher, ShardUnavailable

SHARDS = 3
DIM = 16
ROWS = 300
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = VECTORS[:20] + 0.3 * VECTORS[20:40]
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


@dataclass
class Subject:
    """A searcher, and what its shards would do when the stream brings a change."""

    searcher: Searcher
    hold: Callable[[str, int, np.ndarray], None]
    forget: Callable[[str], None]
    lose: Callable[[str], Awaitable[None]]


async def serving(index: VectorIndex, shard: int, address: str = "127.0.0.1:0") -> ShardServer:
    """A shard's server that answers for one index."""
    server = await serve_shard(address, shard=shard)
    server.answer_for(index, cursor=lambda: "0-1")
    return server


class Cluster:
    """Real shard servers on free ports."""

    def __init__(self) -> None:
        self.indexes = [VectorIndex(DIM, "m") for _ in range(SHARDS)]
        self.servers: list[ShardServer] = []

    async def start(self) -> None:
        for number, index in enumerate(self.indexes):
            self.servers.append(await serving(index, number))

    async def stop(self) -> None:
        for server in self.servers:
            await server.close()

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def apply(self, change: Change) -> None:
        self.indexes[shard_of(change.id, SHARDS)].apply([change])

    def hold(self, id_: str, version: int, vector: np.ndarray) -> None:
        self.apply(Change("0-1", id_, version, "m", vector))

    def forget(self, id_: str) -> None:
        self.apply(Change("0-2", id_, 1000, "m", None))

    async def lose(self, id_: str) -> None:
        await self.servers[shard_of(id_, SHARDS)].close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    yield cluster
    await cluster.stop()


@pytest.fixture
async def sharded(cluster: Cluster) -> AsyncIterator[ShardedSearcher]:
    searcher = ShardedSearcher(cluster.addresses, "m")
    yield searcher
    await searcher.close()


@pytest.fixture(params=["memory", "sharded"])
async def subject(request: pytest.FixtureRequest, cluster: Cluster, sharded: ShardedSearcher) -> Subject:
    if request.param == "sharded":
        return Subject(sharded, cluster.hold, cluster.forget, cluster.lose)
    memory = MemorySearcher(SHARDS)

    async def lose(id_: str) -> None:
        memory.down.add(memory.shard_of(id_))

    return Subject(memory, memory.hold, memory.forget, lose)


def filled(subject: Subject) -> Searcher:
    for row, vector in enumerate(VECTORS):
        subject.hold(f"n{row}", 1, vector)
    return subject.searcher


def nearest(query: np.ndarray, rows: Sequence[int], k: int) -> list[str]:
    """By the definition, in double precision."""
    cosines = VECTORS[rows].astype(np.float64) @ query.astype(np.float64)
    return [f"n{rows[place]}" for place in np.argsort(-cosines)[:k]]


async def test_an_empty_index_answers_with_nothing(subject):
    found = await subject.searcher.search(VECTORS[0], 5, timeout_s=5)

    assert found.neighbors == []
    assert found.shards_ok == found.shards_total == SHARDS


async def test_the_k_nearest_of_all_shards_stand_closest_first(subject):
    searcher = filled(subject)

    for query in QUERIES:
        found = await searcher.search(query, 10, timeout_s=5)

        assert [neighbor.id for neighbor in found.neighbors] == nearest(query, range(ROWS), 10)
        assert [neighbor.score for neighbor in found.neighbors] == pytest.approx(
            [float(query @ VECTORS[int(neighbor.id[1:])]) for neighbor in found.neighbors], abs=1e-5
        )


async def test_excluded_ids_make_room_for_the_next(subject):
    searcher = filled(subject)
    first = nearest(QUERIES[0], range(ROWS), 10)

    found = await searcher.search(QUERIES[0], 5, first[:5], timeout_s=5)

    assert [neighbor.id for neighbor in found.neighbors] == first[5:]


async def test_more_than_there_is_gives_all_there_is(subject):
    subject.hold("a", 1, VECTORS[0])
    subject.hold("b", 1, VECTORS[1])

    found = await subject.searcher.search(VECTORS[0], 50, timeout_s=5)

    assert [neighbor.id for neighbor in found.neighbors] == ["a", "b"]


async def test_lookup_gives_version_and_vector_of_a_held_id_only(subject):
    searcher = filled(subject)
    subject.forget("n8")

    held = await searcher.lookup("n7", timeout_s=5)

    assert isinstance(held, IndexedVector)
    assert held.version == 1
    assert held.vector == pytest.approx(VECTORS[7], abs=1e-6)
    assert await searcher.lookup("n8", timeout_s=5) is None
    assert await searcher.lookup("never seen", timeout_s=5) is None


async def test_vectors_are_those_of_the_ids_that_are_held(subject):
    for number in range(6):
        subject.hold(f"n{number}", 1, VECTORS[number])

    vectors = await subject.searcher.vectors(["n4", "never", "n1"], timeout_s=5)

    assert set(vectors) == {"n4", "n1"}
    assert np.array_equal(vectors["n4"], VECTORS[4])
    assert await subject.searcher.vectors([], timeout_s=5) == {}


async def test_what_was_deleted_is_not_found(subject):
    searcher = filled(subject)
    subject.forget("n7")

    found = await searcher.search(VECTORS[7], ROWS, timeout_s=5)

    assert len(found.neighbors) == ROWS - 1
    assert "n7" not in {neighbor.id for neighbor in found.neighbors}


async def test_status_names_every_shard_in_order(subject):
    searcher = filled(subject)

    status = await searcher.status(timeout_s=5)

    assert [shard.shard for shard in status] == list(range(SHARDS))
    assert sum(shard.notes for shard in status) == ROWS


async def test_a_lost_shard_makes_answers_partial_and_its_own_ids_unavailable(subject):
    searcher = filled(subject)
    await searcher.search(VECTORS[0], 5, timeout_s=5)
    await subject.lose("n0")

    found = await searcher.search(VECTORS[0], 100, timeout_s=5)

    assert (found.shards_ok, found.shards_total) == (SHARDS - 1, SHARDS)
    assert len(found.neighbors) == 100
    assert "n0" not in {neighbor.id for neighbor in found.neighbors}
    assert len(await searcher.status(timeout_s=5)) == SHARDS - 1
    with pytest.raises(ShardUnavailable):
        await searcher.lookup("n0", timeout_s=5)


async def test_three_shards_answer_as_one_big_index_does(cluster, sharded):
    big = VectorIndex(DIM, "m")
    for row, vector in enumerate(VECTORS):
        cluster.hold(f"n{row}", 1, vector)
        big.apply([Change("0-1", f"n{row}", 1, "m", vector)])
    cluster.indexes[1].compact()

    for query, expected in zip(QUERIES, big.search(QUERIES, 20), strict=True):
        found = await sharded.search(query, 20, timeout_s=5)
        assert [neighbor.id for neighbor in found.neighbors] == [neighbor.id for neighbor in expected]


async def test_the_lost_shard_is_left_out_and_the_rest_is_exact(cluster, sharded):
    for row, vector in enumerate(VECTORS):
        cluster.hold(f"n{row}", 1, vector)
    await cluster.servers[1].close()
    left = [row for row in range(ROWS) if shard_of(f"n{row}", SHARDS) != 1]

    found = await sharded.search(QUERIES[0], 10, timeout_s=5)

    assert [neighbor.id for neighbor in found.neighbors] == nearest(QUERIES[0], left, 10)


async def test_without_any_shard_the_answer_is_empty_and_says_so(cluster, sharded):
    await cluster.stop()

    found = await sharded.search(VECTORS[0], 5, timeout_s=5)

    assert (found.neighbors, found.shards_ok, found.shards_total) == ([], 0, SHARDS)


async def test_a_shard_that_hangs_is_left_out_at_the_deadline(cluster):
    transports: list[asyncio.BaseTransport] = []

    hanging = await silent(transports)
    searcher = ShardedSearcher([cluster.addresses[0], f"127.0.0.1:{hanging.sockets[0].getsockname()[1]}"], "m")

    # The caller gives up where the searcher promised to have answered.
    async with asyncio.timeout(1.0):
        found = await searcher.search(VECTORS[0], 5, timeout_s=1.0)

    assert (found.shards_ok, found.shards_total) == (1, 2)
    await searcher.close()
    hanging.close()
    for transport in transports:
        transport.abort()


async def test_a_shard_that_comes_back_is_asked_again(cluster, sharded, caplog):
    address = cluster.addresses[1]
    await cluster.servers[1].close()
    for _ in range(3):
        assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).shards_ok == SHARDS - 1
    cluster.servers[1] = await serving(cluster.indexes[1], 1, address)

    assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).shards_ok == SHARDS
    assert [record.message for record in caplog.records].count("shard_lost") == 1


async def silent(transports: list[asyncio.BaseTransport]) -> asyncio.Server:
    """A server that takes connections and never says a word."""

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(transport)

    return await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0)


@pytest.mark.parametrize("other", ["dead", "hanging", "of another model"])
async def test_any_replica_answers_for_its_shard_and_one_that_failed_rests(cluster, other, caplog):
    cluster.hold("a", 1, VECTORS[0])
    transports: list[asyncio.BaseTransport] = []
    hanging = await silent(transports)
    foreign = await serving(VectorIndex(DIM, "another"), 0)
    bad = {
        "dead": "127.0.0.1:1",
        "hanging": f"127.0.0.1:{hanging.sockets[0].getsockname()[1]}",
        "of another model": foreign.address,
    }[other]
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
    hanging.close()
    for transport in transports:
        transport.abort()


@pytest.mark.parametrize("trouble", ["hangs", "refuses"])
async def test_a_replica_that_answered_and_then_does_not_is_stood_in_for(cluster, trouble, caplog, monkeypatch):
    monkeypatch.setattr("indexer.serving.client.REST_S", 60.0)
    cluster.hold("a", 1, VECTORS[0])
    well, calls = asyncio.Event(), []
    well.set()

    async def search(params: dict[str, Any]) -> dict[str, Any]:
        calls.append(params)
        if not well.is_set() and trouble == "refuses":
            raise RpcRefused("not today")
        await well.wait()
        return {"answers": [(["a"], [1.0])] * len(params["queries"]), "generation": 0}

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

    assert len(calls) - asked == SHARDS  # once for each shard, and then it rests
    assert {record.message for record in caplog.records} == {"replica_failed"}
    await searcher.close()
    await moody.close()


async def test_replicas_take_turns(cluster):
    cluster.indexes[0].apply([Change("0-1", "zero", 1, "m", VECTORS[0])])
    cluster.indexes[1].apply([Change("0-1", "one", 1, "m", VECTORS[0])])
    searcher = ShardedSearcher([",".join(cluster.addresses[:2])], "m")

    answers = [(await searcher.search(VECTORS[0], 1, timeout_s=5)).neighbors[0].id for _ in range(6)]

    assert sorted(answers) == ["one"] * 3 + ["zero"] * 3
    await searcher.close()


async def test_a_shard_without_any_replica_is_left_out_and_comes_back(cluster):
    address = cluster.addresses[0]
    searcher = ShardedSearcher([f"127.0.0.1:1,{address}", cluster.addresses[1]], "m")
    await cluster.servers[0].close()
    assert (await searcher.search(VECTORS[0], 5, timeout_s=5)).shards_ok == 1
    cluster.servers[0] = await serving(cluster.indexes[0], 0, address)

    assert (await searcher.search(VECTORS[0], 5, timeout_s=5)).shards_ok == 2
    await searcher.close()


async def test_only_notes_of_the_category_and_not_of_the_author_are_found(cluster, sharded):
    for row, vector in enumerate(VECTORS):
        category, author = "Travel" if row % 3 else "Baking", f"author {row % 7}"
        cluster.apply(Change("0-1", f"n{row}", 1, "m", vector, category, author))
    rows = [row for row in range(ROWS) if row % 3 and row % 7 != 2]

    for query in QUERIES:
        found = await sharded.search(query, 10, category="Travel", exclude_author="author 2", timeout_s=5)
        assert [neighbor.id for neighbor in found.neighbors] == nearest(query, rows, 10)


async def test_many_searches_at_once_each_get_their_own_answer(cluster, sharded):
    for row, vector in enumerate(VECTORS):
        cluster.hold(f"n{row}", 1, vector)

    found = await asyncio.gather(
        *(sharded.search(query, k, [f"n{k}"], timeout_s=30) for query in QUERIES for k in (1, 3, 20))
    )

    expected = [nearest(query, [row for row in range(ROWS) if row != k], k) for query in QUERIES for k in (1, 3, 20)]
    assert [[neighbor.id for neighbor in one.neighbors] for one in found] == expected


async def test_searches_that_together_outgrow_a_frame_travel_in_several(cluster, sharded):
    for row, vector in enumerate(VECTORS):
        cluster.hold(f"n{row}", 1, vector)
    excluded = [f"{'x' * 120}{number}" for number in range(15_000)]
    searches = [sharded.search(query, 7, excluded, timeout_s=10) for query in QUERIES[:6]]

    found = await asyncio.gather(*searches)

    for query, answer in zip(QUERIES, found, strict=False):
        assert [near.score for near in answer.neighbors] == pytest.approx(sorted(VECTORS @ query)[:-8:-1], abs=1e-5)


async def test_shards_of_another_model_do_not_answer(cluster):
    searcher = ShardedSearcher(cluster.addresses, "another")

    assert (await searcher.search(VECTORS[0], 5, timeout_s=5)).shards_ok == 0
    with pytest.raises(ShardUnavailable):
        await searcher.lookup("n0", timeout_s=5)
    await searcher.close()


async def test_indexes_of_two_models_answer_side_by_side_each_for_its_own(cluster, sharded):
    other = sharded.of("n")
    for number, server in enumerate(cluster.servers):
        index = VectorIndex(DIM, "n")
        server.answer_for(index, cursor=lambda: "0-1")
        for row in range(ROWS):
            if shard_of(f"n{row}", SHARDS) == number:
                index.apply([Change("0-1", f"n{row}", 1, "n", -VECTORS[row])])
    for row, vector in enumerate(VECTORS):
        cluster.hold(f"n{row}", 1, vector)

    for query in QUERIES:
        expected = nearest(query, range(ROWS), 5), nearest(-query, range(ROWS), 5)
        found = [await searcher.search(query, 5, timeout_s=5) for searcher in (sharded, other)]
        assert tuple([neighbor.id for neighbor in one.neighbors] for one in found) == expected
    held = await other.lookup("n7", timeout_s=5)
    assert np.allclose(held.vector, -VECTORS[7], atol=1e-6)
    assert {state.fingerprint for state in await other.status(timeout_s=5)} == {"n"}

    cluster.servers[0].forget("n")
    assert (await other.search(QUERIES[0], 5, timeout_s=5)).shards_ok == SHARDS - 1
    assert (await sharded.search(QUERIES[0], 5, timeout_s=5)).shards_ok == SHARDS


async def test_what_a_model_lacks_is_what_the_worst_replica_of_each_shard_lacks(cluster, sharded):
    replica = VectorIndex(DIM, "m"), VectorIndex(DIM, "n")
    beside = await serve_shard("127.0.0.1:0", shard=0)
    for index in replica:
        beside.answer_for(index, cursor=lambda: "0-1")
    ids = [next(f"{shard}-{at}" for at in range(100) if shard_of(f"{shard}-{at}", SHARDS) == shard) for shard in (0, 1)]
    for id_ in ids:
        cluster.hold(id_, 1, VECTORS[0])
    for server in cluster.servers:
        server.answer_for(VectorIndex(DIM, "n"), cursor=lambda: "0-1")
    replica[0].apply([Change("0-1", f"{ids[0]}{more}", 1, "m", VECTORS[0]) for more in "ab"])
    shards = [f"{cluster.addresses[0]},{beside.address},127.0.0.1:1", *cluster.addresses[1:]]
    searcher = ShardedSearcher(shards, "n")

    lacking = await searcher.lacks("m", timeout_s=5)
    assert (lacking.count, sorted(lacking.ids)) == (3, sorted([f"{ids[0]}a", f"{ids[0]}b", ids[1]]))
    assert (await sharded.lacks("n", timeout_s=5)).count == 0

    cluster.servers[2].forget("n")
    with pytest.raises(ShardUnavailable, match="shard 2"):
        await searcher.lacks("m", timeout_s=5)
    await searcher.close()
    await beside.close()


async def test_the_generation_is_the_lowest_of_the_shards_that_answer(cluster, sharded):
    cluster.indexes[0].compact()
    cluster.indexes[1].compact()
    assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).generation == 0

    cluster.indexes[2].compact()
    assert (await sharded.search(VECTORS[0], 5, timeout_s=5)).generation == 1


def test_merging_takes_an_id_once_with_its_best_score_and_breaks_ties_by_id():
    merged = merge([(["a", "b", "c"], [0.9, 0.5, 0.4]), (["b", "d"], [0.7, 0.4])], 4)

    assert merged == Hits(["a", "b", "c", "d"], [0.9, 0.7, 0.4, 0.4])
