"""The pool of workers over real sockets, against workers that answer, refuse, lie or are not there."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.rpc.frames import RpcRefused
from indexer.rpc.server import serve
from model.backend import Scored
from model.note import Note
from service.errors import WorkerUnavailable
from service.recommend.workers import WorkerPool
from service.store.records import pack_vector

DRAFT = Note("", "harbor", "content", ("sea",))
ANSWER = {"vector": pack_vector(np.float32([0.6, 0.8])), "hashtags": [("tram", 0.5)], "category": ("Travel", 0.9)}
T = 5.0


class Workers:
    """Starts workers that answer drafts with what they are given."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[Any] = []
        self.drafts: list[tuple[int, Mapping[str, Any]]] = []  # which worker got which

    async def start(self, answer: Any = ANSWER, fingerprint: str = "m") -> str:
        number = len(self._servers)

        async def draft(params: dict[str, Any]) -> dict[str, Any]:
            self.drafts.append((number, params))
            if isinstance(answer, Exception):
                raise answer
            return await answer() if callable(answer) else answer

        async def ping(params: dict[str, Any]) -> dict[str, Any]:
            return {"fingerprint": fingerprint}

        address = str(self._folder / f"w{number}")
        self._servers.append(await serve(address, {"draft": draft, "embed": draft, "ping": ping}))
        return address

    async def close(self) -> None:
        for server in self._servers:
            await server.close()


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    await workers.close()


async def test_a_draft_goes_out_whole_and_comes_back_as_a_prediction(workers):
    pool = WorkerPool([await workers.start()], "m")

    prediction = await pool.predict(DRAFT, 7, timeout_s=T)

    assert prediction.vector.tolist() == pytest.approx([0.6, 0.8])
    assert prediction.hashtags == (Scored("tram", 0.5),)
    assert prediction.category == Scored("Travel", 0.9)
    [(_, params)] = workers.drafts
    assert 0 < params.pop("timeout_s") <= T
    assert params == {
        "title": "harbor",
        "content": "content",
        "hashtags": ["sea"],
        "max_hashtags": 7,
        "fingerprint": "m",
    }
    await pool.close()


@pytest.mark.parametrize(
    "bad",
    [
        RpcRefused("busy"),
        {},
        ANSWER | {"vector": b""},
        ANSWER | {"vector": None},
        ANSWER | {"hashtags": None},
        ANSWER | {"hashtags": ["tram"]},
        ANSWER | {"category": "Travel"},
    ],
)
async def test_a_worker_that_refuses_or_sends_no_prediction_is_followed_by_the_next(workers, bad):
    addresses = [await workers.start(bad), await workers.start(bad), await workers.start(ANSWER | {"category": None})]
    pool = WorkerPool(addresses, "m")

    predictions = [await pool.predict(DRAFT, 1, timeout_s=T) for _ in range(3)]

    assert [prediction.category for prediction in predictions] == [None] * 3
    await pool.close()


EMBEDDED = [(pack_vector(np.float32([0.6, 0.8])), 4), (pack_vector(np.float32([1, 0])), 2)]


async def test_texts_go_out_whole_and_come_back_as_embeddings(workers):
    pool = WorkerPool([await workers.start({"embeddings": EMBEDDED})], "m")

    first, second = await pool.embed([DRAFT, Note("", content="text")], timeout_s=T)

    assert (first.vector.tolist(), first.tokens) == (pytest.approx([0.6, 0.8]), 4)
    assert (second.vector.tolist(), second.tokens) == ([1, 0], 2)
    [(_, params)] = workers.drafts
    assert 0 < params.pop("timeout_s") <= T
    assert params == {"notes": [["harbor", "content", ["sea"]], ["", "text", []]], "fingerprint": "m"}
    await pool.close()


@pytest.mark.parametrize(
    "bad",
    [
        RpcRefused("busy"),
        {},
        {"embeddings": None},
        {"embeddings": EMBEDDED[:1]},
        {"embeddings": [EMBEDDED[0], (b"", 1)]},
        {"embeddings": [EMBEDDED[0], (EMBEDDED[0][0], None)]},
    ],
)
async def test_a_worker_that_refuses_texts_or_sends_no_embeddings_is_followed_by_the_next(workers, bad):
    pool = WorkerPool([await workers.start(bad), await workers.start({"embeddings": EMBEDDED})], "m")
    for _ in range(3):
        assert [embedding.tokens for embedding in await pool.embed([DRAFT, DRAFT], timeout_s=T)] == [4, 2]
    await pool.close()

    pool = WorkerPool([await workers.start(bad)], "m")
    with pytest.raises(WorkerUnavailable):
        await pool.embed([DRAFT] * 40, timeout_s=T)
    await pool.close()


async def test_without_any_worker_that_answers_there_is_no_prediction(workers, tmp_path):
    for addresses in ([], [str(tmp_path / "nowhere")], [await workers.start(RpcRefused("busy"))]):
        pool = WorkerPool(addresses, "m")
        with pytest.raises(WorkerUnavailable):
            await pool.predict(DRAFT, 1, timeout_s=T)
        await pool.close()


async def test_a_worker_that_hangs_costs_the_whole_time_and_no_second_one_is_asked(workers):
    never = asyncio.Event().wait
    pool = WorkerPool([await workers.start(never), await workers.start(never)], "m")

    with pytest.raises(WorkerUnavailable):
        await pool.predict(DRAFT, 1, timeout_s=0.1)

    assert len(workers.drafts) == 1
    await pool.close()


async def test_the_worker_with_fewer_drafts_is_asked_first(workers):
    go = asyncio.Event()

    async def slow() -> dict[str, Any]:
        await go.wait()
        return ANSWER

    pool = WorkerPool([await workers.start(slow) for _ in range(3)], "m")
    calls = []
    for count in range(1, 7):
        calls.append(asyncio.create_task(pool.predict(DRAFT, 1, timeout_s=T)))
        while len(workers.drafts) < count:
            await asyncio.sleep(0.001)
    go.set()
    await asyncio.gather(*calls)

    assert sorted(number for number, _ in workers.drafts[:3]) == [0, 1, 2]
    assert sorted(number for number, _ in workers.drafts[3:]) == [0, 1, 2]
    await pool.close()


async def test_a_worker_that_reported_another_model_gets_no_drafts(workers, tmp_path):
    addresses = [
        await workers.start(fingerprint="old"),
        await workers.start(fingerprint="m"),
        str(tmp_path / "nowhere"),
    ]
    pool = WorkerPool(addresses, "m")

    assert await pool.ready(timeout_s=T)
    for _ in range(5):
        await pool.predict(DRAFT, 1, timeout_s=T)

    assert {number for number, _ in workers.drafts} == {1}
    other = pool.of("old")
    await other.predict(DRAFT, 1, timeout_s=T)
    assert (workers.drafts[-1][0], workers.drafts[-1][1]["fingerprint"]) == (0, "old")
    assert await other.ready(timeout_s=T)
    assert not await pool.of("never").ready(timeout_s=T)
    await pool.close()
