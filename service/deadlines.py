"""Deadlines: a request has so many seconds, and hands each of its steps a part of what is left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import Unavailable


class Deadline:
    """Hands out time: each step gets a part of what is left, so that a slow one leaves some for the next."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    def share_s(self, part: float = 0.5) -> float:
        """That part of what is left, at least a millisecond."""
        return max(0.001, (self._end - asyncio.get_running_loop().time()) * part)


@asynccontextmanager
async def within(seconds: float, late: type[Unavailable]) -> AsyncIterator[Deadline]:
    """Raises ``late`` when the body takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield Deadline(seconds)
    except TimeoutError:
        raise late("no answer in time") from None
