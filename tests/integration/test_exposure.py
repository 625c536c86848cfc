"""Exposure by itself: from events to filters and answers, in a real store and a real index."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.redis import RedisServer

from indexer.filters.expression import Ordered
from indexer.index import VectorIndex
from indexer.types import Query
from model.inference.hashing import DIM, text_vector
from model.note import Note
from service.store.attribution.exposure import Exposure
from service.store.changes import RedisChangeStream
from service.store.connection import open_sync_redis
from service.store.events import RedisEvents
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import Event, StoredNote, StoredPrediction
from service.store.schema import EMBEDDINGS, EXPOSED, EXPOSURE

MODEL = "m"


@pytest.fixture
def client(redis_server: RedisServer, redis: Redis) -> Iterator[SyncRedis]:
    with open_sync_redis(redis_server.url) as client:
        yield client


class Shown:
    """A store, an index that follows it, and events."""

    def __init__(self, redis: Redis, client: SyncRedis) -> None:
        self.redis = redis
        self.store = RedisStore(redis, 1000)
        self.events = RedisEvents(redis)
        self.stream = RedisChangeStream(client, MODEL)
        self.index = VectorIndex(DIM, MODEL)
        self.cursor = "0-0"
        self.sent = 0

    async def put(self, *notes: Note) -> None:
        await self.store.put([StoredNote(note, 0) for note in notes])
        queue = JobQueue(self.redis, "w", MODEL, DIM)
        await queue.open()
        claimed = await queue.claim(100, 0.01)
        vectors = [text_vector(item.job.note_id) for item in claimed]
        said = [
            StoredPrediction(item.job.version, MODEL, vector, (), None)
            for item, vector in zip(claimed, vectors, strict=True)
        ]
        await queue.publish(list(zip(claimed, said, strict=True)))

    async def show(self, note_id: str, times: int = 1, kind: str = "impression", answer_id: str | None = None) -> None:
        start, self.sent = self.sent, self.sent + times
        sent = [
            Event(f"e{n}", f"u{n}", note_id, kind, time.time(), None, None, answer_id) for n in range(start, self.sent)
        ]
        await self.events.append(sent)
        await self.events.append(sent)

    async def follow(self) -> int:
        """Announce, and apply the changes to the index; how many of them had an effect."""
        await Exposure(self.redis)()
        changes = self.stream.read(self.cursor, 1000, 0)
        self.cursor = changes[-1].cursor if changes else self.cursor
        return self.index.apply(changes).applied

    def found(self, index: VectorIndex, least: float) -> set[str]:
        query = Query(text_vector("n1"), 10, filter=Ordered("exposure", ">=", least))
        return set(index.search([query])[0].ids)


@pytest.fixture
async def shown(redis, client) -> Shown:
    shown = Shown(redis, client)
    await shown.put(*(Note(f"n{number}", "a") for number in range(4)), Note("given", "a", exposure=2))
    await shown.follow()
    return shown


async def test_impressions_and_views_count_once_each_in_answers_and_in_filters(shown):
    await shown.show("n1", 3)
    await shown.show("n1", 2, "view")
    await shown.show("n1", 4, "click")
    await shown.show("n2", answer_id="0123456789abcdef.t.m")  # of hashtags
    await shown.show("n2", answer_id="0123456789abcdef.r.m")
    await shown.show("never", 3)
    assert shown.found(shown.index, 1) == {"given"}

    assert await shown.follow() == 2

    assert [record.exposure for record in await shown.store.get(["n1", "n2", "n3", "given"])] == [5, 1, 0, 2]
    assert [record.exposure for record in (await shown.store.page("", 9)).records] == [2, 0, 5, 1, 0]
    assert [record.exposure for record in (await shown.store.view(["n1"], None)).records] == [5]
    assert shown.found(shown.index, 1) == {"n1", "n2", "given"}
    assert shown.found(shown.index, 5) == {"n1"}
    assert await shown.redis.hkeys(EXPOSURE) == [b"n1", b"n2"]
    lookup = shown.index.lookup("n1")
    assert lookup.version == 1
    np.testing.assert_allclose(lookup.vector, text_vector("n1"), atol=1e-6)


async def test_a_hot_note_is_one_change_and_of_many_those_that_grew_most_go_first(shown, monkeypatch):
    await shown.show("n1", 50)
    before = await shown.redis.xlen(EMBEDDINGS)
    await shown.follow()
    assert await shown.redis.xlen(EMBEDDINGS) == before + 1
    await shown.show("n1", 3)
    await shown.show("n2", 2)
    monkeypatch.setattr("service.store.attribution.exposure.PUBLISHED", 1)

    await shown.follow()
    assert (shown.found(shown.index, 2), shown.found(shown.index, 53)) == ({"n1", "n2", "given"}, set())
    await shown.follow()
    assert shown.found(shown.index, 53) == {"n1"}
    assert await shown.follow() == 0


async def test_caches_hear_of_it_and_no_version_changes(shown):
    view = await shown.store.view([], (await shown.store.view([], None)).cursor)
    await shown.show("n1")
    await shown.follow()

    assert (await shown.store.view([], view.cursor)).written == ["n1"]
    assert [record.version for record in await shown.store.get(["n1"])] == [1]
    assert await shown.store.put([StoredNote(Note("n1", "a"), 0)]) == [1]


async def test_what_a_client_gives_holds_until_it_is_taken_back(shown):
    await shown.show("given", 7)
    await shown.follow()
    assert [record.exposure for record in await shown.store.get(["given"])] == [2]
    assert shown.found(shown.index, 3) == set()

    await shown.put(Note("given", "a"))
    await shown.follow()

    assert [record.exposure for record in await shown.store.get(["given"])] == [7]
    assert shown.found(shown.index, 3) == {"given"}


async def test_an_edit_a_rebuild_and_a_delete_keep_to_it(shown):
    await shown.show("n1", 6)
    await shown.show("n2", 6)
    await shown.put(Note("n1", "another text"))
    await shown.follow()
    assert shown.found(shown.index, 6) == {"n1", "n2"}
    assert shown.index.lookup("n1").version == 2

    rebuilt = shown.index.empty_like()
    rebuilt.apply(list(shown.stream.everything()[1]))
    assert shown.found(rebuilt, 6) == {"n1", "n2"}

    await shown.show("n1")
    await shown.store.delete("n1")
    await shown.put(Note("n1", "a third"))
    await shown.follow()
    assert shown.found(shown.index, 1) == {"n2", "given"}
    assert await shown.redis.zcard(EXPOSED) == 0


async def test_an_older_change_and_one_of_a_note_that_is_not_there_have_no_effect(shown):
    await shown.show("n1")
    await shown.follow()
    changes = shown.stream.read("0-0", 1000, 0)
    [refresh] = [change for change in changes if change.keeps_vector]
    await shown.put(Note("n1", "newer"))
    await shown.follow()

    assert shown.index.apply([refresh]).stale == 1
    assert VectorIndex(DIM, MODEL).apply([refresh]).stale == 1
    assert shown.found(shown.index, 1) == {"n1", "given"}
