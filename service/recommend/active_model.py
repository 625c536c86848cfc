"""Which model answers a request: the active one, as a gateway follows it, or that of an arm of an experiment."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, Protocol, Self, TypeVar

from service import metrics
from service.errors import StoreUnavailable
from service.experiments.assignment import Assignment

log = logging.getLogger(__name__)


class _Answering(Protocol):
    def in_arm(self, assignment: Assignment) -> Self: ...


T = TypeVar("T", bound=_Answering)


class ActiveModel(Generic[T]):
    """The `Recommender` of the active model; ``make`` makes it of the fingerprint, once for each model.

    A request calls this once, so that no answer mixes models.

    Args:
        active: asks the store for the active model's fingerprint, None before there is one; may raise
            StoreUnavailable.
        fingerprint: the active model until the store has named one.
        assigned: the arm that a reader is in, if any.
    """

    def __init__(
        self,
        active: Callable[[], Awaitable[str | None]],
        fingerprint: str,
        make: Callable[[str], T],
        assigned: Callable[[str], Assignment | None] = lambda _: None,
    ) -> None:
        self.fingerprint = fingerprint
        self._active = active
        self._make = make
        self._assigned = assigned
        self._made: dict[str, T] = {}
        self._in_arms: dict[tuple[str, str], T] = {}
        metrics.ACTIVE_MODEL.labels(fingerprint).set(1)

    def __call__(self, reader: str | None = None) -> T:
        """The recommender of the model that is active now; for a reader in an experiment, that of their arm."""
        assignment = None if reader is None else self._assigned(reader)
        if assignment is None:
            return self._of(self.fingerprint)
        key = assignment.experiment, assignment.arm.name
        if key not in self._in_arms:
            self._in_arms[key] = self._of(assignment.arm.model).in_arm(assignment)
        return self._in_arms[key]

    async def follow(self) -> None:
        """Ask the store once which model is active; the last one stays when it does not answer."""
        with suppress(StoreUnavailable):
            active = await self._active()
            if active is not None and active != self.fingerprint:
                log.info("model_active", extra={"fingerprint": active, "before": self.fingerprint})
                metrics.ACTIVE_MODEL.labels(self.fingerprint).set(0)
                metrics.ACTIVE_MODEL.labels(active).set(1)
                self.fingerprint = active

    def _of(self, fingerprint: str) -> T:
        if fingerprint not in self._made:
            self._made[fingerprint] = self._make(fingerprint)
        return self._made[fingerprint]
