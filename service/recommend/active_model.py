"""The active model, as a gateway follows it."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from service import metrics
from service.errors import StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


class ActiveModel(Generic[T]):
    """The `Recommender` of the active model; ``make`` makes it of the fingerprint, once for each model.

    A request calls this once, so that no answer mixes models.

    Args:
        active: asks the store for the active model's fingerprint, None before there is one; may raise
            StoreUnavailable.
        fingerprint: the active model until the store has named one.
    """

    def __init__(self, active: Callable[[], Awaitable[str | None]], fingerprint: str, make: Callable[[str], T]) -> None:
        self.fingerprint = fingerprint
        self._active = active
        self._make = make
        self._made: dict[str, T] = {}
        metrics.ACTIVE_MODEL.labels(fingerprint).set(1)

    def __call__(self) -> T:
        """The recommender of the model that is active now."""
        if self.fingerprint not in self._made:
            self._made[self.fingerprint] = self._make(self.fingerprint)
        return self._made[self.fingerprint]

    async def follow(self) -> None:
        """Ask the store once which model is active; the last one stays when it does not answer."""
        with suppress(StoreUnavailable):
            active = await self._active()
            if active is not None and active != self.fingerprint:
                log.info("model_active", extra={"fingerprint": active, "before": self.fingerprint})
                metrics.ACTIVE_MODEL.labels(self.fingerprint).set(0)
                metrics.ACTIVE_MODEL.labels(active).set(1)
                self.fingerprint = active
