from collections import deque

import pytest

from service.worker.turns import Turn, next_turn


@pytest.mark.parametrize(
    ("drafts", "backlog", "under_way", "last", "turn"),
    [
        (0, 0, 0, None, None),
        (0, 0, 1, Turn.DRAFTS, None),
        (1, 0, 1, Turn.DRAFTS, Turn.DRAFTS),
        (1, 1, 0, None, Turn.DRAFTS),
        (1, 1, 0, Turn.BACKLOG, Turn.DRAFTS),
        (1, 1, 0, Turn.DRAFTS, Turn.BACKLOG),
        (1, 1, 1, Turn.DRAFTS, Turn.BACKLOG),
        (0, 1, 0, Turn.BACKLOG, Turn.BACKLOG),
        (0, 1, 1, Turn.DRAFTS, Turn.BACKLOG),
        (0, 1, 1, Turn.BACKLOG, None),
        (0, 1, 0, Turn.DRAFTS, Turn.BACKLOG),
    ],
)
def test_drafts_go_first_but_not_twice_in_a_row_while_a_note_waits(drafts, backlog, under_way, last, turn):
    assert next_turn(drafts, backlog, under_way, last) is turn


def test_under_a_flood_of_drafts_half_of_the_turns_go_to_stored_notes():
    turns: deque[Turn | None] = deque([None])
    for _ in range(100):
        turns.append(next_turn(drafts=1000, backlog=1000, under_way=10, last=turns[-1]))

    assert turns.count(Turn.BACKLOG) == turns.count(Turn.DRAFTS) == 50
