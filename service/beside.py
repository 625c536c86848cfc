"""What runs beside the main task of a process, and ends with it."""

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
async def repeating(call: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    """Call again and again; a call that fails is logged."""

    async def repeat() -> None:
        while True:
            try:
                await call()
            except Exception:
                log.exception("check_failed")
            await asyncio.sleep(every_s)

    async with running(repeat()):
        yield


@asynccontextmanager
async def when(event: asyncio.Event, call: Callable[[], None]) -> AsyncIterator[None]:
    """Call once, when the event is set."""

    async def wait() -> None:
        await event.wait()
        call()

    async with running(wait()):
        yield


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    """Run it; what it raised is raised at the end."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        # Once is not enough: asyncio.wait_for of Python 3.11, which redis-py waits with, may lose it.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_HEARD_S)
        with contextlib.suppress(asyncio.CancelledError):
            task.result()


def stop_event() -> asyncio.Event:
    """Set by SIGINT and SIGTERM."""
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
