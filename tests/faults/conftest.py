"""Rounds with seeds, figures at the end, and the services that several tests strain."""

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.checkpoint import tiny_checkpoint

_FIGURES = pytest.StashKey[dict[str, object]]()


@dataclass(frozen=True, slots=True)
class Round:
    """One round: all that happens by chance follows from the seed."""

    seed: int
    chance: random.Random


Rounds = Callable[[int, int], Iterator[Round]]


@pytest.fixture
def rounds() -> Rounds:
    """So many rounds, shortly or nightly. FAULTS_ROUNDS=N takes N instead, FAULTS_ROUNDS=nightly the nightly number.

    Each prints its seed; FAULTS_SEED is that of the first.
    """
    wanted = os.environ.get("FAULTS_ROUNDS", "short")
    first = int(os.environ.get("FAULTS_SEED") or time.time_ns() % 1_000_000)

    def go(short: int, nightly: int) -> Iterator[Round]:
        count = {"short": short, "nightly": nightly}.get(wanted) or int(wanted)
        for seed in range(first, first + count):
            print(f"FAULTS_SEED={seed} FAULTS_ROUNDS=1 repeats this round")
            yield Round(seed, random.Random(seed))

    return go


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, object]:
    """What a test measured, printed at the end of the run."""
    return request.config.stash[_FIGURES].setdefault(request.node.name, {})


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for test, measured in config.stash[_FIGURES].items():
        if measured:
            shown = ", ".join(f"{name} {value}" for name, value in measured.items())
            terminalreporter.write_line(f"{test.removeprefix('test_').replace('_', ' ')}: {shown}")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, whose worker starts quickly."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder
