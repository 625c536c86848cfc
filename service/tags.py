"""Hashtags as the service returns them: which are clean, when two are equal, how sources are merged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from model.tags import clean_tag

Source = Literal["generated", "neighbours", "both"]


@dataclass(frozen=True, slots=True)
class Tag:
    """A suggested hashtag; ``score`` is in 0..1."""

    tag: str
    score: float
    source: Source


def fold(raw: str) -> str:
    """What two spellings of one hashtag have in common. Text that is no clean hashtag only loses its case."""
    return clean_tag(raw) or raw.strip().lstrip("#").casefold()


def votes(neighbors: Iterable[tuple[float, Sequence[str]]], count: int) -> dict[str, float]:
    """How strongly related notes speak for each clean hashtag they carry, in 0..1, closest first.

    Each neighbor is its cosine and its hashtags. A hashtag's vote is the sum of the positive cosines of
    those that carry it, over ``count``, the neighbors asked for: a lone distant neighbor cannot outvote the
    model.
    """
    weight: dict[str, float] = {}
    for cosine, hashtags in neighbors:
        for tag in dict.fromkeys(map(clean_tag, hashtags)):
            if tag:
                weight[tag] = weight.get(tag, 0.0) + max(cosine, 0.0) / count
    return {tag: min(total, 1.0) for tag, total in weight.items()}


def merge(generated: Iterable[tuple[str, float]], voted: Mapping[str, float], known: Iterable[str]) -> list[Tag]:
    """Clean suggestions of both sources, most likely first, without those in ``known``.

    The sources count as independent: ``score = 1 - (1 - p) * (1 - v)``, for the model's probability ``p``
    and the neighbors' vote ``v``, either 0 where absent. Ties keep the order of the model, then of the
    neighbors. ``voted`` comes from `votes`.
    """
    probability: dict[str, float] = {}
    for raw, score in generated:
        if tag := clean_tag(raw):
            probability.setdefault(tag, min(max(score, 0.0), 1.0))
    refused = {fold(tag) for tag in known}
    merged = [
        Tag(
            tag,
            1.0 - (1.0 - probability.get(tag, 0.0)) * (1.0 - voted.get(tag, 0.0)),
            _source(tag, probability, voted),
        )
        for tag in dict.fromkeys([*probability, *voted])
        if tag not in refused
    ]
    return sorted(merged, key=lambda tag: -tag.score)


def _source(tag: str, probability: Mapping[str, float], voted: Mapping[str, float]) -> Source:
    if tag in probability:
        return "both" if tag in voted else "generated"
    return "neighbours"
