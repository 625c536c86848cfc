"""The store's seams, and the shapes that cross them. Only `service.wiring` names the classes that implement them.

`service.store.memory` has a twin of each, which can also hang and fail.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from indexer.types import IndexedVector
from service.store.attribution.answers import ServedAnswer
from service.store.attribution.outcomes import Outcomes
from service.store.records import Event, StoredNote
from service.store.schema import MOST_ATTRIBUTE_NAMES

# What a write requires of its note. None: nothing. "any": it exists. "none": it does not, or was deleted. A number: it
# is at this version.
Expected = int | Literal["any", "none"] | None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A prediction for one version of a note: hashtags and category, or the reason of its failure."""

    version: int
    fingerprint: str
    hashtags: tuple[tuple[str, float], ...] = ()
    category: tuple[str, float] | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """For `/status`: live notes; of one model the failed notes, the waiting jobs and the age of the oldest job."""

    live: int
    failed: int
    queue_depth: int
    oldest_job_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a note was not stored: one of its attributes, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Conflict(Refusal):
    """Live notes carry an attribute of this name with values of another type.

    Types are ``string``, ``number``, ``boolean`` and ``list``.
    """

    known: str
    given: str

    def __str__(self) -> str:
        """In words."""
        return f"attributes.{self.name}: in other notes the type is {self.known}, here it is {self.given}"


@dataclass(frozen=True, slots=True)
class TooManyNames(Refusal):
    """No live note carries an attribute of this name, and together they carry `MOST_ATTRIBUTE_NAMES`."""

    def __str__(self) -> str:
        """In words."""
        return (
            f"attributes.{self.name}: a new name, and the notes already have {MOST_ATTRIBUTE_NAMES:,} different names, "
            "which is the most; use one of these, or take one from every note"
        )


@dataclass(frozen=True, slots=True)
class View:
    """Records, tombstones included, None for ids never seen; and the ids written since a cursor.

    ``written`` is None when they are unknown: there was no cursor, it is too old, or of another store. ``cursor`` is
    the one to pass next; None while nothing was ever written.
    """

    records: list[StoredNote | None]
    written: list[str] | None
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Live notes in byte order of their ids; ``last`` is the id to go on after, None at the end."""

    records: list[StoredNote]
    last: str | None


@dataclass(frozen=True, slots=True)
class UsedHashtag:
    """A hashtag by its key (`model.text.hashtags.fold`): live notes that carry it, and how they spell it."""

    tag: str
    notes: int
    spellings: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class HashtagPage:
    """A part of a list of hashtags; ``next`` is the cursor to pass for the part behind it, None for the last."""

    items: list[UsedHashtag]
    next: str | None


@dataclass(frozen=True, slots=True)
class TrendingHashtag:
    """A hashtag by its key: the newest notes that carry it, and how much more often than those before."""

    tag: str
    notes: int
    lift: float


@dataclass(frozen=True, slots=True)
class HashtagRule:
    """The hashtag with the key ``tag`` stands for ``alias_of``, or is blocked where that is None."""

    tag: str
    alias_of: str | None = None


class NoteStore(Protocol):
    """Notes, and the jobs and changes that a write entails. Every call is one round trip and atomic.

    Raises `StoreUnavailable` when the store does not answer, `QueueFull` on a write when too many jobs wait,
    `NotAsExpected` on one whose ``expected`` does not hold (see `Expected`).
    """

    async def put(self, notes: Sequence[StoredNote], expected: Expected = None) -> list[int | Refusal]:
        """Store notes (their ``version`` is ignored), queue a job for each that changed, return the versions.

        The same body again keeps its version and queues nothing. A deleted note comes back one higher. Where title,
        content and hashtags stay as they were, and a model has predicted for the version before, the prediction is of
        the new one from now on: no job, and the indexes hear of it at once. A note that carries an attribute of another
        type than live notes do, or one name too many, is not stored, and has a `Refusal` in place of its version.
        """
        ...

    async def delete(self, note_id: str, expected: Expected = None) -> bool:
        """Leave a tombstone and tell the index. False if the id was never seen; again changes nothing."""
        ...

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        """Records in the order asked for, tombstones included; None for ids never seen."""
        ...

    async def view(self, note_ids: Sequence[str], since: str | None) -> View:
        """The same, and the ids written since a cursor, as of one moment; for caches."""
        ...

    async def page(self, after: str, limit: int) -> Page:
        """The next live notes after an id, which need not exist, as of one moment; the first ones after an empty id.

        To go on after ``last`` meets every note once that lives all the while, whatever is written to others.
        """
        ...

    async def suggestion(self, note_id: str, fingerprint: str) -> Suggestion | None:
        """This model's last prediction or failure for the note, whatever its version."""
        ...

    async def suggestions(self, note_ids: Sequence[str], fingerprint: str) -> list[Suggestion | None]:
        """The same for several notes, in order."""
        ...

    async def vector(self, note_id: str, fingerprint: str) -> IndexedVector | None:
        """The vector of this model's last prediction for the note, with the version that it is of."""
        ...

    async def counts(self, fingerprint: str) -> Counts:
        """Figures for `/status`. For a model that no worker has registered yet, every live note waits."""
        ...

    async def attribute_types(self) -> Mapping[str, str]:
        """The names of the attributes that live notes carry, with their types: see `Conflict`."""
        ...

    async def spellings(self, tags: Sequence[str]) -> list[str | None]:
        """For each hashtag, in order: the spelling of most live notes that carry it; None when none carries it.

        Hashtags are equal when `fold` makes them so, a note counts once for each, and a tie goes to the last by code
        points, which prefers small letters. Every spelling is one that an answer may hold.
        """
        ...


