"""Experiments in Redis: started, ended, shipped, each in one step, and their models held."""

import asyncio

import pytest
from redis.asyncio import Redis

from service.store.experiments.experiments import Experiments
from service.store.experiments.records import Arm
from service.store.registry import Registry
from service.store.schema import EXPERIMENTS, MODELS

ARMS = Arm("A", "old", {}), Arm("B", "new", {"diversity": 0.2, "duplicates": "keep"})


@pytest.fixture
async def experiments(redis: Redis) -> Experiments:
    await redis.hset(MODELS, mapping={"old": 2, "new": 2, "third": 2})
    assert await Registry(redis).activate("old")
    return Experiments(redis)


async def test_what_was_started_is_read_as_it_was(experiments):
    assert await experiments.changed(None) == (0, [])
    assert await experiments.start("spread", ARMS, 0.5) == "done"

    revision, [found] = await experiments.changed(0)
    assert (found.name, found.arms, found.share, found.runs) == ("spread", ARMS, 0.5, True)
    assert await experiments.changed(revision) is None


async def test_a_name_is_used_once_and_readers_are_in_one_experiment(experiments):
    assert await experiments.start("one", ARMS, 0.6) == "done"
    assert await experiments.start("one", ARMS, 0.1) == "known"
    assert await experiments.start("two", ARMS, 0.5) == "crowded"
    assert await experiments.start("two", ARMS, 0.4) == "done"
    assert await experiments.stop("one") == "done"
    assert await experiments.start("one", ARMS, 0.1) == "known"
    assert await experiments.start("three", ARMS, 0.6) == "done"

    running = [one for one in await experiments.all() if one.runs]
    slots = [slot for one in running for first, behind in one.slots for slot in range(first, behind)]
    assert len(slots) == len(set(slots)) == 1000


async def test_those_that_start_at_once_share_no_reader(experiments):
    outcomes = await asyncio.gather(*(experiments.start(f"e{number}", ARMS, 0.3) for number in range(6)))

    assert sorted(outcomes) == ["crowded"] * 3 + ["done"] * 3
    slots = [slot for one in await experiments.all() for first, behind in one.slots for slot in range(first, behind)]
    assert len(slots) == len(set(slots)) == 900


async def test_a_model_that_is_not_registered_is_in_no_experiment(experiments):
    assert await experiments.start("one", (ARMS[0], Arm("B", "gone", {})), 1.0) == "unregistered"
    assert await experiments.all() == []


async def test_a_model_stays_as_long_as_an_experiment_with_it_runs(redis, experiments):
    registry = Registry(redis)
    await experiments.start("one", ARMS, 1.0)

    assert not await registry.retire("new")
    assert await registry.retire("third")
    assert (await registry.registered()).dims == {"old": 2, "new": 2}
    assert await experiments.stop("one") == "done"
    assert await registry.retire("new")


async def test_to_ship_an_arm_ends_the_experiment_and_activates_its_model(redis, experiments):
    await experiments.start("one", ARMS, 1.0)
    assert await experiments.ship("one", "C") == "unknown"
    assert await experiments.ship("two", "B") == "unknown"
    assert await Registry(redis).active() == "old"

    assert await experiments.ship("one", "B") == "done"

    [found] = await experiments.all()
    assert (found.runs, found.shipped, await Registry(redis).active()) == (False, "B", "new")
    assert found.ended_at is not None
    assert found.ended_at >= found.started_at
    assert await experiments.stop("one") == await experiments.ship("one", "A") == "ended"
    assert await Registry(redis).active() == "new"


async def test_a_record_of_a_later_release_is_passed_over(redis, experiments):
    await experiments.start("one", ARMS, 0.5)
    await redis.hset(EXPERIMENTS, "later", b'{"arms":[],"of":"another kind"}')

    assert [one.name for one in await experiments.all()] == ["one"]
    assert not await Registry(redis).retire("new")
