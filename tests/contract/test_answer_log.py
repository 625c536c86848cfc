"""What every AnswerLog promises."""

import asyncio
import time
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.store.attribution.answers import ServedAnswer, unpack
from service.store.attribution.log import RedisAnswerLog
from service.store.attribution.memory import MemoryAnswerLog
from service.store.attribution.reach import ReachWatch
from service.store.attribution.readers import key_of, name_of
from service.store.interfaces import AnswerLog
from service.store.schema import COUNTS, LISTED, RESTORING, SERVED, SERVED_COUNTS


@dataclass
class Kept:
    """A log, and a look into it."""

    log: AnswerLog
    redis: Redis | None = None

    async def answers(self) -> list[ServedAnswer]:
        if self.redis is None:
            assert isinstance(self.log, MemoryAnswerLog)
            return self.log.kept
        entries = await self.redis.xrange(SERVED)
        return [answer for _, fields in entries for answer in unpack(fields[b"answers"])]

    async def name(self, reader: str) -> str:
        return name_of(reader, MemoryAnswerLog.key if self.redis is None else await key_of(self.redis))


@pytest.fixture(params=["memory", "redis"])
def kept(request: pytest.FixtureRequest) -> Kept:
    if request.param == "memory":
        return Kept(MemoryAnswerLog())
    redis = request.getfixturevalue("redis")
    return Kept(RedisAnswerLog(redis, most=100, days=1), redis)


def answer(number: int, reader: str = "", time_s: float | None = None) -> ServedAnswer:
    now = time.time() if time_s is None else time_s
    return ServedAnswer(f"a{number}", now, "related", "m", [f"n{number}", "京都"], "d", reader, "e", "B", "n", "c")


async def test_it_keeps_answers_as_they_are_but_for_the_readers_name(kept):
    given = [answer(1, "u1"), answer(2), answer(3, "u/1 ☕")]
    await kept.log.append(given[:2])
    await kept.log.append(given[2:])
    await kept.log.append([])

    logged = await kept.answers()

    assert [one._replace(reader="", ids=list(one.ids)) for one in logged] == [one._replace(reader="") for one in given]
    assert [one.reader for one in logged] == [await kept.name("u1"), "", await kept.name("u/1 ☕")]
    assert "u1" not in logged[0].reader


async def test_an_erasure_removes_the_answers_to_one_reader(kept):
    await kept.log.append([answer(number, f"u{number % 3}") for number in range(9)])
    await kept.log.append([answer(number, "u1") for number in range(9, 12)])

    for _ in range(2):
        await kept.log.erase("u1")
        assert [one.answer_id for one in await kept.answers()] == ["a0", "a2", "a3", "a5", "a6", "a8"]


class TestOnRedis:
    @pytest.fixture
    def log(self, redis: Redis) -> RedisAnswerLog:
        return RedisAnswerLog(redis, most=100, days=1)

    async def test_of_too_many_the_oldest_go(self, redis, log):
        for start in range(0, 200, 20):
            await log.append([answer(number) for number in range(start, start + 20)])

        logged = await Kept(log, redis).answers()

        assert [one.answer_id for one in logged] == [f"a{number}" for number in range(100, 200)]
        assert await redis.hget(SERVED_COUNTS, "answers") == b"100"

    async def test_what_is_older_than_its_days_goes(self, redis, log):
        await log.append([answer(1)])
        await asyncio.sleep(0.01)
        await RedisAnswerLog(redis, most=100, days=1e-9).append([answer(2)])

        assert await redis.hget(SERVED_COUNTS, "answers") == b"1"
        assert [one.answer_id for one in await Kept(log, redis).answers()] == ["a2"]

    async def test_an_erasure_holds_for_what_a_gateway_has_not_logged_yet(self, redis, log):
        waits = answer(1, "u1", time.time() - 1)
        await log.erase("u1")
        await log.append([waits, answer(2, "u2"), answer(3, "u1", time.time() + 2)])

        assert [one.answer_id for one in await Kept(log, redis).answers()] == ["a2", "a3"]

    async def test_nothing_is_logged_into_half_a_store(self, redis, log):
        await redis.set(RESTORING, "x")
        with pytest.raises(StoreUnavailable):
            await log.append([answer(1)])


class TestListed:
    async def test_counts_the_places_of_notes_in_lists_of_today_and_yesterday(self, redis):
        log = RedisAnswerLog(redis, most=100, days=1)
        await redis.hset(COUNTS, "live", 5)
        await log.append([answer(1), answer(1), answer(2), answer(3)._replace(scenario="tags", ids=["n1"])])
        today = (await redis.time())[0] // 86_400
        await redis.hset(f"{LISTED}{today - 1}:1", mapping={"n1": 4, "n9": 1})
        await redis.hset(f"{LISTED}{today - 2}:1", mapping={"n1": 100})

        times, notes = await log.listed()

        assert (sorted(times), notes) == ([1, 1, 3, 6], 5)  # n9, n2, the note that stands in all, n1
        assert 0 < await redis.ttl(f"{LISTED}{today}:1") <= 2 * 86_400

    async def test_counts_no_note_that_has_no_place_in_the_sample(self, redis):
        """While a script counts, Redis answers nobody: a batch of long lists names every note of a large catalog."""
        await redis.hset(COUNTS, "live", 80_000)
        answers = [answer(one)._replace(ids=[f"n{100 * one + place}" for place in range(100)]) for one in range(200)]
        before = (await redis.info("commandstats")).get("cmdstat_hincrby", {"calls": 0})["calls"]

        await RedisAnswerLog(redis, most=10_000, days=1).append(answers)

        calls = (await redis.info("commandstats"))["cmdstat_hincrby"]["calls"] - before
        assert 1_000 < calls < 20_000 / 8 * 1.2

    async def test_a_bound_below_one_batch_empties_the_log(self, redis):
        await RedisAnswerLog(redis, most=1, days=1).append([answer(1), answer(2)])

        assert await redis.xlen(SERVED) == 0

    async def test_takes_a_sample_of_many_notes(self, redis, monkeypatch):
        monkeypatch.setattr("service.store.attribution.log.SAMPLED", 100)
        log = RedisAnswerLog(redis, most=10_000, days=1)
        await redis.hset(COUNTS, "live", 800)
        await log.append([answer(0)._replace(ids=[f"n{number}" for number in range(800)])])

        times, notes = await log.listed()

        assert notes == 100
        assert set(times) == {1}
        assert 70 < len(times) < 130

    async def test_the_watch_keeps_its_figures_while_the_store_is_away(self, redis):
        log = RedisAnswerLog(redis, most=100, days=1)
        await redis.hset(COUNTS, "live", 4)
        await log.append([answer(1), answer(1)])
        watch = ReachWatch(log)
        await watch()
        log.listed = _unavailable

        await watch()

        assert (watch.latest.coverage, watch.latest.notes) == (0.5, 4)


async def _unavailable() -> None:
    raise StoreUnavailable("away")
