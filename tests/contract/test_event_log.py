"""What every EventLog promises."""

import asyncio
import time
from dataclasses import replace

import msgpack
import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.store.attribution.answers import AnswerSource
from service.store.attribution.outcomes import Outcomes
from service.store.cells.ring import Cells
from service.store.connection import open_redis
from service.store.events import RedisEvents
from service.store.interfaces import EventLog
from service.store.memory import MemoryEvents
from service.store.records import Event, digest_of
from service.store.schema import COMPLETED, EVENTS, OUTCOMES, SEEN
from service.wiring.stores import event_log

CLICK = Event("e1", "u1", "n2", "click", 1767225600.5, "n1")
SAVE = Event("e2", "u1", "n2", "save", 1767225601.0, None, 2.5, "a1", 3)


@pytest.fixture(params=["memory", "redis", "cells"])
def log(request: pytest.FixtureRequest) -> EventLog:
    if request.param == "memory":
        return MemoryEvents()
    found = request.getfixturevalue(request.param)
    return event_log(found if request.param == "cells" else Cells.of([found]))


async def test_an_event_counts_once(log):
    assert await log.append([CLICK, SAVE, CLICK]) == 2
    assert await log.append([SAVE]) == 0
    assert await log.append([]) == 0


def met(note_id: str, days_ago: float, kind: str = "view", user: str = "u1") -> Event:
    """An event whose id says all of it."""
    return Event(f"{user} {kind} {note_id} {days_ago}", user, note_id, kind, time.time() - days_ago * 86_400)


class TestSeen:
    async def test_is_what_a_reader_met_in_90_days_the_latest_first(self, log):
        kinds = ["view", "click", "like", "save", "dismiss"]
        await log.append([met(f"n{days}", days, kind) for days, kind in enumerate(kinds, start=1)])
        await log.append([met("n3", 0.5), met("n1", 30), met("shown", 0, "impression"), met("other", 0, user="u2")])
        await log.append([met("old", 90.01), met("just", 89.99), met("ahead", -4000)])

        assert await log.seen("u1") == ["ahead", "n3", "n1", "n2", "n4", "n5", "just"]
        assert await log.seen("u2") == ["other"]
        assert await log.seen("never") == []

    async def test_is_at_most_the_newest_1000(self, log):
        await log.append([met(f"n{number}", 1 + number / 1000) for number in range(700)])
        await log.append([met(f"m{number}", 0.1 + number / 1000) for number in range(700)])

        assert await log.seen("u1") == [*(f"m{n}" for n in range(700)), *(f"n{n}" for n in range(300))]

    async def test_counts_an_event_that_is_sent_again_once(self, log):
        await log.append([met("n1", 1)])
        await log.append([replace(met("n1", 1), note_id="n2")])

        assert await log.seen("u1") == ["n1"]


class TestErase:
    async def test_removes_one_reader_and_remembers_the_ids_of_their_events(self, log):
        events = [met(f"n{number}", number / 10, user=user) for number in range(5) for user in ("u", "uu", "u\n/")]
        await log.append(events)

        for _ in range(2):
            await log.erase("u")
            assert await log.seen("u") == []
        assert len(await log.seen("uu")) == len(await log.seen("u\n/")) == 5
        assert await log.append(events) == 0
        assert await log.seen("u") == []
        assert await log.append([met("again", 0, user="u")]) == 1
        assert await log.seen("u") == ["again"]

    async def test_of_somebody_unknown_changes_nothing(self, log):
        await log.append([CLICK])
        await log.erase("never")

        assert await log.append([CLICK]) == 0


async def test_an_erasure_leaves_nothing_of_the_reader_in_redis(redis: Redis, monkeypatch):
    monkeypatch.setattr("service.store.events._BATCH", 7)
    log = RedisEvents(redis)
    for start in range(0, 60, 10):
        await log.append(
            [
                met(f"n{n}", n / 100, user=("secret-reader", "secret-reader-2", "y")[n % 3])
                for n in range(start, start + 10)
            ]
        )
    await redis.xadd(EVENTS, {"event": b"\xc1secret-reader"})

    await log.erase("secret-reader")

    entries = await redis.xrange(EVENTS)
    assert len(entries) == 40 + 1 + 1
    assert entries[-1][1] == {b"erased": digest_of("secret-reader").encode()}
    assert {family for key in await redis.keys("*") for family in [key.decode().split(":")[2]]} == {
        "events",
        "event",
        "seen",
    }
    assert SEEN + "secret-reader" not in {key.decode() for key in await redis.keys("*")}
    assert [entry for entry in (await left_of(redis)) if entry.get("user_id") == "secret-reader"] == []


async def left_of(redis: Redis) -> list[dict]:
    entries = [fields for _, fields in await redis.xrange(EVENTS) if b"event" in fields]
    return [msgpack.unpackb(fields[b"event"]) for fields in entries if fields[b"event"][:1] != b"\xc1"]


