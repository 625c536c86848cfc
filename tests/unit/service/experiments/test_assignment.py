"""Who is in which experiment and arm: always the same, evenly, in one at most."""

from collections import Counter

import pytest
from scipy.stats import chisquare

from service.errors import StoreUnavailable
from service.experiments.assignment import Assignments, arm_of, slot_of
from service.experiments.statistics import SPLIT_ERROR_RATE
from service.store.experiments.records import SLOTS, Arm, Experiment, free_slots

ARMS = Arm("A", "old", {}), Arm("B", "new", {})
READERS = [f"reader-{number}" for number in range(20_000)]


def experiment(name: str, *slots: tuple[int, int], ended_at: float | None = None) -> Experiment:
    return Experiment(name, ARMS, slots or ((0, SLOTS),), 1.0, ended_at)


class Store:
    """What the store says of experiments; it can be down."""

    def __init__(self, *experiments: Experiment) -> None:
        self.experiments = list(experiments)
        self.revision = 1
        self.down = False

    async def changed(self, revision: int | None) -> tuple[int, list[Experiment]] | None:
        if self.down:
            raise StoreUnavailable("the store does not answer")
        return None if revision == self.revision else (self.revision, self.experiments)


async def following(*experiments: Experiment) -> tuple[Store, Assignments]:
    store = Store(*experiments)
    assignments = Assignments(store.changed)
    await assignments.follow()
    return store, assignments


def test_slot_and_arm_of_a_reader_are_what_they_were_in_every_release():
    readers = ["u1", "u2", "u3", "u4", "读者"]

    assert [slot_of(reader) for reader in readers] == [325, 494, 791, 963, 421]
    assert "".join(arm_of(experiment("ranker-1"), reader).name for reader in readers) == "ABBAB"


async def test_a_share_of_the_readers_is_in_it_evenly_in_its_arms():
    _, assignments = await following(experiment("half", (0, 200), (300, 600)))
    found = Counter(assigned and assigned.arm.name for assigned in map(assignments, READERS))

    assert chisquare([found["A"] + found["B"], found[None]]).pvalue > SPLIT_ERROR_RATE
    assert chisquare([found["A"], found["B"]]).pvalue > SPLIT_ERROR_RATE


async def test_a_reader_is_in_one_experiment_at_most_and_the_arms_of_the_next_mix_those_of_the_last():
    first, second = experiment("first", (0, 400)), experiment("second", (400, 1000))
    _, assignments = await following(first, second)
    of_both = [assigned.experiment for reader in READERS if (assigned := assignments(reader))]
    assert len(of_both) == len(READERS)
    assert set(of_both) == {"first", "second"}

    later = experiment("later", (0, 400))
    before = [(arm_of(first, reader).name, arm_of(later, reader).name) for reader in READERS]
    assert chisquare(list(Counter(before).values())).pvalue > SPLIT_ERROR_RATE
    assert len(Counter(before)) == 4


async def test_readers_leave_an_experiment_that_ends_and_keep_theirs_while_the_store_is_away():
    store, assignments = await following(experiment("one"))
    assert assignments("u1") is not None
    store.down, store.revision, store.experiments = True, 2, [experiment("one", ended_at=2.0)]
    await assignments.follow()
    assert assignments("u1") is not None

    store.down = False
    await assignments.follow()
    assert assignments("u1") is None


async def test_nobody_is_in_an_experiment_before_the_store_has_answered():
    store = Store(experiment("one"))
    store.down = True
    assignments = Assignments(store.changed)
    await assignments.follow()

    assert assignments("u1") is None


def test_slots_go_to_one_experiment_until_it_ends():
    assert free_slots(0.25, []) == ((0, 250),)
    assert free_slots(0.0001, []) == ((0, 1),)
    running = [experiment("a", (0, 100)), experiment("b", (150, 900)), experiment("over", ended_at=2.0)]
    assert free_slots(0.15, running) == ((100, 150), (900, 1000))
    assert free_slots(0.151, running) is None


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"arms":[]}', b'{"arms":[1,2]}', b"\xff"])
def test_a_record_that_is_none_is_refused_as_one(record):
    with pytest.raises(ValueError, match=r".*"):
        Experiment.decode("one", record)
