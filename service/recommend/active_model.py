"""Which model answers, as a gateway follows it."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from service import metrics
from service.errors import StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


class ActiveModel(Generic[T]):
    """What answers for the active model, made by ``make`` for each model that ever was.

    A request takes it once and keeps it to its end, so that no answer mixes models. Until ``active`` has said which
    model that is, it is the one of ``fingerprint``.

    Args:
        active: asks the store for the active model's fingerprint, None before there is one; may raise
            StoreUnavailable.
    """

    def __init__(self, active: Callable[[], Awaitable[str | None]], fingerprint: str, make: Callable[[str], T]) -> None:
        self.fingerprint = fingerprint
        self._active = active
        self._make = make
        self._made: dict[str, T] = {}
        metrics.ACTIVE_MODEL.labels(fingerprint).set(1)

    def __call__(self) -> T:
        """As of now."""
        if self.fingerprint not in self._made:
            self._made[self.fingerprint] = self._make(self.fingerprint)
        return self._made[self.fingerprint]

    async def follow(self) -> None:
        """Ask once which model is active; to be called over and over. Without an answer the last one stays."""
        with suppress(StoreUnavailable):
            active = await self._active()
            if active is not None and active != self.fingerprint:
                log.info("model_active", extra={"fingerprint": active, "before": self.fingerprint})
                metrics.ACTIVE_MODEL.labels(self.fingerprint).set(0)
                metrics.ACTIVE_MODEL.labels(active).set(1)
                self.fingerprint = active