async def test_an_erasure_that_was_interrupted_goes_on_where_it_was(redis: Redis, monkeypatch):
    monkeypatch.setattr("service.store.events._BATCH", 10)
    log = RedisEvents(redis)
    await log.append([met(f"n{n}", 1, user="u" if n % 2 else "v") for n in range(100)])
    calls = 0
    erase = log._erase

    async def dies_after_three(**how: object) -> int:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ConnectionError("killed")
        return await erase(**how)

    log._erase = dies_after_three
    with pytest.raises(StoreUnavailable):
        await log.erase("u")
    assert len(await left_of(redis)) == 100 - 15
    await log.append([met("meanwhile", 0, user="u")])
    calls = 5
    await log.erase("u")

    assert {event["user_id"] for event in await left_of(redis)} == {"v"}
    assert calls == 5 + 8
    assert await log.seen("u") == []


async def test_what_readers_saw_before_is_filled_in_once_from_their_events(redis: Redis, monkeypatch):
    monkeypatch.setattr("service.store.events._TAKEN_IN", 3)
    log = RedisEvents(redis)
    await log.append([met(f"n{n}", n / 10, user=f"u{n % 2}") for n in range(11)])
    await log.erase("u1")
    await redis.xadd(EVENTS, {"event": b"\xc1"})
    older = msgpack.packb(
        {name: getattr(CLICK, name) for name in ("event_id", "user_id", "note_id", "type", "source_note_id")}
        | {"ts": time.time()}
    )
    await redis.xadd(EVENTS, {"event": older})
    seen = await log.seen("u0")
    await redis.delete(*await redis.keys(SEEN + "*"))

    await RedisEvents(redis).complete()

    assert await log.seen("u0") == seen
    assert len(seen) == 6
    assert await log.seen("u1") == ["n2"]
    assert await redis.smembers(COMPLETED) == {b"seen"}
    await redis.delete(SEEN + "u0")
    await RedisEvents(redis).complete()
    assert await log.seen("u0") == []


async def test_what_a_reader_has_seen_expires(redis: Redis):
    await RedisEvents(redis).append([met("n1", 1)])

    assert 89 * 86_400 < await redis.ttl(SEEN + "u1") <= 90 * 86_400


async def test_events_are_kept_in_order_as_they_were(redis: Redis):
    await RedisEvents(redis).append([CLICK, SAVE])

    kept = [msgpack.unpackb(fields[b"event"]) for _, fields in await redis.xrange(EVENTS)]

    assert [Event(**event) for event in kept] == [CLICK, SAVE]


async def test_many_deliveries_at_once_count_each_event_once(redis: Redis):
    log = RedisEvents(redis)

    accepted = await asyncio.gather(*(log.append([CLICK, SAVE]) for _ in range(20)))

    assert sum(accepted) == 2
    assert await redis.xlen(EVENTS) == 2


async def test_without_redis_there_is_no_log():
    with pytest.raises(StoreUnavailable):
        await RedisEvents(open_redis("unix:///nowhere")).append([CLICK])


class TestOutcomes:
    async def test_are_rates_by_source_and_by_position_each_event_once(self, log):
        listed, tagged = "0123456789abcdef.r.model-A1.hot.B", "0123456789abcdef.t.model-A1"
        sent = [
            Event(f"{kind}{n}", f"u{n}", "n", kind, 0.0, answer_id=answer_id, position=position)
            for n in range(40)
            for kind, answer_id, position in (
                ("impression", listed, 1 + n % 20),
                *([("click", listed, 1 + n % 20), ("like", "elsewhere", 1)] if n % 4 == 0 else []),
                *([("view", listed, 1), ("dismiss", listed, 1), ("click", None, 1)] if n % 5 == 0 else []),
            )
        ]
        sent += [replace(one, event_id=f"t{one.event_id}", answer_id=tagged) for one in sent if one.answer_id == listed]
        for _ in range(2):
            await log.append(sent)

        found = await log.outcomes(1)

        both = {source: (rate.shown, rate.clicks) for source, rate in found.sources.items()}
        assert both == {
            AnswerSource("related", "model-A1", "hot.B"): (40, 10),
            AnswerSource("tags", "model-A1", ""): (40, 10),
        }
        by_position = {position: (rate.shown, rate.clicks) for position, rate in found.positions.items()}
        assert by_position == {n: (2, 2 * (n % 4 == 1)) for n in range(1, 11)} | {11: (20, 4)}
        [rate, *_] = found.sources.values()
        assert 0 < rate.share.low < 0.25 < rate.share.high < 0.5

    async def test_more_clicks_than_impressions_are_no_rate_and_none_is_of_yesterday(self, log):
        await log.append([Event("e", "u", "n", "click", 0.0, answer_id="0123456789abcdef.r.m", position=1)])

        assert (await log.outcomes(14)) == Outcomes({}, {})


async def test_outcomes_of_several_days_are_summed_and_those_before_left_out(redis):
    answer_id = "0123456789abcdef.s.m"
    await RedisEvents(redis).append(
        [Event(f"e{n}", f"u{n}", "n", "impression", 0.0, answer_id=answer_id) for n in range(3)]
    )
    today = (await redis.time())[0] // 86_400
    for day in (1, 2, 7):
        await redis.hset(f"{OUTCOMES}{today - day}", mapping={"s.m 1 shown": 10, "s.m 1 clicked": 1})

    [rate] = (await RedisEvents(redis).outcomes(3)).sources.values()

    assert (rate.shown, rate.clicks) == (23, 2)
