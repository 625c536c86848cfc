"""Whose turn it is on the model: drafts or stored notes."""

from enum import Enum


class Turn(Enum):
    """Who uses the model next."""

    DRAFTS = "drafts"
    BACKLOG = "backlog"


def next_turn(drafts: int, backlog: int, last: Turn | None) -> Turn | None:
    """Drafts go first, because somebody waits for them; but never twice in a row while a stored note waits.

    ``drafts`` and ``backlog`` count what waits. None when nothing does.
    """
    if drafts and not (backlog and last is Turn.DRAFTS):
        return Turn.DRAFTS
    return Turn.BACKLOG if backlog else None
