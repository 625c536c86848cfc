"""How the tasks beside a process's main one end, and what the processes import."""

import asyncio
import subprocess
import sys
from contextlib import suppress

import pytest

from service.wiring import _task


async def test_a_task_that_loses_a_cancellation_does_not_keep_its_process():
    """asyncio.wait_for of Python 3.11 loses one that comes in the same turn as what it waits for."""
    lost = asyncio.Event()

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        lost.set()
        await asyncio.sleep(60)

    async def process() -> None:
        async with _task(work()):
            await asyncio.sleep(0)

    ended, _ = await asyncio.wait([asyncio.create_task(process())], timeout=5)
    assert ended
    assert lost.is_set()


async def test_what_failed_beside_the_main_task_is_raised_at_its_end():
    async def work() -> None:
        raise ValueError("beside")

    with pytest.raises(ValueError, match="beside"):
        async with _task(work()):
            await asyncio.sleep(0)


def test_workers_and_indexers_need_no_package_of_the_gateway():
    """Their images have none of them."""
    script = """
import sys
sys.modules |= dict.fromkeys(["fastapi", "starlette", "uvicorn", "httptools", "uvloop"])
from service import cli, logs, wiring
from service import drafts, engine, jobs, sampling, worker
from service import changes, indexes, registry, rollout, store_metrics
from service import backup, event_export, restore
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.returncode == 0
