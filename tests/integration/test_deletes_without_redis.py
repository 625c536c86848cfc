"""A delete that was acknowledged, and Redis gone behind the answer: decision 057."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis
from support.redis import RedisServer

from indexer.serving.memory import MemorySearcher
from model.note import Note
from service.api.app import create_app
from service.recommend.memory import FINGERPRINT, WordDrafter, bag_of_words
from service.recommend.recommender import Recommender
from service.recommend.vocabulary import HashtagVocabulary
from service.setting_groups import HttpSettings, IndexSettings
from service.settings import Settings
from service.store.connection import open_redis
from service.store.events import RedisEvents
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.idempotency import RedisAnswers
from service.store.notes import RedisStore

NOTES = [Note(f"n{number}", "harbor") for number in range(12)]
SETTINGS = Settings(http=HttpSettings(related_s=0.4, write_s=0.8), index=IndexSettings(addresses=("shard0", "shard1")))


class Gateway:
    """One gateway's policy and HTTP over a real Redis; the index of all is one in memory."""

    def __init__(self, redis: Redis, searcher: MemorySearcher) -> None:
        store = RedisStore(redis, 1000)
        seams = store, RedisEvents(redis), HashtagVocabulary(RedisHashtags(redis), 1.0), searcher, WordDrafter()
        recommender = Recommender(*seams, SETTINGS, FINGERPRINT)
        app = create_app(lambda _: recommender, RedisAnswers(redis), SETTINGS)
        headers = {"Content-Type": "application/json"}
        transport = httpx.ASGITransport(app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    async def related(self, note_id: str) -> set[str]:
        answer = (await self.http.get(f"/notes/{note_id}/related?k=50")).json()
        return {item["note_id"] for item in answer["items"]}


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    if server.process:
        os.kill(server.process.pid, signal.SIGCONT)
    server.close()


@pytest.fixture
async def redis(server) -> AsyncIterator[Redis]:
    client = open_redis(server.url, timeout_s=0.3)
    yield client
    await client.aclose()


@pytest.fixture
async def searcher() -> MemorySearcher:
    """An index that follows nothing by itself."""
    searcher = MemorySearcher(fingerprint=FINGERPRINT)
    for note in NOTES:
        searcher.put(note.id, 1, bag_of_words(note))
    return searcher


async def fill(gateway: Gateway) -> None:
    for note in NOTES:
        assert (await gateway.http.put(f"/notes/{note.id}", json={"title": note.title})).is_success


@pytest.mark.parametrize("gone", ["stopped", "killed"])
async def test_what_a_gateway_deleted_it_does_not_show_while_redis_is_away(server, redis, searcher, gone):
    """Not even while the index still holds it; and the next one deletes when Redis is back."""
    gateway = Gateway(redis, searcher)
    await fill(gateway)
    for note in NOTES[1:5]:
        await gateway.related("n0")
        assert (await gateway.http.delete(f"/notes/{note.id}")).status_code == 204
        process = server.process
        if gone == "stopped":
            os.kill(process.pid, signal.SIGSTOP)
        else:
            server.kill()
        for origin in ("n0", "n11"):
            found = await gateway.related(origin)
            assert note.id not in found
            assert {"n9", "n10"} <= found
        answer = await gateway.http.get(f"/notes/{note.id}/related")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "note_not_found")
        if gone == "stopped":
            os.kill(process.pid, signal.SIGCONT)
        else:
            server.start()


async def test_what_another_gateway_wrote_or_deleted_is_left_out_once_it_was_heard_of(server, redis, searcher):
    one, other = Gateway(redis, searcher), Gateway(redis, searcher)
    await fill(one)
    await one.related("n0")
    await other.http.delete("/notes/n1")
    await one.related("n0")  # hears of it, and learns that it is deleted
    server.kill()
    assert "n1" not in await one.related("n0")


async def test_a_note_that_came_back_is_shown_again(server, redis, searcher):
    gateway = Gateway(redis, searcher)
    await fill(gateway)
    await gateway.http.delete("/notes/n1")
    await gateway.http.put("/notes/n1", json={"title": "harbor again"})
    searcher.put("n1", 3, bag_of_words(NOTES[1]))
    assert "n1" in await gateway.related("n0")
    server.kill()
    assert "n1" in await gateway.related("n0")


async def test_a_delete_is_acknowledged_when_the_index_has_it_or_a_moment_later(redis, searcher):
    """So that no gateway shows it, also one that started after Redis went away."""
    gateway = Gateway(redis, searcher)
    await fill(gateway)
    deleting = asyncio.create_task(gateway.http.delete("/notes/n1"))
    await asyncio.sleep(0.1)
    assert not deleting.done()
    searcher.remove("n1")
    assert (await deleting).status_code == 204
    begun = time.monotonic()
    assert (await gateway.http.delete("/notes/n2")).status_code == 204  # the index does not follow
    assert 0.2 < time.monotonic() - begun < 0.6
