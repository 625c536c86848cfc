"""What every HashtagStore promises, and what only the one on disk can."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from model.note import Note
from model.text.suggestions import spelled
from service.errors import AliasLoop, StoreUnavailable
from service.store.cells.ring import Cells
from service.store.connection import open_redis
from service.store.hashtags import vocabulary
from service.store.hashtags.completion import Completion
from service.store.hashtags.memory import MemoryHashtags
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.interfaces import HashtagRule, HashtagStore, NoteStore, UsedHashtag
from service.store.memory import MemoryStore
from service.store.notes import RedisStore
from service.store.records import StoredNote
from service.store.schema import COMPLETED, NEW_NOTES, NEW_TAGS, NOTE, TAG, TAG_NAMES, TAGS
from service.wiring.stores import hashtag_store, note_store

Stores = tuple[NoteStore, HashtagStore]


@pytest.fixture(params=["memory", "redis", "cells"])
def stores(request: pytest.FixtureRequest) -> Stores:
    if request.param == "memory":
        store = MemoryStore()
        return store, MemoryHashtags(store)
    found = request.getfixturevalue(request.param)
    cells = found if request.param == "cells" else Cells.of([found])
    return note_store(cells, 1_000_000), hashtag_store(cells)


def carrying(note_id: str, *hashtags: str, days_ago: int | None = None) -> StoredNote:
    created_at = None if days_ago is None else (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()
    return StoredNote(Note(note_id, "A day out", hashtags=hashtags), version=0, created_at=created_at)


def many(prefix: str, count: int, *hashtags: str, days_ago: int | None = None) -> list[StoredNote]:
    return [carrying(f"{prefix}{number}", *hashtags, days_ago=days_ago) for number in range(count)]


async def walked(hashtags: HashtagStore, prefix: str, limit: int) -> list[UsedHashtag]:
    """All pages, one after the other."""
    found: list[UsedHashtag] = []
    after = ""
    while True:
        page = await hashtags.page(prefix, after, limit)
        found += page.items
        assert len(page.items) <= limit
        if page.next is None:
            return found
        after = page.next


class TestPages:
    async def test_the_most_used_comes_first_with_its_spellings_and_then_the_letters_decide(self, stores):
        store, hashtags = stores
        await store.put([carrying("n1", "Sea", "sun"), carrying("n2", "seas", "ant"), carrying("n3", "Sea", "zebra")])

        page = await hashtags.page("", "", 10)

        assert page.next is None
        assert page.items == [
            UsedHashtag("sea", 3, (("Sea", 2), ("seas", 1))),
            UsedHashtag("ant", 1, (("ant", 1),)),
            UsedHashtag("sun", 1, (("sun", 1),)),
            UsedHashtag("zebra", 1, (("zebra", 1),)),
        ]

    async def test_edits_and_deletes_are_counted_at_once(self, stores):
        store, hashtags = stores
        await store.put([carrying("n1", "sea"), carrying("n2", "sea", "sun")])
        await store.put([carrying("n2", "sand")])
        await store.delete("n1")

        assert [(item.tag, item.notes) for item in (await hashtags.page("", "", 10)).items] == [("sand", 1)]

    async def test_a_prefix_is_folded(self, stores):
        store, hashtags = stores
        await store.put([carrying("n1", "Street Food", "streets", "京都散歩"), carrying("n2", "sea")])

        assert [item.tag for item in (await hashtags.page("#Street", "", 10)).items] == ["street", "streetfood"]
        assert [item.tag for item in (await hashtags.page("street_f", "", 10)).items] == ["streetfood"]
        assert [item.tag for item in (await hashtags.page("京都", "", 10)).items] == ["京都散歩"]
        assert (await hashtags.page("never", "", 10)).items == []

    @pytest.mark.parametrize("prefix", ["", "t", "t1", "t11"])
    async def test_pages_have_each_hashtag_once_in_order(self, stores, prefix):
        """`t11` is looked up by letters, the others are found in the order of notes."""
        store, hashtags = stores
        rng = random.Random(3)
        await store.put([carrying(f"n{n}", *(f"t{rng.randint(0, 120)}" for _ in range(4))) for n in range(40)])
        whole = (await hashtags.page(prefix, "", 1000)).items

        assert whole == sorted(whole, key=lambda item: (-item.notes, item.tag))
        assert all(item.tag.startswith(prefix) for item in whole)
        for limit in (3, 7, len(whole)):
            assert await walked(hashtags, prefix, limit) == whole

    async def test_a_page_goes_on_behind_a_hashtag_that_has_moved_or_gone(self, stores):
        store, hashtags = stores
        await store.put([*many("a", 3, "sea"), *many("b", 2, "sun"), *many("c", 2, "tea"), *many("d", 1, "way")])
        first = await hashtags.page("", "", 2)
        assert [item.tag for item in first.items] == ["sea", "sun"]
        for note_id in ("b0", "b1"):
            await store.delete(note_id)
        assert [item.tag for item in (await hashtags.page("", first.next, 9)).items] == ["tea", "way"]
        await store.put(many("b", 4, "sun"))

        assert [item.tag for item in (await hashtags.page("", first.next, 9)).items] == ["tea", "way"]

    async def test_a_hashtag_alone_stands_for_its_own_place(self, stores):
        store, hashtags = stores
        await store.put([*many("a", 3, "sea"), *many("b", 2, "sun"), *many("c", 2, "tea")])

        assert [item.tag for item in (await hashtags.page("", "Suns", 9)).items] == ["tea"]
        assert (await hashtags.page("", "never", 9)).items == []


class TestTrends:
    async def test_lifts_are_those_of_the_formula(self, stores):
        """n of N newest notes against b of B before: (n + 5) / (b * N / B + 5)."""
        store, hashtags = stores
        await store.put(many("old", 30, "sea", days_ago=20))
        await store.put(many("older", 10, "sun", days_ago=400))
        await store.put(many("new", 8, "sea", "ramen", days_ago=2))
        await store.put([carrying("one", "once", days_ago=0), carrying("none", days_ago=0)])

        trends = await hashtags.trending(7, 10)

        assert [(trend.tag, trend.notes) for trend in trends] == [("ramen", 8), ("sea", 8)]
        assert [trend.lift for trend in trends] == pytest.approx([(8 + 5) / 5, (8 + 5) / (30 * 10 / 40 + 5)])
        assert [trend.tag for trend in await hashtags.trending(7, 1)] == ["ramen"]
        assert [trend.tag for trend in await hashtags.trending(2, 10)] == []
        assert {trend.tag: trend.notes for trend in await hashtags.trending(21, 10)} == {"ramen": 8, "sea": 38}

    async def test_of_a_new_community_what_is_used_most_trends(self, stores):
        store, hashtags = stores
        await store.put([*many("a", 3, "sea"), *many("b", 2, "sun"), carrying("c", "tea")])

        assert [(trend.tag, trend.notes, trend.lift) for trend in await hashtags.trending(1, 10)] == [
            ("sea", 3, 8 / 5),
            ("sun", 2, 7 / 5),
        ]

    async def test_what_is_deleted_or_carries_something_else_is_no_trend(self, stores):
        store, hashtags = stores
        await store.put([*many("a", 3, "sea"), *many("b", 3, "sun", days_ago=1)])
        for note_id in ("a0", "a1"):
            await store.delete(note_id)
        await store.put(many("b", 3, "tea", days_ago=1))

        assert [trend.tag for trend in await hashtags.trending(7, 10)] == ["tea"]

    async def test_a_note_dated_in_the_future_is_one_of_today(self, stores):
        store, hashtags = stores
        await store.put(many("a", 2, "sea", days_ago=-800))

        assert [trend.tag for trend in await hashtags.trending(1, 10)] == ["sea"]


async def test_a_hidden_note_counts_nowhere_until_it_is_shown(stores):
    store, hashtags = stores
    shown = many("a", 3, "sea", days_ago=1)
    await store.put(shown)
    await store.put([replace(note, hidden=True) for note in shown])
    assert (await hashtags.page("", "", 10)).items == []
    assert await hashtags.trending(7, 10) == []

    await store.put(shown[:2])

    assert [(item.tag, item.notes) for item in (await hashtags.page("", "", 10)).items] == [("sea", 2)]
    assert [(trend.tag, trend.notes) for trend in await hashtags.trending(7, 10)] == [("sea", 2)]
    await store.put([replace(shown[0], hidden=True)])
    await store.delete(shown[0].note.id)
    assert [(item.tag, item.notes) for item in (await hashtags.page("", "", 10)).items] == [("sea", 1)]


class TestRules:
    async def test_rules_come_back_until_they_are_removed(self, stores):
        _, hashtags = stores
        revision, rules = await hashtags.rules(None)
        assert rules == []
        await hashtags.put_rule(HashtagRule("ramen", "noodles"))
        await hashtags.put_rule(HashtagRule("spam"))
        await hashtags.put_rule(HashtagRule("ramen", "noodle_soup"))
        later, rules = await hashtags.rules(revision)

        assert rules == [HashtagRule("ramen", "noodle_soup"), HashtagRule("spam")]
        assert await hashtags.rules(later) is None
        await hashtags.remove_rule("ramen")
        await hashtags.remove_rule("ramen")
        assert (await hashtags.rules(later))[1] == [HashtagRule("spam")]

    async def test_what_leads_back_to_itself_is_refused(self, stores):
        _, hashtags = stores
        await hashtags.put_rule(HashtagRule("a", "bees"))
        await hashtags.put_rule(HashtagRule("bee", "c"))

        for rule in (HashtagRule("c", "a"), HashtagRule("bee", "A"), HashtagRule("d", "#D")):
            with pytest.raises(AliasLoop):
                await hashtags.put_rule(rule)
        await hashtags.put_rule(HashtagRule("bee"))
        await hashtags.put_rule(HashtagRule("c", "a"))
        assert len((await hashtags.rules(None))[1]) == 3


async def test_orders_and_days_are_those_of_the_live_notes_after_any_history(redis: Redis):
    """Random writes, edits and deletes against counting by hand; in the end nothing is left behind."""
    store, hashtags, rng = RedisStore(redis, max_queue=10_000), RedisHashtags(redis), random.Random(7)
    written = ["Sea", "sea", "SEAS", "Street Food", "streetfood", "京都", "news", "new", "c++"]
    ids = [f"n{number}" for number in range(12)]
    for _ in range(300):
        note_id = rng.choice(ids)
        if rng.random() < 0.3:
            await store.delete(note_id)
        else:
            tags = rng.sample(written, rng.randint(0, 4))
            note = carrying(note_id, *tags, days_ago=rng.choice([None, 0, 3, 60, 95, 4000, -5]))
            await store.put([replace(note, hidden=rng.random() < 0.2)])

    live = [record for record in await store.get(ids) if record and not record.deleted and not record.hidden]
    assert len(live) > 3
    expected = Counter(tag for record in live for tag in spelled(record.note.hashtags))
    assert {item.tag: item.notes for item in await walked(hashtags, "", 3)} == expected
    assert {name.decode() for name in await redis.zrange(TAG_NAMES, 0, -1)} == set(expected)
    days = {id_.decode(): int(day) for id_, day in await redis.zrange(NEW_NOTES, 0, -1, withscores=True)}
    counted: dict[str, Counter[str]] = {}
    for record in live:
        if record.note.id in days:
            counted.setdefault(f"{NEW_TAGS}{days[record.note.id]}", Counter()).update(
                ["", *spelled(record.note.hashtags)]
            )
    found = {key.decode(): await redis.zrange(key, 0, -1, withscores=True) for key in await redis.keys(NEW_TAGS + "*")}
    assert {key: {name.decode(): count for name, count in pairs} for key, pairs in found.items()} == counted
    today = int(time.time()) // 86_400
    for record in live:
        if record.created_at:
            day = (datetime.fromisoformat(record.created_at).date() - datetime(1970, 1, 1).date()).days
            assert days.get(record.note.id) == (min(day, today) if day > today - 91 else None)

    for note_id in ids:
        await store.delete(note_id)
    assert await redis.keys(NEW_TAGS + "*") == []
    assert not await redis.exists(TAGS, TAG_NAMES, NEW_NOTES)


async def test_an_edit_makes_a_note_no_newer(redis: Redis):
    store = RedisStore(redis, max_queue=100)
    await store.put([carrying("n1", "sea")])
    await redis.zadd(NEW_NOTES, {"n1": (day := int(time.time()) // 86_400 - 40)})
    await redis.rename(f"{NEW_TAGS}{day + 40}", f"{NEW_TAGS}{day}")

    await store.put([replace(carrying("n1", "sea", "sun"), author="a1")])

    assert await redis.zscore(NEW_NOTES, "n1") == day
    assert dict(await redis.zrange(f"{NEW_TAGS}{day}", 0, -1, withscores=True)) == {b"": 1, b"sea": 1, b"sun": 1}
    assert await redis.keys(f"{NEW_TAGS}{day + 40}") == []


async def test_notes_of_one_write_count_as_one_by_one(redis: Redis):
    rng, store = random.Random(7), RedisStore(redis, max_queue=10_000)
    notes = [
        replace(
            carrying(
                f"n{rng.randrange(40)}", *rng.sample(["sea", "Sea", "sun", "tea"], 2), days_ago=rng.choice([0, 5, 200])
            ),
            hidden=rng.random() < 0.2,
            author=str(number),
        )
        for number in range(120)
    ]

    async def counts() -> dict[bytes, object]:
        keys = [TAGS, TAG_NAMES, NEW_NOTES, *await redis.keys(NEW_TAGS + "*"), *await redis.keys(TAG + "*")]
        return {key: (await redis.zrange(key, 0, -1, withscores=True), await redis.ttl(key) > 0) for key in keys}

    for start in range(0, len(notes), 30):  # ids come twice
        await store.put(notes[start : start + 30])
    together = await counts()
    await redis.flushall()
    for note in notes:
        await store.put([note])

    assert together == await counts()
    seen = [
        {tag.lower() for tag in note.note.hashtags}
        for note in {one.note.id: one for one in notes}.values()
        if not note.hidden
    ]
    used = Counter(tag for tags in seen for tag in tags)
    assert {tag.decode(): -count for tag, count in together[TAGS][0]} == used
    await redis.flushall()
    await store.put(many("n", 2, "sea", days_ago=9))
    [day] = await redis.keys(NEW_TAGS + "*")
    assert await redis.ttl(day) > 0


async def test_a_store_of_an_older_release_is_completed_while_notes_are_written(redis: Redis, monkeypatch):
    monkeypatch.setattr("service.store.hashtags.completion._SCANNED", 1)
    store, hashtags, rng = RedisStore(redis, max_queue=10_000), RedisHashtags(redis), random.Random(5)
    for number in range(60):
        tags = rng.sample(["sea", "sun", "tea", "way", "Seas"], rng.randint(0, 3))
        await store.put([carrying(f"n{number}", *tags, days_ago=rng.choice([0, 5, 200]))])
    await store.delete("n7")
    whole, trends = await hashtags.page("", "", 100), await hashtags.trending(30, 10)
    assert trends
    # As the older release left it.
    await redis.delete(TAGS, TAG_NAMES, NEW_NOTES, *await redis.keys(NEW_TAGS + "*"))

    async def write() -> None:
        for number in range(20):
            [record] = await store.get([f"n{number}"])
            if record and not record.deleted:
                await store.put([replace(record, author="edited")])

    await asyncio.gather(Completion(redis)(), write(), Completion(redis)())

    assert await redis.smembers(COMPLETED) == {b"hashtags"}
    assert await hashtags.page("", "", 100) == whole
    assert await hashtags.trending(30, 10) == trends
    monkeypatch.setattr(Completion, "_scan", None)
    await Completion(redis)()


async def test_a_damaged_note_does_not_stop_the_completion(redis: Redis):
    await redis.set(NOTE + "bad", b"\xc1")

    await Completion(redis)()

    assert await redis.exists(COMPLETED)


async def test_a_page_of_100_000_hashtags_looks_at_a_part_of_them(redis: Redis, monkeypatch):
    """Wherever it is, and however many hashtags have the prefix."""
    for start in range(0, 100_000, 10_000):
        tags = [f"t{number}" for number in range(start, start + 10_000)]
        await redis.zadd(TAGS, {tag: -(1 + number % 97) for number, tag in enumerate(tags)})
        await redis.zadd(TAG_NAMES, dict.fromkeys(tags, 0))
    looked_at = 0
    notes_of, by_notes = RedisHashtags.notes_of, RedisHashtags._by_notes

    async def counted(self, tags):
        nonlocal looked_at
        looked_at += len(tags)
        return await notes_of(self, tags)

    async def counted_by_notes(self, after):
        nonlocal looked_at
        async for places in by_notes(self, after):
            looked_at += len(places)
            yield places

    monkeypatch.setattr(RedisHashtags, "notes_of", counted)
    monkeypatch.setattr(RedisHashtags, "_by_notes", counted_by_notes)
    most = {"": 1000, "t": 1000, "t9": 12_500, "t99999": 1}
    for prefix in most:
        after = ""
        for _ in range(3):
            looked_at = 0
            after = (await RedisHashtags(redis).page(prefix, after, 100)).next or ""
            assert 0 < looked_at <= most[prefix]


async def test_spellings_beyond_a_bound_are_left_out(redis: Redis, monkeypatch):
    monkeypatch.setattr(vocabulary, "MOST_SPELLINGS", 2)
    await RedisStore(redis, max_queue=100).put(
        [carrying("n1", "Sea"), carrying("n2", "SEA"), carrying("n3", "sea"), carrying("n4", "sea")]
    )

    [item] = (await RedisHashtags(redis).page("", "", 1)).items

    assert (item.notes, item.spellings) == (4, (("sea", 2), ("Sea", 1)))


async def test_without_redis_nothing_is_known():
    hashtags = RedisHashtags(open_redis("unix:///nowhere"))
    for call in (hashtags.page("", "", 1), hashtags.trending(7, 1), hashtags.rules(None), hashtags.remove_rule("a")):
        with pytest.raises(StoreUnavailable):
            await call