class HashtagStore(Protocol):
    """The hashtags of the live notes that are not hidden, and the rules for suggesting them.

    Hashtags are named by their keys. Every call raises `StoreUnavailable`.
    """

    async def page(self, prefix: str, after: str, limit: int) -> HashtagPage:
        """Hashtags in use whose key begins with the folded prefix, most used first, then by key.

        ``after`` is empty for the first page, then the last page's ``next``; a hashtag stands for its own place. While
        counts change, a hashtag may move from one page to another, and no other is missed or repeated for it.
        """
        ...

    async def trending(self, days: int, limit: int) -> list[TrendingHashtag]:
        """Hashtags that notes of the last ``days`` carry more often than notes before, see `lists.trends`.

        A note is of the date of its ``created_at``, else of the day of its first write; an edit makes it no newer.
        """
        ...

    async def rules(self, revision: int | None) -> tuple[int, list[HashtagRule]] | None:
        """All rules by key, and their revision; None if it is still this one."""
        ...

    async def put_rule(self, rule: HashtagRule) -> None:
        """Keep a rule, instead of another of its hashtag. Raises AliasLoop if it would lead back to itself."""
        ...

    async def remove_rule(self, tag: str) -> None:
        """Remove the rule of a hashtag, if it has one."""
        ...


class EventLog(Protocol):
    """The events of readers, of which a model is later trained. Each counts once, however often it is sent."""

    async def append(self, events: Sequence[Event]) -> int:
        """Append the events with new ids, all in one step, and return how many. Raises StoreUnavailable."""
        ...

    async def seen(self, user_id: str) -> list[str]:
        """The notes that a reader viewed, clicked, liked, saved or dismissed in the last 90 days, the latest first.

        By the ``ts`` of events, one in the future being of now; the newest 1,000 at most. Impressions count for
        nothing. Raises StoreUnavailable.
        """
        ...

    async def outcomes(self, days: int) -> Outcomes:
        """What became of answers today and on the days before (UTC), by the events that name them.

        Of at most 15 days. Raises StoreUnavailable.
        """
        ...

    async def erase(self, user_id: str) -> None:
        """Remove all that is kept of a reader; ids of their events still count as duplicates.

        The log says so to those who export it, see `service.backup.events`. Again, it changes nothing but that. Raises
        StoreUnavailable; what was removed by then stays so, and the next call goes on.
        """
        ...


class AnswerLog(Protocol):
    """What was answered, for reports and experiments; readers are in it under names, see `attribution.readers`."""

    async def append(self, answers: Sequence[ServedAnswer]) -> None:
        """Append the answers, and drop the oldest beyond the log's bounds. Raises StoreUnavailable."""
        ...

    async def erase(self, reader: str) -> None:
        """Remove the answers to a reader; who exports them hears of it from `EventLog`. Raises StoreUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a write."""

    status: int
    body: bytes
    etag: str = ""


class Answers(Protocol):
    """Idempotent writes: a request repeated with its ``Idempotency-Key`` gets the first answer and does not run."""

    async def once(self, key: str, request: bytes, run: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """The answer to the first request with this key, and whether it is a repeated one.

        A request that fails stores nothing, so that it can be sent again.

        Args:
            key: the caller's key, made unique among callers.
            request: all that distinguishes the request from another.

        Raises:
            KeyReused: if the key came with another request before.
            StillRunning: if the first one has not been answered yet.
            StoreUnavailable: see the store.
        """
        ...
