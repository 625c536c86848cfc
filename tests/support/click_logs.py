"""Click logs as lists, eq. 1 written out over them, and pairs by their ends."""

from fractions import Fraction

import numpy as np

from model.data.events import EventTable
from model.data.pairs import Pairs

Event = tuple[str, str, int, bool]  # user, note, time, clicked


def table(events: list[Event], untimed: int = 0) -> EventTable:
    users, notes, times, clicked = zip(*events, strict=True) if events else ((), (), (), ())
    user_codes, note_codes = ({id_: code for code, id_ in enumerate(dict.fromkeys(ids))} for ids in (users, notes))
    return EventTable(
        np.array([user_codes[user] for user in users], dtype=np.int32),
        np.array([note_codes[note] for note in notes], dtype=np.int32),
        np.array(times, dtype=np.int64),
        np.array(clicked, dtype=np.bool_),
        tuple(note_codes),
        len(user_codes),
        untimed,
    )


def written_out(events: list[Event], ordered: bool) -> dict[tuple[str, str], tuple[Fraction, int]]:
    """Score and users of every pair as eq. 1 reads, user by user, in exact fractions."""
    scores: dict[tuple[str, str], tuple[Fraction, int]] = {}
    for user in {event[0] for event in events}:
        own = [event for event in events if event[0] == user]
        clicks = len({note for _, note, _, clicked in own if clicked})
        found = {
            (a, b)
            for _, a, viewed_at, _ in own
            for _, b, clicked_at, clicked in own
            if clicked and a != b and (viewed_at < clicked_at or not ordered)
        }
        for pair in found:
            score, users = scores.get(pair, (Fraction(0), 0))
            scores[pair] = score + Fraction(1, clicks), users + 1
    return scores


def by_pair(pairs: Pairs) -> dict[tuple[str, str], tuple[float, int]]:
    figures = zip(pairs.scores.tolist(), pairs.users.tolist(), strict=True)
    return dict(zip(pairs.ends(), figures, strict=True))
