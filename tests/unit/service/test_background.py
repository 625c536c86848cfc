"""How the tasks beside the main one of a process end."""

import asyncio
from contextlib import suppress

import pytest

from service.background import task


async def test_a_task_that_loses_a_cancellation_does_not_keep_its_process():
    """asyncio.wait_for of Python 3.11 loses one that comes in the same turn as what it waits for."""
    lost = asyncio.Event()

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        lost.set()
        await asyncio.sleep(60)

    async def process() -> None:
        async with task(work()):
            await asyncio.sleep(0)

    ended, _ = await asyncio.wait([asyncio.create_task(process())], timeout=5)
    assert ended
    assert lost.is_set()


async def test_what_failed_beside_the_main_task_is_raised_at_its_end():
    async def work() -> None:
        raise ValueError("beside")

    with pytest.raises(ValueError, match="beside"):
        async with task(work()):
            await asyncio.sleep(0)
