"""Whose turn it is to join the model."""

from enum import Enum


class Turn(Enum):
    """The notes that join at the next step."""

    DRAFTS = "drafts"
    BACKLOG = "backlog"


def next_turn(drafts: int, backlog: int, under_way: int, last: Turn | None) -> Turn | None:
    """Drafts go first, because clients wait for them; but never twice in a row while a stored note may join.

    ``drafts`` and ``backlog`` count those that may join, ``under_way`` the drafts in the model: while there are any,
    stored notes join once, because each prompt delays the next token of all. None when nothing is to join.
    """
    if drafts and not (backlog and last is Turn.DRAFTS):
        return Turn.DRAFTS
    return Turn.BACKLOG if backlog and (last is Turn.DRAFTS or not under_way) else None
