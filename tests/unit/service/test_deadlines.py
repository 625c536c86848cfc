"""How the time of a request is shared out among its steps."""

import asyncio

import pytest
from support.gateway import MemoryGateway

from service.deadlines import Deadline, within
from service.errors import StoreUnavailable


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock


async def test_a_step_gets_its_share_of_the_time_that_is_left(clock):
    deadline = Deadline(8.0)
    assert [deadline.share_s(), deadline.share_s(0.25)] == [4.0, 2.0]

    clock.now += 6.0
    assert [deadline.share_s(), deadline.share_s(0.25)] == [1.0, 0.5]


async def test_a_step_that_comes_too_late_gets_a_millisecond(clock):
    deadline = Deadline(8.0)
    clock.now += 9.0

    assert deadline.share_s() == 0.001


async def test_a_block_that_takes_longer_is_cancelled_and_unavailable():
    with pytest.raises(StoreUnavailable):
        async with within(0.01, late=StoreUnavailable):
            await asyncio.Event().wait()


async def test_a_step_that_timed_out_by_itself_is_unavailable_too():
    with pytest.raises(StoreUnavailable):
        async with within(60.0, late=StoreUnavailable):
            raise TimeoutError


async def test_an_error_of_the_block_is_its_own():
    with pytest.raises(ValueError, match="ours"):
        async with within(60.0, late=StoreUnavailable):
            raise ValueError("ours")


async def test_a_store_that_hangs_leaves_time_for_suggestions_without_it():
    gateway = MemoryGateway(related_s=0.5, tags_s=1.0)
    gateway.store.hangs = True

    async with gateway.client() as client:
        answer = await client.post("/notes/tags", json={"title": "tea"})

    assert answer.status_code == 200
    assert [tag["tag"] for tag in answer.json()["hashtags"]] == ["tea"]
