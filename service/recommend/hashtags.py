"""Hashtags as the service suggests them: scored, ordered, without those of the draft, spelled as the community does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from model.text.hashtags import fold
from model.text.suggestions import Candidate, Scores, TaggedNeighbors, candidates
from service.contract.tags import Source, Vocabulary
from service.store.interfaces import NoteStore


@dataclass(frozen=True, slots=True)
class Tag:
    """A suggested hashtag; ``score`` is how likely it is to be right, in 0..1."""

    tag: str
    score: float
    source: Source


def suggest(
    generated: Sequence[tuple[str, float]], neighbors: TaggedNeighbors | None, known: Iterable[str], scores: Scores
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
        return "neighbors"
    return "both" if candidate.vote else "generated"


async def in_use(suggested: Sequence[Tag], count: int, vocabulary: Vocabulary, store: NoteStore) -> list[Tag]:
    """The first ``count`` suggestions, in order, each as most live notes that carry it write it.

    Of the known vocabulary are those that some live note carries, wherever they stand; of the open one the others, too,
    as they were suggested. One round trip. Raises StoreUnavailable.
    """
    asked = suggested if vocabulary == "known" else suggested[:count]
    spellings = await store.spellings([tag.tag for tag in asked])
    known = [
        replace(tag, tag=spelling or tag.tag)
        for tag, spelling in zip(asked, spellings, strict=True)
        if spelling or vocabulary == "open"
    ]
    return known[:count]
