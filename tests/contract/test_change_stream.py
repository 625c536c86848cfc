"""The contract of every `ChangeStream`, and of `RedisChangeStream` with the notes and the workers around it."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest
from redis.asyncio import Redis
from support.redis import RedisServer

from indexer.follow import ChangeStream
from indexer.memory import MemoryChangeStream
from indexer.types import Change
from model.note import Note
from service.store.changes import RedisChangeStream
from service.store.connection import open_sync_redis
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.schema import CURSORS, DEAD, EMBEDDINGS, READINGS

VECTOR = np.array([0.6, 0.8], dtype=np.float32)


class Community:
    """Notes in Redis and, where `read` was called, what a worker publishes of them."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.store = RedisStore(redis, 10_000)
        self.queue = JobQueue(redis, "w0", "m", 2)

    async def write(self, id_: str, title: str = "") -> int:
        [version] = await self.store.put([StoredNote(Note(id_, title or id_), 0)])
        return version

    async def read(self, vector: np.ndarray = VECTOR) -> None:
        """All that waits."""
        while claimed := await self.queue.claim(100, 0.01):
            await self.queue.publish(
                [(item, StoredPrediction(item.job.version, "m", vector, (), None)) for item in claimed]
            )


@pytest.fixture
async def community(redis: Redis) -> Community:
    community = Community(redis)
    await community.queue.open()
    return community


@pytest.fixture
def stream(redis: Redis, redis_server: RedisServer) -> Iterator[RedisChangeStream]:
    client = open_sync_redis(redis_server.url)
    yield RedisChangeStream(client, "m", "first")
    client.close()


@pytest.fixture
def second(redis: Redis, redis_server: RedisServer) -> Iterator[RedisChangeStream]:
    client = open_sync_redis(redis_server.url)
    yield RedisChangeStream(client, "m", "second")
    client.close()


def drained(stream: ChangeStream) -> tuple[str, dict[str, int]]:
    cursor, changes = stream.everything()
    return cursor, {change.id: change.version for change in changes}


class InMemory:
    """A `MemoryChangeStream`, and what writers do to it."""

    def __init__(self) -> None:
        self.stream = MemoryChangeStream()
        self.versions: dict[str, int] = {}

    async def put(self, id_: str) -> None:
        self._add(id_, VECTOR)

    async def delete(self, id_: str) -> None:
        self._add(id_, None)

    async def cut_before(self, cursor: str) -> None:
        self.stream.cut = int(cursor) - 1

    async def clear(self) -> None:
        self.stream.entries.clear()
        self.stream.cut = 0

    async def refusals(self) -> int:
        return len(self.stream.refused)

    def _add(self, id_: str, vector: np.ndarray | None) -> None:
        self.versions[id_] = self.versions.get(id_, 0) + 1
        self.stream.add(id_, self.versions[id_], vector)


class InRedis:
    """A `RedisChangeStream`, and what writers do to it."""

    def __init__(self, community: Community, stream: RedisChangeStream) -> None:
        self.community = community
        self.stream = stream
        self.writes = 0

    async def put(self, id_: str) -> None:
        self.writes += 1  # a note with the same title would stay as it is
        await self.community.write(id_, f"title {self.writes}")
        await self.community.read()

    async def delete(self, id_: str) -> None:
        await self.community.store.delete(id_)

    async def cut_before(self, cursor: str) -> None:
        await self.community.redis.xtrim(EMBEDDINGS, minid=cursor, approximate=False)

    async def clear(self) -> None:
        await self.community.redis.delete(EMBEDDINGS)

    async def refusals(self) -> int:
        return await self.community.redis.xlen(DEAD)


@pytest.fixture(params=["memory", "redis"])
def subject(request: pytest.FixtureRequest) -> InMemory | InRedis:
    if request.param == "memory":
        return InMemory()
    return InRedis(request.getfixturevalue("community"), request.getfixturevalue("stream"))


