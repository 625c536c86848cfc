"""The cache of cards: never out of date, and cheap when many ask."""

import asyncio
import random

import pytest
from redis.asyncio import Redis

from model.note import Note
from service.errors import StoreUnavailable
from service.recommend.note_cache import NoteCache, NoteSummary
from service.store.memory import MemoryStore
from service.store.notes import RedisStore
from service.store.records import StoredNote
from service.store.schema import WRITES

PATIENCE_S = 30.0


def note(note_id: str, title: str = "harbor", **labels: str) -> StoredNote:
    return StoredNote(Note(note_id, title, hashtags=("sea",), category="Travel", exposure=3), 0, **labels)


async def test_a_card_is_the_note_without_its_text():
    store = MemoryStore()
    await store.put([note("n1", 'a "quoted" title', author="a1")])

    [card] = await NoteCache(store, 10, PATIENCE_S).get(["n1"])

    shown = b'{"note_id":"n1","title":"a \\"quoted\\" title","category":"Travel","hashtags":["sea"],"score":'
    assert card == NoteSummary(1, "Travel", ("sea",), "a1", 3, shown)


async def test_what_is_not_there_or_deleted_has_no_card():
    store = MemoryStore()
    await store.put([note("n1"), note("n2")])
    await store.delete("n1")
    cards = NoteCache(store, 10, PATIENCE_S)

    for _ in range(2):
        found = await cards.get(["n1", "never", "n2", "n2"])
        assert [card and card.version for card in found] == [None, None, 1, 1]


async def test_a_note_is_fetched_once_and_again_only_after_a_write():
    store = MemoryStore()
    await store.put([note("n1")])
    cards = NoteCache(store, 10, PATIENCE_S)
    fetched = []
    get = store.get
    store.get = lambda ids: fetched.extend(ids) or get(ids)

    await cards.get(["n1"])
    await cards.get(["n1"])
    assert fetched == ["n1"]

    await store.put([note("n1", "castle")])
    [card] = await cards.get(["n1"])
    assert (fetched, card.version) == (["n1", "n1"], 2)


async def test_those_who_wait_share_one_question():
    store = MemoryStore()
    await store.put([note(f"n{number}") for number in range(50)])
    cards = NoteCache(store, 100, PATIENCE_S)

    await asyncio.gather(*(cards.get([f"n{number}", "n0"]) for number in range(50)))

    assert store.views == 1


async def test_never_more_are_held_than_there_is_room_for():
    store = MemoryStore()
    await store.put([note(f"n{number}") for number in range(9)])
    cards = NoteCache(store, 4, PATIENCE_S)

    found = await cards.get([f"n{number}" for number in range(9)])

    assert all(found)
    assert sum(cards.recall(f"n{number}") is not None for number in range(9)) == 4


async def test_a_store_that_fails_fails_those_who_wait_and_nobody_later():
    store = MemoryStore()
    await store.put([note("n1")])
    cards = NoteCache(store, 10, PATIENCE_S)
    store.down = True
    failed = await asyncio.gather(*(cards.get(["n1"]) for _ in range(3)), return_exceptions=True)
    store.down = False

    assert [type(error) for error in failed] == [StoreUnavailable] * 3
    assert (await cards.get(["n1"]))[0]


async def test_a_store_that_says_nothing_fails_those_who_wait_in_time_and_nobody_later():
    store = MemoryStore()
    await store.put([note("n1")])
    cards = NoteCache(store, 10, 0.05)
    await cards.get(["n1"])
    store.hangs = True
    waiting = [asyncio.create_task(cards.get(["n1"])) for _ in range(3)]
    failed = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    store.hangs = False

    assert [type(error) for error in failed] == [StoreUnavailable] * 3
    assert (await cards.get(["n1"]))[0]


async def test_what_was_written_while_its_card_had_to_make_room_is_fetched_again():
    class Slow(MemoryStore):
        """Looks at once, and answers when it is let."""

        async def view(self, note_ids, since):
            seen = await super().view(note_ids, since)
            await let.wait()
            return seen

    let, store = asyncio.Event(), Slow()
    let.set()
    await store.put([note("n1"), note("n2")])
    cards = NoteCache(store, 1, PATIENCE_S)
    await cards.get(["n1"])
    let.clear()
    other = asyncio.create_task(cards.get(["n2"]))  # seen before the write, and then it takes the place of n1
    for _ in range(5):
        await asyncio.sleep(0)
    await store.put([note("n1", "castle")])
    written = asyncio.create_task(cards.get(["n1"]))
    await asyncio.sleep(0)
    let.set()

    [card] = await written
    assert card.version == 2
    await other


async def test_one_who_gives_up_takes_nobody_along():
    store = MemoryStore()
    await store.put([note("n1")])
    cards = NoteCache(store, 10, PATIENCE_S)
    impatient = asyncio.create_task(cards.get(["n1"]))
    patient = asyncio.create_task(cards.get(["n1"]))
    await asyncio.sleep(0)
    impatient.cancel()

    assert (await patient)[0]


@pytest.mark.parametrize("seed", range(5))
async def test_random_histories_of_several_gateways_always_show_the_last_acknowledged_write(redis: Redis, seed: int):
    """Two caches over one Redis, against the versions that the store acknowledged."""
    draw = random.Random(seed)
    store = RedisStore(redis, 10_000)
    caches = [NoteCache(store, capacity, PATIENCE_S) for capacity in (5, 100)]
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
                found = await draw.choice(caches).get(asked)
                assert [card and card.version for card in found] == [live[asked_id] for asked_id in asked]


async def test_readers_beside_writers_never_see_what_was_replaced_before_they_asked(redis: Redis):
    store = RedisStore(redis, 10_000)
    cards = NoteCache(store, 100, PATIENCE_S)
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
            [card] = await cards.get(["n1"])
            assert (card.version if card else 0) >= least
            reads += 1
        return reads

    _, *reads = await asyncio.gather(write(), *(read() for _ in range(8)))
    assert min(reads) > 10


@pytest.mark.parametrize("trouble", ["trimmed", "lost", "replaced"])
async def test_a_log_that_does_not_tell_all_makes_the_cache_begin_anew(redis: Redis, trouble: str):
    store = RedisStore(redis, 100_000)
    await store.put([note("n1")])
    cards = NoteCache(store, 100, PATIENCE_S)
    await cards.get(["n1"])
    await cards.get(["n1"])
    assert cards.recall("n1")

    if trouble == "trimmed":
        await store.put([note("n1", "castle"), *(note(f"m{number}") for number in range(10))])
        await redis.xtrim(WRITES, maxlen=3, approximate=False)
    else:
        await redis.delete(WRITES)
        await store.put([note("n1", "castle")])
        if trouble == "lost":
            await redis.delete(WRITES)

    for _ in range(3):
        assert (await cards.get(["n1"]))[0].version == 2
