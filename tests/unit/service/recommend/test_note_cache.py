"""The cache of note summaries: never out of date, bounded, and cheap when many ask."""

import asyncio
import random
from dataclasses import asdict, replace

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from indexer.filters.expression import OneOf
from model.note import Note
from service.errors import StoreUnavailable
from service.recommend.near_copies import Fingerprint
from service.recommend.note_cache import NoteCache
from service.store.memory import MemoryStore
from service.store.notes import WRITES_READ, RedisStore
from service.store.records import StoredNote
from service.store.schema import WRITES

TIMEOUT_S = 30.0


def note(note_id: str, title: str = "harbor", **labels: str) -> StoredNote:
    return StoredNote(Note(note_id, title, hashtags=("sea",), category="Travel", exposure=3), 0, **labels)


async def test_a_summary_is_the_note_without_its_text():
    store = MemoryStore()
    labels = {"author": "a1", "created_at": "1970-01-01T00:00:00.5Z", "hidden": True, "language": "en"}
    await store.put([note("n1", "castle", **labels)])

    [summary] = await NoteCache(store, 10, TIMEOUT_S).get(["n1"])

    assert summary.fingerprint.similarity(Fingerprint.of("castle", "")) == 1.0
    assert summary.created_at == 0.5
    assert asdict(replace(summary, fingerprint=None)) == {
        "fingerprint": None,
        "note_id": "n1",
        "version": 1,
        "title": "castle",
        "category": "Travel",
        "hashtags": ("sea",),
        "author": "a1",
        "exposure": 3,
        "fields": {
            "category": "travel",
            "author": "a1",
            "language": "en",
            "created_at": 0.5,
            "hashtags": ("sea",),
            "exposure": 3.0,
        },
        "hidden": True,
        "rendered": b"",
    }


async def test_unknown_and_deleted_notes_have_no_summary():
    store = MemoryStore()
    await store.put([note("n1"), note("n2")])
    await store.delete("n1")
    cache = NoteCache(store, 10, TIMEOUT_S)

    for _ in range(2):
        summaries = await cache.get(["n1", "never", "n2", "n2"])
        assert [summary and summary.version for summary in summaries] == [None, None, 1, 1]


async def test_a_note_is_fetched_once_and_again_only_after_a_write():
    store = MemoryStore()
    await store.put([note("n1")])
    cache = NoteCache(store, 10, TIMEOUT_S)
    fetched = []
    get = store.get
    store.get = lambda ids: fetched.extend(ids) or get(ids)

    await cache.get(["n1"])
    await cache.get(["n1"])
    assert fetched == ["n1"]

    await store.put([note("n1", "castle")])
    [summary] = await cache.get(["n1"])
    assert (fetched, summary.version) == (["n1", "n1"], 2)


async def test_summaries_are_counted_by_their_source():
    def counts() -> list[float]:
        return [
            REGISTRY.get_sample_value("notellm_cards_total", {"source": source}) or 0.0
            for source in ("held", "fetched")
        ]

    store = MemoryStore()
    await store.put([note(f"n{number}") for number in range(5)])
    cache = NoteCache(store, 10, TIMEOUT_S)

    for note_ids, cached, fetched in ((["n0", "n1"], 0, 2), (["n0", "n1"], 2, 0), (["n0", "n1", "n2", "n3"], 2, 2)):
        before = counts()
        await cache.get(note_ids)
        assert [now - then for now, then in zip(counts(), before, strict=True)] == [cached, fetched]


async def test_answers_that_wait_share_one_request_to_the_store():
    store = MemoryStore()
    await store.put([note(f"n{number}") for number in range(50)])
    cache = NoteCache(store, 100, TIMEOUT_S)

    await asyncio.gather(*(cache.get([f"n{number}", "n0"]) for number in range(50)))

    assert store.views == 1


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_delete_or_hiding_during_a_request_is_not_undone_by_what_the_request_saw(deleted):
    store = MemoryStore()
    await store.put([note("n1")])
    cache, view, under_way, go_on = NoteCache(store, 10, TIMEOUT_S), store.view, asyncio.Event(), asyncio.Event()

    async def slow(*args):
        seen = await view(*args)
        under_way.set()
        await go_on.wait()
        return seen

    store.view = slow
    answer = asyncio.create_task(cache.get(["n1"]))
    await under_way.wait()
    cache.withdraw("n1", deleted=deleted)
    go_on.set()
    await answer
    assert (cache.peek("n1"), cache.is_deleted("n1"), cache.is_certain("n1")) == (None, deleted, False)