async def test_changes_are_read_after_a_cursor_in_order_and_no_more_than_the_limit(subject):
    for id_ in "abc":
        await subject.put(id_)
    await subject.delete("b")

    changes = subject.stream.read("0-0", 10, 0)

    assert [(change.id, change.version) for change in changes] == [("a", 1), ("b", 1), ("c", 1), ("b", 2)]
    assert [change.vector is None for change in changes] == [False, False, False, True]
    assert changes[0].fingerprint == "m"
    assert np.array_equal(changes[0].vector, VECTOR)
    assert [change.id for change in subject.stream.read("0-0", 2, 0)] == ["a", "b"]
    assert [change.id for change in subject.stream.read(changes[0].cursor, 2, 0)] == ["b", "c"]


async def test_at_the_end_of_the_stream_a_read_waits_no_longer_than_it_may(subject):
    await subject.put("a")
    end = subject.stream.read("0-0", 10, 0)[-1].cursor

    start_s = time.monotonic()
    assert subject.stream.read(end, 10, 0.02) == []
    assert time.monotonic() - start_s < 2

    await subject.put("b")
    assert [change.id for change in subject.stream.read(end, 10, 10)] == ["b"]


async def test_cursors_are_held_while_all_later_changes_can_be_read(subject):
    assert subject.stream.holds("0-0")
    for id_ in "abcd":
        await subject.put(id_)
    first, second, third, last = [change.cursor for change in subject.stream.read("0-0", 10, 0)]
    assert all(subject.stream.holds(cursor) for cursor in (first, second, third, last))

    await subject.cut_before(third)
    assert [subject.stream.holds(cursor) for cursor in (first, third, last)] == [False, True, True]

    await subject.clear()
    await subject.put("e")
    assert not subject.stream.holds(last)
    assert subject.stream.holds(drained(subject.stream)[0])


async def test_everything_and_the_changes_after_its_cursor_are_all_there_is(subject):
    assert drained(subject.stream) == ("0-0", {})
    for id_ in "abcb":
        await subject.put(id_)
    await subject.delete("c")
    end = subject.stream.read("0-0", 10, 0)[-1].cursor
    await subject.cut_before(end)

    cursor, newest = drained(subject.stream)
    await subject.put("d")
    await subject.delete("a")

    assert newest == {"a": 1, "b": 2}
    assert [(change.id, change.version) for change in subject.stream.read(cursor, 10, 0)] == [("d", 1), ("a", 2)]


async def test_a_vector_refused_twice_is_reported_once(subject):
    for id_ in "ab":
        await subject.put(id_)
    a, b = subject.stream.read("0-0", 10, 0)

    for change in (a, b, a):
        subject.stream.refuse(change, "norm")

    assert await subject.refusals() == 2


async def test_changes_after_a_kept_cursor_can_be_read(subject):
    for id_ in "abc":
        await subject.put(id_)
    cursor = subject.stream.read("0-0", 10, 0)[0].cursor

    subject.stream.keep(cursor)

    assert subject.stream.holds(cursor)
    assert [change.id for change in subject.stream.read(cursor, 10, 0)] == ["b", "c"]


async def test_everything_is_the_newest_reading_of_every_live_note(community, stream):
    for number in range(1200):
        await community.write(f"n{number}")
    await community.read()
    await community.write("n0", "written again, not yet read")
    await community.store.delete("n1")
    await community.write("n2", "written again")
    await community.read()
    await community.write("unread")

    cursor, found = drained(stream)

    assert found == {f"n{number}": 2 if number in (0, 2) else 1 for number in range(1200) if number != 1}
    assert stream.read(cursor, 10, 0) == []
    [change] = [change for change in stream.everything()[1] if change.id == "n5"]
    assert (change.fingerprint, change.vector.tolist()) == ("m", VECTOR.tolist())


