"""The store's seams, and the shapes that cross them. What stands behind them is named in `service.wiring` alone.

`service.store.memory` has a twin of each, which can also hang and fail.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.store.records import Event, StoredNote

# None: whatever there is. "any": the note exists. "none": it does not, or was deleted. A number: exactly this version.
Expected = int | Literal["any", "none"] | None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the model said about one version of a note: hashtags and category, or why there is nothing."""

    version: int
    fingerprint: str
    hashtags: tuple[tuple[str, float], ...] = ()
    category: tuple[str, float] | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """For `/status`: live notes, and of one model the notes it gave up, its jobs waiting and the oldest one's age."""

    live: int
    failed: int
    queue_depth: int
    oldest_job_s: float


@dataclass(frozen=True, slots=True)
class View:
    """Records, tombstones included, None for ids never seen; and the ids written since the cursor that was given.

    ``written`` is None when that cannot be told: there was no cursor, it is too old, or of another store. ``cursor`` is
    the one to give next; None while nothing was ever written.
    """

    records: list[StoredNote | None]
    written: list[str] | None
    cursor: str | None


class NoteStore(Protocol):
    """Notes and what follows from writing them. Every call is one round trip and atomic.

    Raises `StoreUnavailable` when the store does not answer, `QueueFull` on a write when too many jobs wait,
    `NotAsExpected` on one whose ``expected`` does not hold (see `Expected`).
    """

    async def put(self, notes: Sequence[StoredNote], expected: Expected = None) -> list[int]:
        """Store notes (their ``version`` is ignored), queue a job for each that changed, return the versions.

        The same body again keeps its version and queues nothing. A deleted note comes back one higher.
        """
        ...

    async def delete(self, note_id: str, expected: Expected = None) -> bool:
        """Leave a tombstone and tell the index. False if the id was never seen; again changes nothing."""
        ...

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        """Records in the order asked for, tombstones included; None for ids never seen."""
        ...

    async def view(self, note_ids: Sequence[str], since: str | None) -> View:
        """The same, and what was written since a cursor, as of one moment: what a cache has to know."""
        ...

    async def suggestion(self, note_id: str, fingerprint: str) -> Suggestion | None:
        """What this model last said about the note, whatever version that was."""
        ...

    async def counts(self, fingerprint: str) -> Counts:
        """Figures for `/status`. For a model that no worker has brought yet, every live note waits."""
        ...

    async def spellings(self, tags: Sequence[str]) -> list[str | None]:
        """For each hashtag, in order: how most live notes that carry it write it; None when none carries it.

        Hashtags are one when `fold` says so, a note counts once for each, and a tie goes to the last by code points,
        which prefers small letters. Every spelling is one that an answer may hold.
        """
        ...


class EventLog(Protocol):
    """Where events are kept until they are learned from."""

    async def append(self, events: Sequence[Event]) -> int:
        """Keep those whose ids are new, all in one step, and return how many. Raises StoreUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a write was answered with."""

    status: int
    body: bytes
    etag: str = ""


class Answers(Protocol):
    """Writes that may be sent again: the same ``Idempotency-Key`` gets the same answer, and nothing is done twice."""

    async def once(self, key: str, request: bytes, run: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """The answer to the first request with this key, and whether it is being given again.

        A request that fails leaves nothing behind, so that it can be sent again.

        Args:
            key: the caller's, with whatever keeps one caller's apart from another's.
            request: all that makes the request what it is.

        Raises:
            KeyReused: if the key came with another request before.
            StillRunning: if the first one has not been answered yet.
            StoreUnavailable: see the store.
        """
        ...
