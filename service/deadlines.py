"""Deadlines: each step of a request gets a share of the time that is left, so that a slow one leaves some."""

import asyncio
from typing import Any

from service.errors import Unavailable


class Deadline:
    """The time at which a request must be answered."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    def share_s(self, part: float = 0.5) -> float:
        """A step's share of the time that is left, at least a millisecond."""
        return max(0.001, (self._end - asyncio.get_running_loop().time()) * part)


class within:  # noqa: N801 - read as a statement: async with within(2.0, late=...)
    """Raises ``late`` when the block takes longer. A class: a generator would double the cost of a fast request."""

    def __init__(self, seconds: float, late: type[Unavailable]) -> None:
        self._seconds = seconds
        self._late = late

    async def __aenter__(self) -> Deadline:
        self._timeout = asyncio.timeout(self._seconds)
        await self._timeout.__aenter__()
        return Deadline(self._seconds)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise self._late("no answer in time") from None
        if kind is TimeoutError:
            raise self._late("no answer in time") from None
