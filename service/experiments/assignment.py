"""Which arm a reader is in, as a gateway follows the experiments.

A reader has one of a thousand slots, by a hash of their id alone, and each slot belongs to one experiment at most: so
nobody is in two. The arm is a hash of the experiment's name and the reader, so that those who were together in one
experiment are mixed anew in the next. Nothing is kept of a reader, and every gateway says the same.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from service.errors import StoreUnavailable
from service.store.experiments.records import SLOTS, Arm, Experiment

log = logging.getLogger(__name__)

Changed = Callable[[int | None], Awaitable[tuple[int, list[Experiment]] | None]]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of an experiment that a reader is in."""

    experiment: str
    arm: Arm


def slot_of(reader: str) -> int:
    """The reader's slot, 0..SLOTS - 1."""
    return _hash("", reader) % SLOTS


def arm_of(experiment: Experiment, reader: str) -> Arm:
    """The reader's arm, each of the two as likely."""
    return experiment.arms[_hash(experiment.name, reader) % 2]


class Assignments:
    """The readers of the running experiments.

    ``changed`` asks the store for all experiments unless their revision is still the given one; it may raise
    StoreUnavailable. Until it has answered, nobody is in an experiment.
    """

    def __init__(self, changed: Changed) -> None:
        self._changed = changed
        self._revision: int | None = None
        self._owners: list[Experiment | None] = [None] * SLOTS
        self._running: frozenset[str] = frozenset()

    def __call__(self, reader: str) -> Assignment | None:
        """The arm that the reader is in, if any."""
        if not self._running:
            return None
        experiment = self._owners[slot_of(reader)]
        return Assignment(experiment.name, arm_of(experiment, reader)) if experiment else None

    async def follow(self) -> None:
        """Hear of changes; what is known stays when the store does not answer."""
        with suppress(StoreUnavailable):
            if heard := await self._changed(self._revision):
                self._revision, experiments = heard
                self._take([one for one in experiments if one.runs])

    def _take(self, running: Sequence[Experiment]) -> None:
        self._owners = [None] * SLOTS
        for experiment in running:
            for first, behind in experiment.slots:
                self._owners[first:behind] = [experiment] * (behind - first)
        names = frozenset(one.name for one in running)
        if names != self._running:
            log.info("experiments", extra={"running": sorted(names)})
        self._running = names


def _hash(salt: str, reader: str) -> int:
    return int.from_bytes(hashlib.blake2b(reader.encode(), digest_size=8, key=salt.encode()).digest())
