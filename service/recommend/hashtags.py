"""The hashtags that the service suggests: scored, ordered, new to the draft, in the community's spelling."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from model.text.hashtags import fold
from model.text.suggestions import Candidate, Scores, TaggedNeighbors, candidates
from service.contract.tags import Source, Vocabulary
from service.recommend.vocabulary import HashtagRules
from service.store.interfaces import NoteStore

NO_RULES = HashtagRules()


@dataclass(frozen=True, slots=True)
class Tag:
    """A suggested hashtag; ``score`` is how likely it is to be right, in 0..1."""

    tag: str
    score: float
    source: Source


def suggest(
    generated: Sequence[tuple[str, float]],
    neighbors: TaggedNeighbors | None,
    known: Iterable[str],
    scores: Scores,
    rules: HashtagRules = NO_RULES,
) -> list[Tag]:
    """Suggestions of the model and of the nearest notes, most likely first, without the hashtags in ``known``.

    Ties keep the order of the model, then of the neighbors. ``neighbors`` is None when the index or the store did not
    answer: the scores are then those of the model alone.

    An alias and the hashtag that it stands for are one, as two spellings are (`candidates`): the likelier one that the
    model wrote counts, and a neighbor votes for it with either, once.
    """
    folded = {fold(tag) for tag in rules.allowed(known)}
    written = [(tag, probability) for text, probability in generated if (tag := rules.stands_for(text)) is not None]
    near = [(cosine, rules.allowed(hashtags)) for cosine, hashtags in neighbors or ()]
    new = [candidate for candidate in candidates(written, near) if candidate.key not in folded]
    tags = [Tag(candidate.tag, _score(candidate, scores, neighbors is None), _source(candidate)) for candidate in new]
    return sorted(tags, key=lambda tag: -tag.score)


def _score(candidate: Candidate, scores: Scores, alone: bool) -> float:
    if alone and candidate.probability is not None:
        return scores.alone(candidate.probability)
    return scores.suggestion(candidate)


def _source(candidate: Candidate) -> Source:
    if candidate.probability is None:
        return "neighbors"
    return "both" if candidate.vote else "generated"


async def from_vocabulary(
    suggested: Sequence[Tag], count: int, vocabulary: Vocabulary, store: NoteStore, rules: HashtagRules = NO_RULES
) -> list[Tag]:
    """The first ``count`` suggestions of a vocabulary, in order, each in the spelling of most live notes.

    The known vocabulary is the hashtags that live notes carry, and those that one of these stands for; the open one has
    all hashtags. One round trip. Raises StoreUnavailable.
    """
    tags = suggested if vocabulary == "known" else suggested[:count]
    names = [[tag.tag, *rules.aliases(tag.tag)] for tag in tags]
    spellings = iter(await store.spellings([name for own in names for name in own]))
    found = [[next(spellings) for _ in own] for own in names]
    spelled = [
        replace(tag, tag=own[0] or tag.tag)
        for tag, own in zip(tags, found, strict=True)
        if any(own) or vocabulary == "open"
    ]
    return spelled[:count]
