"""Notes that clients move in and out of filters all the time, and a checker that knows what each may have been when.

A state is possible during a request if its write was under way then, or was the last one that was acknowledged before.
A write without an answer may happen at any time; its note is then left alone.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from support.clients import TIMEOUT_S

# A patch of attributes holds in answers from the store at once, and within this in those of an index alone.
HOLDS_WITHIN_S = 1.0
PRICES = (1, 60, 140, 260)
TAGS = ((), ("red",), ("red", "Blue"), ("green",))
# No note of these is ever hidden or matches a filter.
FILLERS = [f"filler{number}" for number in range(40)]


@dataclass(frozen=True, slots=True)
class State:
    """What filters compare of a note, None for what it lacks."""

    price: int | None
    sale: bool
    tags: tuple[str, ...]
    hidden: bool

    @classmethod
    def drawn(cls, chance: random.Random) -> Self:
        """Any, seldom a hidden one."""
        price = chance.choice([None, *PRICES])
        return cls(price, chance.random() < 0.5, chance.choice(TAGS), chance.random() < 0.1)

    def patch(self) -> dict[str, Any]:
        """The body of a PATCH to it."""
        attributes = {"price": self.price, "sale": self.sale, "tags": list(self.tags) or None}
        return {"attributes": attributes, "hidden": self.hidden}


Rule = Callable[[State], bool]


def rule(chance: random.Random) -> tuple[str, Rule]:
    """A filter, and the same in Python; every second one is one that nobody asked before."""
    bound = chance.choice([100, 100, 61 + chance.random() * 70])
    return chance.choice(
        [
            (f"price < {bound}", lambda state: state.price is not None and state.price < bound),
            (
                f'sale = true AND price >= {bound} AND NOT tags = "red"',
                lambda state: state.sale and (state.price or 0) >= bound and "red" not in state.tags,
            ),
            (
                f'tags IN ["Blue", "green"] AND (price < {bound} OR sale = false)',
                lambda state: (
                    bool({"Blue", "green"} & {*state.tags})
                    and (not state.sale or (state.price is not None and state.price < bound))
                ),
            ),
            (
                "NOT price EXISTS AND sale EXISTS AND sale != true",
                lambda state: state.price is None and not state.sale,
            ),
        ]
    )


@dataclass(slots=True)
class Write:
    """``ended`` is when it was acknowledged, infinite while it was not."""

    state: State
    begun: float
    ended: float = float("inf")


@dataclass(slots=True)
class History:
    """The writes of one note, in order: one client writes it, one after the other."""

    writes: list[Write] = field(default_factory=list)

    def possible(self, start: float, end: float) -> list[State]:
        """The states that it may have been in between."""
        writes = list(self.writes)
        settled = [number for number, write in enumerate(writes) if write.ended <= start]
        since = writes[settled[-1] :] if settled else writes
        return [write.state for write in since if write.begun <= end]


class Movers:
    """Writers of the notes ``mover0`` and following, and readers, until the end of the block.

    ``problems`` are the notes in answers that cannot have matched, ``seen`` counts those that may have. Readers ask
    at ``asked``, which is the writers' service, or another gateway of it.
    """

    def __init__(self, api: str, seed: int, *, notes: int = 40, asked: str = "") -> None:
        self.histories = {f"mover{number}": History() for number in range(notes)}
        self.unanswered: set[str] = set()  # notes of which the last write has no answer
        self.problems: list[str] = []
        self.patches = self.answers = self.seen = 0
        self._api, self._asked = api, asked or api
        self._stop = threading.Event()
        self._errors: list[Exception] = []
        ids = sorted(self.histories)
        steps = [self._writing(ids[::2]), self._writing(ids[1::2]), self._read, self._read]
        self._threads = [
            threading.Thread(target=self._run, args=(step, random.Random(f"{seed}-{number}")))
            for number, step in enumerate(steps)
        ]

    def __enter__(self) -> Self:
        """Writers start with notes without attributes, which match nothing."""
        titled = titles()
        notes = [{"note_id": note_id, "title": titled[note_id]} for note_id in self.histories]
        assert httpx.post(f"{self._api}/notes", json=notes, timeout=TIMEOUT_S).json()["accepted"] == len(notes)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors and error is None:
            raise self._errors[0]

    def matching(self, holds: Rule) -> set[str]:
        """The notes that match by their last writes, those without an answer aside."""
        return {
            note_id
            for note_id, history in self.histories.items()
            if note_id not in self.unanswered and history.writes and holds(history.writes[-1].state)
        }

    def _run(self, step: Callable[[httpx.Client, random.Random], None], chance: random.Random) -> None:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            while not self._stop.wait(0.002):
                try:
                    step(http, chance)
                except httpx.HTTPError:
                    continue
                except Exception as error:  # of this class: raised at the end of the block
                    self._errors.append(error)
                    return

    def _writing(self, note_ids: Sequence[str]) -> Callable[[httpx.Client, random.Random], None]:
        def write(http: httpx.Client, chance: random.Random) -> None:
            note_id = chance.choice([note_id for note_id in note_ids if note_id not in self.unanswered])
            write = Write(State.drawn(chance), time.monotonic())
            history = self.histories[note_id]
            history.writes.append(write)
            try:
                answer = http.patch(f"{self._api}/notes/{note_id}", json=write.state.patch())
            except httpx.ConnectError:
                history.writes.pop()
                raise
            except httpx.HTTPError:
                self.unanswered.add(note_id)
                raise
            if answer.is_success:
                write.ended = time.monotonic()
                self.patches += 1
            else:
                self.unanswered.add(note_id)

        return write

    def _read(self, http: httpx.Client, chance: random.Random) -> None:
        filter_, holds = rule(chance)
        body = {"k": 100, "filter": filter_, "duplicates": "keep"}
        start = time.monotonic()
        match kind := chance.choice(["get", "post", "search", "list"]):
            case "get":
                answer = http.get(f"{self._asked}/notes/still/related", params=body)
            case "post":
                answer = http.post(f"{self._asked}/notes/still/related", json=body)
            case "search":
                answer = http.post(f"{self._asked}/search", json=body | {"q": "Notes about tea"})
            case "list":
                answer = http.get(f"{self._asked}/notes", params={"limit": 1000, "filter": filter_})
        end = time.monotonic()
        if answer.is_success:
            self.answers += 1
            for item in answer.json()["items"]:
                self._check(f"{kind}: {filter_}", item, holds, start, end, hides=kind != "list")

    def _check(self, asked: str, item: dict[str, Any], holds: Rule, start: float, end: float, *, hides: bool) -> None:
        """A note without a title was not compared with the store."""
        history = self.histories.get(item["note_id"], History())
        states = history.possible(start if "title" in item else start - HOLDS_WITHIN_S, end)
        if any(holds(state) and not (hides and state.hidden) for state in states):
            self.seen += 1
        else:
            compared = "compared" if "title" in item else "not compared"
            settled_s = start - max((write.ended for write in history.writes if write.ended <= start), default=0.0)
            self.problems.append(f"{asked}: {item}, {compared}, for {settled_s:.2f} s one of {states}")


def titles() -> dict[str, str]:
    """Of all notes, by their ids; unlike each other."""
    words = ("ramen", "a night train", "dunes", "granny squares", "a sonata", "sourdough", "a bike", "ten chairs")
    ids = ["still", *(f"mover{number}" for number in range(40)), *FILLERS]
    chosen = itertools.cycle(words)
    return {note_id: f"{next(chosen)} {number} {number * number}" for number, note_id in enumerate(ids)}