async def test_a_change_carries_fields_and_hidden_from_the_stream_and_from_the_store(community, stream):
    full = StoredNote(
        Note("a", "Three days in Kyoto", "Temples. " * 50, ("#Street Foods", "京都"), " Home Decor\u0301 ", 7),
        0,
        "Zoë",
        "1970-01-01T01:00:01.5+01:00",
        attributes={"city": "Kyoto " * 20, "price": 3, "big": 1e300, "sale": False, "seasons": ("spring",), "f": 0.1},
        detected="en",
    )
    await community.store.put([full, StoredNote(Note("b", "Temples in the morning, markets at noon"), 0, hidden=True)])
    await community.store.put(
        [StoredNote(Note("c", "", "c" + "三天京都之旅" * 400), 0), StoredNote(Note("d", "x"), 0, language="ja")]
    )
    await community.read()

    expected = {
        "a": {
            "category": "home deco\u0155",
            "author": "Zoë",
            "language": "en",
            "exposure": 7.0,
            "created_at": 1.5,
            "hashtags": ("streetfood", "京都"),
            "city": "Kyoto " * 20,
            "price": 3.0,
            "big": 1e300,
            "sale": False,
            "seasons": ("spring",),
            "f": 0.1,
        },
        # Nobody looked for the language of these, as in notes of an older release.
        "b": {"language": "en", "exposure": 0.0},
        "c": {"language": "zh", "exposure": 0.0},
        "d": {"language": "ja", "exposure": 0.0},
    }
    for changes in (stream.read("0-0", 10, 0), list(stream.everything()[1])):
        assert {change.id: change.fields for change in changes} == expected
        assert [change.id for change in changes if change.hidden] == ["b"]
        assert {type(change.fields["exposure"]) for change in changes} == {float}
        assert next(change for change in changes if change.id == "a").fields["sale"] is False


async def test_a_write_that_leaves_the_text_alone_is_a_change_at_once(community, stream):
    await community.store.put([StoredNote(Note("a", "Kyoto", hashtags=("sea",)), 0, detected="")])
    await community.read()
    await community.store.put([StoredNote(Note("waits", "x"), 0)])
    first = stream.read("0-0", 10, 0)[-1]

    before, _ = await community.redis.time()
    await community.store.put(
        [StoredNote(Note("a", "Kyoto", hashtags=("sea",)), 0, attributes={"price": 3}, detected="")]
    )

    [change] = stream.read(first.cursor, 10, 0)
    assert (change.id, change.version, change.vector.tolist()) == ("a", 2, VECTOR.tolist())
    assert (change.fields["price"], change.hidden, first.fields.get("price")) == (3.0, False, None)
    assert 1000 * before <= change.written_ms <= int(change.cursor.split("-")[0])
    assert drained(stream)[1] == {"a": 2}


async def test_an_entry_of_an_older_release_has_its_labels_as_fields(community, stream):
    await community.store.put([StoredNote(Note("a", "a", category="Home Decor"), 0, author="Zoë")])
    await community.read()
    [(_, entry)] = await community.redis.xrange(EMBEDDINGS)
    del entry[b"note"]
    await community.redis.xadd(EMBEDDINGS, entry)

    labels = {"category": "home decor", "author": "Zoë"}
    [newer, older] = stream.read("0-0", 10, 0)
    assert (older.id, older.fields, older.hidden) == ("a", labels, False)
    assert newer.fields.items() > labels.items()


async def test_what_is_written_while_everything_is_read_lies_behind_the_cursor(community, stream):
    await community.write("a")
    await community.read()

    cursor, changes = stream.everything()
    await community.store.delete("a")
    await community.write("b")
    await community.read()

    assert [change.id for change in changes] == ["b"]
    assert [change.id for change in stream.read(cursor, 10, 0)] == ["a", "b"]


async def test_a_reading_that_cannot_be_decoded_is_skipped_and_counted(community, stream):
    await community.write("a")
    await community.write("b")
    await community.read()
    await community.redis.hset(READINGS + "m", "a", b"\x81")

    assert set(drained(stream)[1]) == {"b"}
    assert stream.malformed == 1


async def test_an_empty_stream_holds_its_start_and_everything_is_nothing(community, stream):
    assert drained(stream) == ("0-0", {})
    assert stream.holds("0-0")


