"""Background tasks of a process: each ends with the block that it was started for."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CANCEL_EVERY_S = 0.1


@asynccontextmanager
async def every(seconds: float, call: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call periodically during the block; a call that fails is logged."""

    async def repeat() -> None:
        while True:
            try:
                await call()
            except Exception:
                log.exception("check_failed")
            await asyncio.sleep(seconds)

    async with task(repeat()):
        yield


@asynccontextmanager
async def on_event(event: asyncio.Event, call: Callable[[], None]) -> AsyncIterator[None]:
    """Call once, if the event is set during the block."""

    async def wait() -> None:
        await event.wait()
        call()

    async with task(wait()):
        yield


@asynccontextmanager
async def task(work: Awaitable[None]) -> AsyncIterator[None]:
    """Run the work until the end of the block, where its error is raised."""
    running = asyncio.ensure_future(work)
    try:
        yield
    finally:
        # Once is not enough: asyncio.wait_for of Python 3.11, which redis-py uses, may lose a cancellation.
        while not running.done():
            running.cancel()
            await asyncio.wait([running], timeout=_CANCEL_EVERY_S)
        with contextlib.suppress(asyncio.CancelledError):
            running.result()


def stop_event() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
