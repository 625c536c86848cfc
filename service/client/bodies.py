"""The bodies of requests, as a caller writes them: notes, texts, rules of lists and events."""

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, Required, TypedDict

from ..contract.fields import AttributeValue


class NoteFields(TypedDict, total=False):
    """A note to write; see the contract for the bounds. A title or a content is enough."""

    title: str
    content: str
    hashtags: Sequence[str]
    category: str | None
    author: str | None
    exposure: int
    created_at: str | None
    attributes: Mapping[str, AttributeValue]
    language: str | None
    hidden: bool


class NoteChanges(TypedDict, total=False):
    """What shall be otherwise in a note; None gives the default, also of an attribute."""

    title: str | None
    content: str | None
    hashtags: Sequence[str] | None
    category: str | None
    author: str | None
    exposure: int | None
    created_at: str | None
    attributes: Mapping[str, AttributeValue | None] | None
    language: str | None
    hidden: bool | None


class BulkNote(NoteFields, total=False):
    """A note of a bulk write."""

    note_id: Required[str]


class TextFields(TypedDict, total=False):
    """A text that is not stored; a title or a content is enough."""

    title: str
    content: str
    hashtags: Sequence[str]


class Boost(TypedDict):
    """Notes that match have their score multiplied by ``factor``, 0.1 to 10."""

    filter: str
    factor: float


class ListRules(TypedDict, total=False):
    """Which notes may stand in a list, and in which order; `contract.related.Rules` says what each means."""

    k: int
    offset: int
    filter: str
    category: str | Sequence[str]
    exclude: str | Sequence[str]
    for_user: str
    language: str
    min_score: float
    duplicates: Literal["collapse", "keep"]
    half_life_days: float
    boosts: Sequence[Boost]
    group_by: str
    per_group: int
    diversity: float
    debias: float
    explain: bool


class RelatedRules(ListRules, total=False):
    """The rules of a list that starts from notes."""

    exclude_author: bool


class EventFields(TypedDict):
    """What a reader did with a note; ``ts`` is RFC 3339, or in seconds since 1970."""

    event_id: str
    user_id: str
    note_id: str
    source_note_id: NotRequired[str | None]
    type: Literal["view", "click", "like", "save", "impression", "dismiss"]
    ts: str | float
    value: NotRequired[float | None]
    answer_id: NotRequired[str | None]
    position: NotRequired[int | None]