@pytest.mark.parametrize("loss", ["cut", "made anew", "restored without its end"])
async def test_a_cursor_is_held_until_its_entry_is_lost(community, stream, loss):
    for id_ in "abc":
        await community.write(id_)
    await community.read()
    first, second, third = [change.cursor for change in stream.read("0-0", 10, 0)]
    assert all(stream.holds(cursor) for cursor in (first, second, third))

    if loss == "cut":
        await community.redis.xtrim(EMBEDDINGS, minid=third, approximate=False)
    elif loss == "made anew":
        await community.redis.delete(EMBEDDINGS)
    else:
        await community.redis.xdel(EMBEDDINGS, second)
    await community.store.delete("c")

    assert not stream.holds(second)
    assert stream.holds(stream.everything()[0])


async def test_the_stream_is_cut_only_behind_the_oldest_cursor_of_all_followers(community, stream, second):
    for id_ in "abcd":
        await community.write(id_)
    await community.read()
    cursors = [change.cursor for change in stream.read("0-0", 10, 0)]

    stream.keep("0-0")
    second.keep(cursors[3])
    assert len(stream.read("0-0", 10, 0)) == 4
    stream.keep(cursors[1])
    assert [change.id for change in second.read("0-0", 10, 0)] == ["b", "c", "d"]
    assert stream.holds(cursors[1])
    second.keep(cursors[3])
    stream.keep(cursors[2])
    assert [change.id for change in second.read("0-0", 10, 0)] == ["c", "d"]


async def test_a_follower_that_was_silent_for_a_week_holds_nothing_back(community, stream):
    for id_ in "ab":
        await community.write(id_)
    await community.read()
    newest = stream.read("0-0", 10, 0)[1].cursor
    seconds, _ = await community.redis.time()
    await community.redis.hset(CURSORS, "gone/m", f"0-0 {seconds - 8 * 24 * 3600}")

    stream.keep(newest)

    assert [change.id for change in stream.read("0-0", 10, 0)] == ["b"]
    assert list(await community.redis.hgetall(CURSORS)) == [b"first/m"]


async def test_a_refused_vector_marks_its_note_and_is_reported_once(community, stream, second):
    await community.write("a")
    await community.read()
    refused = Change("1-0", "a", 1, "m", VECTOR)

    for follower in (stream, second, stream):
        follower.refuse(refused, "norm")

    [(_, entry)] = await community.redis.xrange(DEAD)
    assert entry == {b"id": b"a", b"version": b"1", b"fingerprint": b"m", b"reason": b"index: norm"}
    assert (await community.store.counts("m")).failed == 1
    assert (await community.store.suggestion("a", "m")).failure == "index: norm"


async def test_a_refused_version_that_was_replaced_is_nobodys_concern(community, stream):
    await community.write("a")
    await community.write("a", "again")

    stream.refuse(Change("1-0", "a", 1, "m", VECTOR), "norm")

    assert await community.redis.xlen(DEAD) == 0
    assert (await community.store.counts("m")).failed == 0


async def test_the_lag_is_what_lies_behind_a_cursor_and_how_old_the_first_of_it_is(community, stream):
    assert stream.lag("0-0") == (0, 0.0)
    for id_ in "abc":
        await community.write(id_)
    await community.read()
    first, _, last = [change.cursor for change in stream.read("0-0", 10, 0)]

    changes, age_s = stream.lag(first)

    assert changes == 2
    assert 0 <= age_s < 60
    assert stream.lag(last) == (0, 0.0)
    await community.redis.delete(EMBEDDINGS)
    await community.redis.xadd(EMBEDDINGS, {"id": "d"}, id="1000-0")
    assert stream.lag("0-0")[1] > 1e9


async def test_a_change_says_when_its_note_was_written_and_a_delete_does_not(community, stream, redis):
    before, _ = await redis.time()
    await community.write("n1")
    await asyncio.sleep(0.05)
    await community.read()
    await community.store.delete("n1")

    read, deleted = stream.read("0-0", 10, 0)

    published_ms = int(read.cursor.split("-")[0])
    assert 1000 * before <= read.written_ms <= published_ms - 50
    assert deleted.written_ms is None
