"""The order of a list: scores, the least of them, near copies, groups, diversity. Pure functions."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.text.hashtags import clean_tags
from service.recommend.near_copies import different
from service.recommend.note_cache import NoteSummary
from service.recommend.query import RelatedQuery

_DAY_S = 86_400.0


class RelatedNote(NamedTuple):
    """A related note. ``summary`` is None while the store does not answer; then the other terms change nothing."""

    note_id: str
    cosine: float
    summary: NoteSummary | None
    popularity: float = 0.0
    half_life: float = 1.0
    boosts: float = 1.0

    @property
    def score(self) -> float:
        """``(cosine - popularity) * half_life * boosts``; a negative one is divided by the boosts."""
        score = (self.cosine - self.popularity) * self.half_life
        return score * self.boosts if score > 0 else score / self.boosts


class Ranked(NamedTuple):
    """Notes by descending score, and the near copies that were left out of them."""

    notes: list[RelatedNote]
    copies: list[RelatedNote]


def ranked(
    notes: Iterable[RelatedNote], query: RelatedQuery, origins: Sequence[NoteSummary], weight: float, now_s: float
) -> Ranked:
    """Notes, closest first, as the query orders them, up to its diversity.

    Args:
        origins: the notes that the list starts from; their near copies are left out, too.
        weight: see `popularity`.
        now_s: seconds since 1970, for the age of notes.
    """
    scored = list(notes)
    if query.debias or query.half_life_days or query.boosts:
        scored = [_scored(note, query, weight, now_s) for note in scored]
        scored.sort(key=lambda note: -note.score)
    if query.min_score is not None:
        scored = [note for note in scored if query.is_high_enough(note.score)]
    kept, copies = _without_copies(scored, origins) if query.collapse else (scored, [])
    return Ranked(_grouped(kept, query.group_by, query.per_group) if query.group_by else kept, copies)


def _scored(note: RelatedNote, query: RelatedQuery, weight: float, now_s: float) -> RelatedNote:
    if note.summary is None:
        return note
    return note._replace(
        popularity=popularity(note.summary.exposure, query.debias, weight) if query.debias else 0.0,
        half_life=half_life(note.summary.created_at, query.half_life_days, now_s) if query.half_life_days else 1.0,
        boosts=query.boost(note.summary),
    )


def popularity(exposure: int, debias: float, weight: float) -> float:
    """The prior subtracted from a note's cosine: ``debias * weight * log(1 + exposure)`` (see `evaluation.debias`)."""
    return debias * weight * math.log1p(exposure)


def half_life(created_at: float | None, days: float, now_s: float) -> float:
    """What its age, in seconds since 1970, leaves of a score: ``0.5 ** (age / days)``; 1 without one, or in future."""
    age_s = max(0.0, now_s - created_at) if created_at is not None else 0.0
    return float(0.5 ** (age_s / _DAY_S / days))


def _without_copies(
    notes: list[RelatedNote], origins: Sequence[NoteSummary]
) -> tuple[list[RelatedNote], list[RelatedNote]]:
    """The notes without near copies of the origins and of notes above them; and those. All have a summary, or none."""
    prints = [note.summary.fingerprint for note in notes if note.summary]
    kept = different(prints, [origin.fingerprint for origin in origins])
    if len(kept) == len(prints):
        return notes, []
    is_kept = set(kept)
    return [notes[place] for place in kept], [note for place, note in enumerate(notes) if place not in is_kept]


def _grouped(notes: Iterable[RelatedNote], name: str, per_group: int) -> list[RelatedNote]:
    """The first ``per_group`` notes of each value; a note without one is a group of its own."""
    counts = Counter[object]()
    kept = []
    for note in notes:
        value = note.summary.fields.get(name) if note.summary else None
        if isinstance(value, tuple):
            value = value[0] if value else None
        if value is not None:
            key = type(value), value  # True is no 1
            counts[key] += 1
            if counts[key] > per_group:
                continue
        kept.append(note)
    return kept


def diverse(scores_N: Sequence[float], vectors_ND: NDArray[np.float32], k: int, diversity: float) -> list[int]:
    """Positions of k >= 1 of N >= 1 notes by maximal marginal relevance (Carbonell and Goldstein, 1998), ascending.

    The first note has the highest score; each next one the highest ``(1 - diversity) * score - diversity *
    similarity``, where the similarity is its largest cosine to the notes chosen before.

    Args:
        scores_N: descending.
        vectors_ND: unit vectors; a row of zeros is similar to no other.
    """
    relevance_N = (1.0 - diversity) * np.asarray(scores_N)
    similarity_N = np.full(len(scores_N), -np.inf)
    chosen = [0]
    while len(chosen) < min(k, len(scores_N)):
        similarity_N = np.maximum(similarity_N, vectors_ND @ vectors_ND[chosen[-1]])
        marginal_N = relevance_N - diversity * similarity_N
        marginal_N[chosen] = -np.inf
        chosen.append(int(marginal_N.argmax()))
    return sorted(chosen)


def in_common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The clean hashtags that two notes share, in the order of the first."""
    shared = set(clean_tags(list(other)))
    return [tag for tag in clean_tags(list(one)) if tag in shared]
