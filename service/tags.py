"""Hashtags as the service suggests them: scored, ordered, and without those that a draft has already."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from model.suggestions import Candidate, Neighbors, Scores, candidates
from model.tags import fold

__all__ = ["Source", "Tag", "fold", "suggest"]

Source = Literal["generated", "neighbours", "both"]


@dataclass(frozen=True, slots=True)
class Tag:
    """A suggested hashtag; ``score`` is how likely it is to be right, in 0..1."""

    tag: str
    score: float
    source: Source


def suggest(
    generated: Sequence[tuple[str, float]], neighbors: Neighbors | None, known: Iterable[str], scores: Scores
) -> list[Tag]:
    """Suggestions of the model and of the nearest notes, most likely first, without the hashtags in ``known``.

    Ties keep the order of the model, then of the neighbors. ``neighbors`` is None when nobody could say which notes are
    near: the model then speaks alone.
    """
    refused = {fold(tag) for tag in known}
    found = [candidate for candidate in candidates(generated, neighbors or ()) if candidate.key not in refused]
    tags = [Tag(candidate.tag, _score(candidate, scores, neighbors is None), _source(candidate)) for candidate in found]
    return sorted(tags, key=lambda tag: -tag.score)


def _score(candidate: Candidate, scores: Scores, alone: bool) -> float:
    if alone and candidate.probability is not None:
        return scores.alone(candidate.probability)
    return scores.suggestion(candidate)


def _source(candidate: Candidate) -> Source:
    if candidate.probability is None:
        return "neighbours"
    return "both" if candidate.vote else "generated"
