"""Which cell a note is in, where the cells are, and something of each cell, in order."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from redis.crc import key_slot

from indexer.shards import shard_of
from service.store.cluster.keys import FIRST

T = TypeVar("T")
U = TypeVar("U")
I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")

MOST = 100
_SLOTS = 16_384


def names(cells: int) -> list[str]:
    """The names of so many cells, in order: `FIRST`, and others whose slots divide a cluster's evenly.

    Of ``c01`` to ``c99``, for each the one that is nearest to its place: with another number of cells, another one.
    """
    slots = {name: key_slot(f"{{{name}}}".encode()) for name in (f"c{number:02}" for number in range(MOST))}
    found, begin = [FIRST], slots.pop(FIRST)
    for place in range(1, cells):
        wanted = begin + place * _SLOTS / cells
        nearest = min(slots, key=lambda name: (_distance(slots[name], wanted), name))
        found.append(nearest)
        del slots[nearest]
    return found


def _distance(one: float, other: float) -> float:
    around = (one - other) % _SLOTS
    return min(around, _SLOTS - around)


@dataclass(frozen=True, slots=True)
class Cells(Generic[T]):
    """Something of each cell: a client, a store. The first is the cell of all that belongs to no note."""

    each: tuple[T, ...]

    @classmethod
    def of(cls, each: Iterable[T]) -> "Cells[T]":
        """Of one a cell, in order."""
        return cls(tuple(each))

    @property
    def first(self) -> T:
        """That of the first cell."""
        return self.each[0]

    @property
    def others(self) -> tuple[T, ...]:
        """Those of all cells but the first."""
        return self.each[1:]

    def __len__(self) -> int:
        return len(self.each)

    def __iter__(self) -> Iterator[T]:
        return iter(self.each)

    def map(self, make: Callable[[T], U]) -> "Cells[U]":
        """What is made of each."""
        return Cells(tuple(map(make, self.each)))

    def place_of(self, note_id: str) -> int:
        """The number of the note's cell, as `indexer.shards` divides notes among shards."""
        return shard_of(note_id, len(self.each)) if len(self.each) > 1 else 0

    def of_note(self, note_id: str) -> T:
        """That of the note's cell."""
        return self.each[self.place_of(note_id)]

    def split(self, items: Sequence[I], id_of: Callable[[I], str]) -> list[tuple[T, list[int]]]:
        """The cells that have some of the items, each with the places of its own, in order."""
        places: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(self.place_of(id_of(item)), []).append(place)
        return [(self.each[cell], own) for cell, own in sorted(places.items())]

    async def routed(
        self,
        items: Sequence[I],
        id_of: Callable[[I], str],
        call: Callable[[T, list[I]], Coroutine[Any, Any, Sequence[R]]],
    ) -> list[R]:
        """What the call answers for the items of each cell, all cells at once, in the order of the items.

        Where one raises, the others have ended before it is raised.
        """
        split = self.split(items, id_of)
        answers = await gathered(call(cell, [items[place] for place in own]) for cell, own in split)
        found: dict[int, R] = {}
        for (_, own), answer in zip(split, answers, strict=True):
            found |= zip(own, answer, strict=True)
        return [found[place] for place in range(len(items))]


async def gathered(calls: Iterable[Awaitable[R]]) -> list[R]:
    """The answers to all, in order; the first error once all have ended, so that none goes on unseen."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]