async def test_a_hidden_note_is_not_certain_until_it_is_seen_again():
    store = MemoryStore()
    await store.put([note("n1", hidden=True), note("n2")])
    cache = NoteCache(store, 2, TIMEOUT_S)

    hidden, _ = await cache.get(["n1", "n2"])
    assert hidden.hidden
    for number in range(9):  # there is no room to know all of them
        cache.withdraw(f"n{9 + number}", deleted=True)
    assert [cache.is_certain(note_id) for note_id in ("n1", "n2")] == [False, True]
    assert not cache.is_deleted("n1")

    await store.put([note("n1")])
    [shown] = await cache.get(["n1"])
    assert (shown.hidden, cache.is_certain("n1")) == (False, True)


async def test_a_note_that_did_not_pass_when_it_was_fetched_is_not_certain_to_pass():
    store = MemoryStore()
    await store.put([replace(note("n1"), author="a")])
    cache = NoteCache(store, 10, TIMEOUT_S)
    await cache.get(["n1"])

    assert [cache.is_certain("n1", OneOf("author", (author,))) for author in ("a", "b")] == [True, False]
    assert cache.is_certain("never fetched", OneOf("author", ("b",)))


async def test_deletes_are_kept_apart_while_a_request_is_under_way_and_no_longer():
    cache = NoteCache(MemoryStore(), 10, TIMEOUT_S)
    for number in range(1000):
        cache.withdraw(f"n{number}", deleted=True)
    assert not cache._withdrawn_meanwhile
    assert cache.is_deleted("n999")


async def test_never_more_are_held_than_there_is_room_for():
    store = MemoryStore()
    await store.put([note(f"n{number}") for number in range(9)])
    cache = NoteCache(store, 4, TIMEOUT_S)

    summaries = await cache.get([f"n{number}" for number in range(9)])

    assert all(summaries)
    assert sum(cache.peek(f"n{number}") is not None for number in range(9)) == 4


async def test_a_summary_that_is_asked_for_again_stays_and_a_colder_one_is_evicted():
    store = MemoryStore()
    await store.put([note(f"n{number}") for number in range(4)])
    cache = NoteCache(store, 3, TIMEOUT_S)
    for note_id in ("n0", "n1", "n2", "n0", "n3"):
        await cache.get([note_id])

    assert [note_id for note_id in ("n0", "n1", "n2", "n3") if cache.peek(note_id)] == ["n0", "n2", "n3"]


async def test_a_store_that_fails_fails_the_answers_that_wait_and_no_later_one():
    store = MemoryStore()
    await store.put([note("n1")])
    cache = NoteCache(store, 10, TIMEOUT_S)
    store.down = True
    failed = await asyncio.gather(*(cache.get(["n1"]) for _ in range(3)), return_exceptions=True)
    store.down = False

    assert [type(error) for error in failed] == [StoreUnavailable] * 3
    assert (await cache.get(["n1"]))[0]


async def test_a_store_that_hangs_fails_the_answers_that_wait_in_time_and_no_later_one():
    store = MemoryStore()
    await store.put([note("n1")])
    cache = NoteCache(store, 10, 0.05)
    await cache.get(["n1"])
    store.hangs = True
    waiting = [asyncio.create_task(cache.get(["n1"])) for _ in range(3)]
    failed = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    store.hangs = False

    assert [type(error) for error in failed] == [StoreUnavailable] * 3
    assert (await cache.get(["n1"]))[0]


