"""What a gateway knows of experiments and turns while it follows them."""

import pytest

from service.contract.examples import EXAMPLES
from service.contract.learning import TurnOut
from service.errors import StoreUnavailable
from service.experiments.overview import Overview
from service.store.experiments.records import Arm, Experiment

ARMS = Arm("A", "old", {}), Arm("B", "new", {"diversity": 0.2})
TURN = TurnOut.model_validate(EXAMPLES["learning"]["turns"][0])


class Store:
    """Experiments and findings that change as a test says; None of either is a store that is away."""

    def __init__(self) -> None:
        self.experiments: list[Experiment] = []
        self.findings: dict[tuple[str, str], bytes] = {}
        self.away = False
        self.revision = 1

    async def of_experiments(self, revision: int | None) -> tuple[int, list[Experiment]] | None:
        return self._answer(revision, self.experiments)

    async def of_findings(self, revision: int | None) -> tuple[int, dict[tuple[str, str], bytes]] | None:
        return self._answer(revision, self.findings)

    def _answer(self, revision, known):
        if self.away:
            raise StoreUnavailable("away")
        return None if revision == self.revision else (self.revision, known)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def overview(store: Store) -> Overview:
    return Overview(store.of_experiments, store.of_findings)


async def test_nothing_is_said_before_the_store_has_answered_and_what_is_known_stays_when_it_is_away(store, overview):
    store.away = True
    await overview.follow()
    for ask in (overview.experiments, overview.turns, lambda: overview.experiment("one")):
        with pytest.raises(StoreUnavailable):
            ask()

    store.away, store.experiments = False, [Experiment("one", ARMS, ((0, 500),), 1767225600.9)]
    await overview.follow()
    store.away = True
    await overview.follow()

    [one] = overview.experiments()
    assert (one.state, one.share, one.started, one.ended) == ("runs", 0.5, "2026-01-01T00:00:00Z", None)
    assert one.arms[1].rules == {"diversity": 0.2}
    assert overview.experiment("two") is None


async def test_the_last_ones_come_first_and_a_report_stands_with_its_experiment(store, overview):
    report = EXAMPLES["experiment"]["report"]
    store.experiments = [
        Experiment("one", ARMS, ((0, 500),), 1.0, 2.0, "B"),
        Experiment("two", ARMS, ((0, 500),), 3.0, 4.0),
    ]
    later = TURN.model_copy(update={"name": "turn-0003", "begun": "2026-05-11T03:30:00Z"})
    store.findings = {
        ("experiment", "one"): _json(report | {"of a later release": 1}),
        ("turn", "a"): TURN.model_dump_json().encode(),
        ("turn", "b"): later.model_dump_json().encode(),
        ("turn", "c"): b'{"of": "another release"}',
        ("experiment", "two"): b"no JSON",
    }
    await overview.follow()

    assert [(one.name, one.state) for one in overview.experiments()] == [("two", "stopped"), ("one", "shipped")]
    assert overview.turns() == [later, TURN]
    assert overview.experiment("two").report is None
    assert overview.experiment("one").model_dump(mode="json")["report"] == report

    # What did not change is not decoded again, and what did is.
    before, newer = overview.turns()[1], TURN.model_copy(update={"name": "turn-0004"})
    store.revision, store.findings = 2, store.findings | {("turn", "b"): newer.model_dump_json().encode()}
    await overview.follow()
    assert newer in overview.turns()
    assert any(turn is before for turn in overview.turns())


def _json(value: object) -> bytes:
    import json

    return json.dumps(value).encode()
