"""What a gateway shows of experiments and of turns of learning, as it follows them in the store."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from service.contract.experiments import ArmOut, ExperimentOut, ReportedExperimentOut, ReportOut
from service.contract.fields import time_of
from service.contract.learning import TurnOut
from service.errors import StoreUnavailable
from service.store.experiments.records import Experiment

log = logging.getLogger(__name__)

EVERY_S = 2.0

_KINDS: dict[str, type[ReportOut] | type[TurnOut]] = {"experiment": ReportOut, "turn": TurnOut}
Revised = Callable[[int | None], Awaitable[tuple[int, list[Experiment]] | None]]
Told = Callable[[int | None], Awaitable[tuple[int, dict[tuple[str, str], bytes]] | None]]


@dataclass(frozen=True, slots=True)
class _Finding:
    record: bytes
    shown: ReportOut | TurnOut | None


async def _unheard(_: int | None) -> None:
    return None


class Overview:
    """Experiments with their reports, and turns of learning; a request for them asks no store.

    ``experiments`` and ``findings`` ask the store for all of them unless their revision is still the given one; they
    may raise StoreUnavailable.
    """

    def __init__(self, experiments: Revised = _unheard, findings: Told = _unheard) -> None:
        self._ask_experiments, self._ask_findings = experiments, findings
        self._revision: int | None = None
        self._told: int | None = None
        self._experiments: list[Experiment] = []
        self._findings: dict[tuple[str, str], _Finding] = {}

    async def follow(self) -> None:
        """Hear of changes; what is known stays when the store does not answer."""
        with suppress(StoreUnavailable):
            if heard := await self._ask_experiments(self._revision):
                self._revision, self._experiments = heard
            if told := await self._ask_findings(self._told):
                self._told, records = told
                # Only what is new is decoded: a hundred reports would hold all requests up for tens of milliseconds.
                self._findings = {
                    of: known if (known := self._findings.get(of)) and known.record == record else _finding(of, record)
                    for of, record in records.items()
                }

    def experiments(self) -> list[ExperimentOut]:
        """All of them, the last one first. Raises StoreUnavailable before the store has answered once."""
        self._check()
        return [ExperimentOut.model_validate(_fields(one)) for one in reversed(self._experiments)]

    def experiment(self, name: str) -> ReportedExperimentOut | None:
        """The experiment of this name, with its report. Raises StoreUnavailable, as above."""
        self._check()
        found = next((one for one in self._experiments if one.name == name), None)
        if found is None:
            return None
        told = self._findings.get(("experiment", name))
        return ReportedExperimentOut.model_validate(_fields(found) | {"report": told and told.shown})

    def turns(self) -> list[TurnOut]:
        """The last turns, the last one first. Raises StoreUnavailable, as above."""
        self._check()
        turns = [one.shown for one in self._findings.values() if isinstance(one.shown, TurnOut)]
        return sorted(turns, key=lambda turn: (turn.begun, turn.name), reverse=True)

    def _check(self) -> None:
        if self._told is None:
            raise StoreUnavailable("the store did not answer since this gateway started")


def _fields(one: Experiment) -> dict[str, object]:
    return {
        "name": one.name,
        "state": "runs" if one.runs else "shipped" if one.shipped else "stopped",
        "share": one.share,
        "started": time_of(one.started_at),
        "ended": None if one.ended_at is None else time_of(one.ended_at),
        "shipped": one.shipped,
        "arms": [ArmOut(name=arm.name, model=arm.model, rules=dict(arm.parameters)) for arm in one.arms],
    }


def _finding(of: tuple[str, str], record: bytes) -> _Finding:
    """One that cannot be read, of a later release, is not shown."""
    kind, name = of
    try:
        return _Finding(record, _KINDS[kind].model_validate_json(record))
    except (KeyError, ValidationError):
        log.warning("finding_unreadable", extra={"kind": kind, "finding": name})
        return _Finding(record, None)
