"""Which cell a note is in, and where the cells lie."""

import asyncio
from collections import Counter

import pytest
from redis.crc import key_slot

from service.store.cells.ring import MOST, Cells, gathered, names
from service.store.cluster.keys import FIRST, prefix

NODES = 3


@pytest.mark.parametrize(("cells", "of_each_node"), [(1, {1}), (3, {1}), (6, {2}), (12, {4}), (MOST, {32, 33, 34, 35})])
def test_cells_lie_evenly_over_the_nodes_of_a_cluster(cells, of_each_node):
    slots = [key_slot(f"{prefix(name)}note:{{x}}".encode()) for name in names(cells)]

    assert len(set(slots)) == cells
    assert set(Counter(slot * NODES // 16_384 for slot in slots).values()) <= of_each_node


def test_the_first_cell_is_always_the_same():
    """A process that is told another number finds there how many there are."""
    assert {names(cells)[0] for cells in range(1, MOST + 1)} == {FIRST}


def test_notes_are_divided_evenly_and_a_note_is_in_one_cell():
    cells = Cells.of("abc")
    ids = [f"n{number}" for number in range(3000)]

    split = cells.split(ids, str)

    assert [cell for cell, _ in split] == ["a", "b", "c"]
    assert all(900 < len(places) < 1100 for _, places in split)
    assert sorted(place for _, places in split for place in places) == list(range(3000))
    assert all(cells.of_note(ids[place]) == cell for cell, places in split for place in places)


async def test_answers_come_in_the_order_of_what_was_asked():
    cells = Cells.of([3, 2, 1])
    ids = [f"n{number}" for number in range(30)]

    async def ask(cell: int, some: list[str]) -> list[str]:
        await asyncio.sleep(0.001 * cell)
        return [note_id.upper() for note_id in some]

    assert await cells.routed(ids, str, ask) == [note_id.upper() for note_id in ids]
    assert await cells.routed([], str, ask) == []


async def test_a_failure_is_raised_when_the_others_have_ended():
    ended = []

    async def call(number: int) -> int:
        await asyncio.sleep(0.001 * number)
        if not number:
            raise OSError("it ended")
        ended.append(number)
        return number

    with pytest.raises(OSError, match="it ended"):
        await gathered(call(number) for number in range(3))
    assert ended == [1, 2]
