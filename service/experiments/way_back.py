"""The way back to the model before, which its own workers take: that one runs is what it needs first."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from service import metrics
from service.errors import StoreUnavailable

log = logging.getLogger(__name__)

EVERY_S = 2.0


class WayBack:
    """Makes the worker's model active again when a gateway has ordered it (`service.experiments.guard`).

    ``take_back`` is that of `service.store.experiments.watches.Watches`.
    """

    def __init__(self, fingerprint: str, take_back: Callable[[str], Awaitable[tuple[str, str, str] | None]]) -> None:
        self._fingerprint = fingerprint
        self._take_back = take_back

    async def __call__(self) -> None:
        """Look once; without the store nothing happens."""
        with suppress(StoreUnavailable):
            if found := await self._take_back(self._fingerprint):
                model, reason, detail = found
                metrics.MODELS_TAKEN_BACK.labels(reason).inc()
                extra = {"fingerprint": model, "active": self._fingerprint, "reason": reason, "detail": detail}
                log.error("model_taken_back", extra=extra)