async def test_a_note_written_while_its_summary_was_evicted_is_fetched_again():
    class Slow(MemoryStore):
        """Takes its view at once, and answers when ``let`` is set."""

        async def view(self, note_ids, since):
            seen = await super().view(note_ids, since)
            await let.wait()
            return seen

    let, store = asyncio.Event(), Slow()
    let.set()
    await store.put([note("n1"), note("n2")])
    cache = NoteCache(store, 1, TIMEOUT_S)
    await cache.get(["n1"])
    let.clear()
    other = asyncio.create_task(cache.get(["n2"]))  # viewed before the write, and then n1 is evicted
    for _ in range(5):
        await asyncio.sleep(0)
    await store.put([note("n1", "castle")])
    written = asyncio.create_task(cache.get(["n1"]))
    await asyncio.sleep(0)
    let.set()

    [summary] = await written
    assert summary.version == 2
    await other


async def test_a_canceled_answer_cancels_no_other():
    store = MemoryStore()
    await store.put([note("n1")])
    cache = NoteCache(store, 10, TIMEOUT_S)
    impatient = asyncio.create_task(cache.get(["n1"]))
    patient = asyncio.create_task(cache.get(["n1"]))
    await asyncio.sleep(0)
    impatient.cancel()

    assert (await patient)[0]


@pytest.mark.parametrize("seed", range(5))
async def test_random_histories_of_several_gateways_always_show_the_last_acknowledged_write(redis: Redis, seed: int):
    """Two caches over one Redis, against the versions that the store acknowledged."""
    draw = random.Random(seed)
    store = RedisStore(redis, 10_000)
    caches = [NoteCache(store, capacity, TIMEOUT_S) for capacity in (5, 100)]
    ids = [f"n{number}" for number in range(8)]
    live: dict[str, int | None] = dict.fromkeys(ids)

    for step in range(300):
        note_id = draw.choice(ids)
        match draw.randrange(6):
            case 0:
                [live[note_id]] = await store.put([note(note_id, f"title {step}")])
            case 1:
                if await store.delete(note_id):
                    live[note_id] = None
            case _:
                asked = draw.sample(ids, 3)
                summaries = await draw.choice(caches).get(asked)
                assert [summary and summary.version for summary in summaries] == [live[asked_id] for asked_id in asked]


async def test_reads_during_writes_never_show_a_version_that_was_replaced_before_them(redis: Redis):
    store = RedisStore(redis, 10_000)
    cache = NoteCache(store, 100, TIMEOUT_S)
    acknowledged = 0
    done = False

    async def write() -> None:
        nonlocal acknowledged, done
        for number in range(200):
            [acknowledged] = await store.put([note("n1", f"title {number}")])
        done = True

    async def read() -> int:
        reads = 0
        while not done:
            least = acknowledged
            [summary] = await cache.get(["n1"])
            assert (summary.version if summary else 0) >= least
            reads += 1
        return reads

    _, *reads = await asyncio.gather(write(), *(read() for _ in range(8)))
    assert min(reads) > 10


@pytest.mark.parametrize("trouble", ["trimmed", "lost", "replaced"])
async def test_a_log_that_is_incomplete_empties_the_cache(redis: Redis, trouble: str):
    store = RedisStore(redis, 100_000)
    await store.put([note("n1")])
    cache = NoteCache(store, 100, TIMEOUT_S)
    await cache.get(["n1"])
    await cache.get(["n1"])
    assert cache.peek("n1")

    if trouble == "trimmed":
        await store.put([note("n1", "castle"), *(note(f"m{number}") for number in range(10))])
        await redis.xtrim(WRITES, maxlen=3, approximate=False)
    else:
        await redis.delete(WRITES)
        await store.put([note("n1", "castle")])
        if trouble == "lost":
            await redis.delete(WRITES)

    for _ in range(3):
        assert (await cache.get(["n1"]))[0].version == 2


@pytest.mark.parametrize("others", [WRITES_READ - 2, WRITES_READ - 1, WRITES_READ, WRITES_READ + 100])
async def test_a_cache_that_is_a_thousand_writes_behind_still_shows_the_last_one(redis: Redis, others: int):
    """The store tells of a thousand writes at a time, and the edit of n1 comes after the others."""
    store = RedisStore(redis, 100_000)
    await store.put([note("n1")])
    cache = NoteCache(store, 10, TIMEOUT_S)
    await cache.get(["n1"])
    await store.put([note(f"m{number}") for number in range(others)])
    await store.put([note("n1", "castle")])

    assert (await cache.get(["n1"]))[0].version == 2
