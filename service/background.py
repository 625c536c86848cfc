"""Background tasks of a process: each ends with the block that it was started for."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEARD_S = 0.1


@asynccontextmanager
async def every(seconds: float, call: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call again and again, with a pause between; a call that fails is logged."""

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
    """Call once, when the event is set."""

    async def wait() -> None:
        await event.wait()
        call()

    async with task(wait()):
        yield


@asynccontextmanager
async def task(work: Awaitable[None]) -> AsyncIterator[None]:
    """Run it beside the block; what it raised is raised at the end."""
    running = asyncio.ensure_future(work)
    try:
        yield
    finally:
        # Once is not enough: asyncio.wait_for of Python 3.11, which redis-py waits with, may lose it.
        while not running.done():
            running.cancel()
            await asyncio.wait([running], timeout=_HEARD_S)
        with contextlib.suppress(asyncio.CancelledError):
            running.result()


def stop_event() -> asyncio.Event:
    """Set by SIGINT and SIGTERM."""
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
