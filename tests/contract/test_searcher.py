"""The contract of every `Searcher`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np
import pytest
from support.index import Shards, silent_server

from indexer.filters.expression import And, Not, OneOf
from indexer.filters.parser import parse
from indexer.serving.client import ShardedSearcher
from indexer.serving.memory import MemorySearcher
from indexer.types import IndexedVector, Searcher, ShardUnavailable

SHARDS = 3
DIM = 16
ROWS = 300
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = VECTORS[:20] + 0.3 * VECTORS[20:40]
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


@dataclass
class Subject:
    """A searcher, changes of its shards, and failures of the shard of an id."""

    searcher: Searcher
    shard_of: Callable[[str], int]
    put: Callable[..., None]
    remove: Callable[[str], None]
    lose: Callable[[str], Awaitable[None]]
    silence: Callable[[str], Awaitable[None]]


def in_memory() -> Subject:
    memory = MemorySearcher(SHARDS)

    async def lose(id_: str) -> None:
        memory.down.add(memory.shard_of(id_))

    async def silence(id_: str) -> None:
        memory.silent.add(memory.shard_of(id_))

    return Subject(memory, memory.shard_of, memory.put, memory.remove, lose, silence)


async def sharded(stack: AsyncExitStack) -> Subject:
    cluster = Shards(DIM, SHARDS)
    await cluster.start()
    stack.push_async_callback(cluster.stop)
    searcher = ShardedSearcher(cluster.addresses, "m")
    stack.push_async_callback(searcher.close)

    async def lose(id_: str) -> None:
        await cluster.servers[cluster.shard_of(id_)].close()

    async def silence(id_: str) -> None:
        await lose(id_)
        await stack.enter_async_context(silent_server(cluster.addresses[cluster.shard_of(id_)]))

    return Subject(searcher, cluster.shard_of, cluster.put, cluster.remove, lose, silence)


@pytest.fixture(params=["memory", "sharded"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        yield in_memory() if request.param == "memory" else await sharded(stack)


def filled(subject: Subject) -> Searcher:
    for row, vector in enumerate(VECTORS):
        subject.put(f"n{row}", 1, vector)
    return subject.searcher


def nearest(query: np.ndarray, rows: Sequence[int], k: int) -> list[str]:
    """By the definition, in double precision."""
    cosines = VECTORS[rows].astype(np.float64) @ query.astype(np.float64)
    return [f"n{rows[place]}" for place in np.argsort(-cosines)[:k]]


async def test_a_search_of_an_empty_index_finds_nothing(subject):
    found = await subject.searcher.search(VECTORS[0], 5, timeout_s=5)

    assert found.neighbors == []
    assert found.shards_ok == found.shards_total == SHARDS


async def test_the_k_nearest_of_all_shards_stand_closest_first(subject):
    searcher = filled(subject)

    for query in QUERIES:
        found = await searcher.search(query, 10, timeout_s=5)

        assert found.hits.ids == nearest(query, range(ROWS), 10)
        assert found.hits.scores == pytest.approx(
            [float(query @ VECTORS[int(id_[1:])]) for id_ in found.hits.ids], abs=1e-5
        )


async def test_equal_scores_are_ordered_by_id_and_are_never_above_one(subject):
    for id_ in "cabed":
        subject.put(id_, 1, VECTORS[3])

    found = await subject.searcher.search(VECTORS[3], 5, timeout_s=5)

    assert found.hits.ids == ["a", "b", "c", "d", "e"]
    assert found.hits.scores == pytest.approx([1.0] * 5)
    assert max(found.hits.scores) <= 1.0


async def test_excluded_ids_make_room_for_the_next(subject):
    searcher = filled(subject)
    first = nearest(QUERIES[0], range(ROWS), 10)

    found = await searcher.search(QUERIES[0], 5, first[:5], timeout_s=5)

    assert found.hits.ids == first[5:]


async def test_only_ids_whose_fields_pass_the_filter_are_found(subject):
    for row, vector in enumerate(VECTORS):
        fields = {"category": "travel" if row % 3 else "baking", "price": float(row), "tags": (f"t{row % 5}", "all")}
        subject.put(f"n{row}", 1, vector, fields | ({"author": f"author {row % 7}"} if row % 7 else {}))
    filters = {
        'category = "travel"': lambda row: row % 3,
        'category != "travel" AND price >= 100': lambda row: not row % 3 and row >= 100,
        'NOT author IN ["author 1", "author 2"]': lambda row: row % 7 not in (1, 2),
        'author EXISTS AND tags = "t1" OR price IN [7, 8]': lambda row: (row % 7 and row % 5 == 1) or row in (7, 8),
        'category = "Travel"': lambda row: False,
    }

    for text, passes in filters.items():
        found = await subject.searcher.search(QUERIES[0], 10, filter=parse(text), timeout_s=5)
        assert found.hits.ids == nearest(QUERIES[0], [row for row in range(ROWS) if passes(row)], 10)


async def test_an_expression_that_a_program_joined_may_be_longer_than_a_users(subject):
    searcher = filled(subject)
    joined = And(tuple(Not(OneOf("author", ("é\n" * number,))) for number in range(1, 100)))

    found = await searcher.search(QUERIES[0], 10, filter=joined, timeout_s=5)

    assert found.hits.ids == nearest(QUERIES[0], range(ROWS), 10)


async def test_a_hidden_id_is_in_no_hits_until_it_is_shown_again_and_can_be_looked_up(subject):
    searcher = filled(subject)
    subject.put("n7", 2, VECTORS[7], {"city": "Kyoto"}, hidden=True)

    for filter_ in (None, parse('city = "Kyoto"'), parse("NOT city EXISTS"), parse("hidden = true")):
        found = await searcher.search(VECTORS[7], ROWS, filter=filter_, timeout_s=5)
        assert "n7" not in found.hits.ids
    assert (await searcher.lookup("n7", timeout_s=5)).version == 2
    assert set(await searcher.vectors(["n7"], timeout_s=5)) == {"n7"}
    assert sum(shard.notes for shard in await searcher.status(timeout_s=5)) == ROWS

    subject.put("n7", 3, VECTORS[7], {"city": "Kyoto"})
    found = await searcher.search(VECTORS[7], ROWS, filter=parse('city = "Kyoto"'), timeout_s=5)
    assert found.hits.ids == ["n7"]


async def test_a_search_for_more_than_there_is_finds_all_there_is(subject):
    subject.put("a", 1, VECTORS[0])
    subject.put("b", 1, VECTORS[1])

    found = await subject.searcher.search(VECTORS[0], 50, timeout_s=5)

    assert found.hits.ids == ["a", "b"]


async def test_many_searches_at_once_each_get_their_own_hits(subject):
    searcher = filled(subject)
    searches = [(query, k) for query in QUERIES for k in (1, 3, 20)]

    found = await asyncio.gather(*(searcher.search(query, k, [f"n{k}"], timeout_s=30) for query, k in searches))

    expected = [nearest(query, [row for row in range(ROWS) if row != k], k) for query, k in searches]
    assert [result.hits.ids for result in found] == expected


async def test_a_newer_vector_replaces_the_older_one(subject):
    searcher = filled(subject)
    subject.put("n7", 2, VECTORS[8])

    found = await searcher.search(VECTORS[8], 2, timeout_s=5)

    assert sorted(found.hits.ids) == ["n7", "n8"]
    assert (await searcher.lookup("n7", timeout_s=5)).version == 2


async def test_lookup_gives_version_and_vector_of_an_indexed_id_only(subject):
    searcher = filled(subject)
    subject.remove("n8")

    indexed = await searcher.lookup("n7", timeout_s=5)

    assert isinstance(indexed, IndexedVector)
    assert indexed.version == 1
    assert indexed.vector == pytest.approx(VECTORS[7], abs=1e-6)
    assert await searcher.lookup("n8", timeout_s=5) is None
    assert await searcher.lookup("never seen", timeout_s=5) is None


async def test_vectors_are_those_of_indexed_ids(subject):
    for number in range(6):
        subject.put(f"n{number}", 1, VECTORS[number])

    vectors = await subject.searcher.vectors(["n4", "never", "n1", "n4"], timeout_s=5)

    assert set(vectors) == {"n4", "n1"}
    assert np.array_equal(vectors["n4"], VECTORS[4])
    assert await subject.searcher.vectors([], timeout_s=5) == {}
    found = await subject.searcher.versions(["n4", "never", "n1", "n4"], timeout_s=5)
    assert found == {id_: (await subject.searcher.lookup(id_, timeout_s=5)).version for id_ in ("n4", "n1")}
    assert await subject.searcher.versions([], timeout_s=5) == {}


async def test_a_deleted_note_is_not_found(subject):
    searcher = filled(subject)
    subject.remove("n7")

    found = await searcher.search(VECTORS[7], ROWS, timeout_s=5)

    assert len(found.neighbors) == ROWS - 1
    assert "n7" not in found.hits.ids


async def test_a_shard_holds_a_note_until_it_is_deleted_and_a_lost_one_holds_none(subject):
    subject.put("a", 1, VECTORS[0])
    assert await subject.searcher.holds("a", timeout_s=5)
    assert not await subject.searcher.holds("b", timeout_s=5)
    subject.remove("a")
    assert not await subject.searcher.holds("a", timeout_s=5)
    subject.put("a", 3, VECTORS[0])
    await subject.lose("a")
    assert not await subject.searcher.holds("a", timeout_s=5)


async def test_status_names_every_shard_in_order(subject):
    searcher = filled(subject)

    status = await searcher.status(timeout_s=5)

    assert [shard.shard for shard in status] == list(range(SHARDS))
    assert [shard.notes for shard in status] == [
        sum(subject.shard_of(f"n{row}") == shard for row in range(ROWS)) for shard in range(SHARDS)
    ]


async def check_without_the_shard_of_n0(subject: Subject, searcher: Searcher, timeout_s: float) -> None:
    """Every call ends within the timeout, and the ids of the other shards are found."""
    left = [row for row in range(ROWS) if subject.shard_of(f"n{row}") != subject.shard_of("n0")]

    async with asyncio.timeout(timeout_s):
        found = await searcher.search(QUERIES[0], 10, timeout_s=timeout_s)
    assert (found.shards_ok, found.shards_total) == (SHARDS - 1, SHARDS)
    assert found.hits.ids == nearest(QUERIES[0], left, 10)
    async with asyncio.timeout(timeout_s):
        assert len(await searcher.status(timeout_s=timeout_s)) == SHARDS - 1
    async with asyncio.timeout(timeout_s):
        assert set(await searcher.vectors(["n0", f"n{left[0]}"], timeout_s=timeout_s)) == {f"n{left[0]}"}
    async with asyncio.timeout(timeout_s):
        assert set(await searcher.versions(["n0", f"n{left[0]}"], timeout_s=timeout_s)) == {f"n{left[0]}"}
    async with asyncio.timeout(timeout_s):
        with pytest.raises(ShardUnavailable):
            await searcher.lookup("n0", timeout_s=timeout_s)
    assert await searcher.lookup(f"n{left[0]}", timeout_s=timeout_s) is not None


async def test_without_a_lost_shard_searches_are_partial_and_its_ids_unavailable(subject):
    searcher = filled(subject)
    await searcher.search(VECTORS[0], 5, timeout_s=5)
    await subject.lose("n0")

    await check_without_the_shard_of_n0(subject, searcher, 5.0)


async def test_a_silent_shard_costs_no_more_than_the_timeout_and_searches_are_partial(subject):
    searcher = filled(subject)
    await searcher.search(VECTORS[0], 5, timeout_s=5)
    await subject.silence("n0")

    await check_without_the_shard_of_n0(subject, searcher, 1.0)


async def test_without_any_shard_the_result_is_empty(subject):
    searcher = filled(subject)
    for shard in range(SHARDS):
        await subject.lose(next(f"n{row}" for row in range(ROWS) if subject.shard_of(f"n{row}") == shard))

    found = await searcher.search(VECTORS[0], 5, timeout_s=5)

    assert (found.neighbors, found.shards_ok, found.shards_total) == ([], 0, SHARDS)
    assert await searcher.status(timeout_s=5) == []
