"""One shard's server, to a caller that may send anything."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from indexer.index import VectorIndex
from indexer.rpc.client import RpcClient
from indexer.rpc.frames import RpcRefused
from indexer.serving.server import serve_shard
from indexer.types import Change

DIM = 4
EAST = np.array([1, 0, 0, 0], dtype=np.float32)


@pytest.fixture
async def client() -> AsyncIterator[RpcClient]:
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", "a", 3, "m", EAST), Change("0-0", "b", 1, "m", -EAST)])
    server = await serve_shard("127.0.0.1:0", shard=2)
    server.add(index, cursor=lambda: "5-1", recall=lambda: 0.97)
    client = RpcClient(server.address)
    yield client
    await client.close()
    await server.close()


QUERY = {"vector": EAST.tobytes(), "k": 5, "exclude": [], "filter": None}


def search(*queries: dict[str, object]) -> dict[str, object]:
    return {"queries": [list(query.values()) for query in queries or [QUERY]], "fingerprint": "m"}


async def test_a_call_returns_ids_and_scores_of_each_of_its_searches(client):
    result = await client.call("search", search(QUERY, QUERY | {"k": 1, "exclude": ["a"]}), timeout_s=5)

    assert result == {"hits": [[["a", "b"], [1.0, -1.0]], [["b"], [-1.0]]], "generation": 0}


async def test_a_lookup_returns_version_and_vector_or_nothing(client):
    indexed = await client.call("lookup", {"id": "a", "fingerprint": "m"}, timeout_s=5)

    assert indexed == {"version": 3, "vector": EAST.tobytes()}
    assert await client.call("lookup", {"id": "never seen", "fingerprint": "m"}, timeout_s=5) == {}


async def test_status_reports_the_rows_and_the_cursor_of_the_shard(client):
    assert await client.call("status", {"fingerprint": "m"}, timeout_s=5) == {
        "shard": 2,
        "notes": 2,
        "generation": 0,
        "recipe": "flat",
        "fingerprint": "m",
        "cursor": "5-1",
        "recall": 0.97,
        "delta": 2,
    }


@pytest.mark.parametrize("fingerprint", ["other", None, ["m"]])
@pytest.mark.parametrize("method", ["search", "lookup", "status", "missing"])
async def test_a_call_for_another_model_is_refused(client, method, fingerprint):
    with pytest.raises(RpcRefused, match="another model"):
        await client.call(method, search() | {"fingerprint": fingerprint, "id": "a"}, timeout_s=5)


@pytest.mark.parametrize(
    "changed",
    [
        {"k": 0},
        {"k": "5"},
        {"k": None},
        {"k": True},
        {"k": 2.5},
        {"k": 1_000_000},
        {"exclude": [["a"]]},
        {"filter": "price <"},
        {"filter": 5},
        {"filter": ["<", "price", "a"]},
        {"exclude": None},
        {"vector": b""},
        {"vector": b"\0\0\0"},
        {"vector": b"\xff" * 4 * DIM},
        {"vector": b"\0" * 4 * DIM},
        {"vector": [1.0, 0.0, 0.0, 0.0]},
        {"vector": None},
    ],
)
async def test_a_search_that_makes_no_sense_is_refused_and_the_next_one_runs(client, changed):
    with pytest.raises(RpcRefused, match="bad search"):
        await client.call("search", search(QUERY | changed), timeout_s=5)

    assert (await client.call("search", search(), timeout_s=5))["hits"] == [[["a", "b"], [1.0, -1.0]]]


@pytest.mark.parametrize("queries", [None, 5, [5], [[]], [[EAST.tobytes(), 5]]])
async def test_a_malformed_search_is_refused(client, queries):
    with pytest.raises(RpcRefused, match="bad search"):
        await client.call("search", {"queries": queries, "fingerprint": "m"}, timeout_s=5)


@pytest.mark.parametrize("ids", [None, "ab", [1], ["a", 1]])
async def test_vectors_of_malformed_ids_are_refused(client, ids):
    with pytest.raises(RpcRefused, match="list of text"):
        await client.call("vectors", {"ids": ids, "fingerprint": "m"}, timeout_s=5)
