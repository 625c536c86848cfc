"""Stored notes through a gateway: written, read and listed, with the status of each.

No HTTP here and no concrete storage. Every public call ends within its deadline.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from indexer.filters.expression import Expression
from indexer.types import IndexedVector, Searcher, ShardUnavailable
from model.text.suggestions import Scores
from service import metrics
from service.contract.notes import NoteStatus
from service.deadlines import Deadline, within
from service.errors import BadRequest, NotAsExpected, NoteNotFound, StoreUnavailable
from service.recommend.note_cache import NoteCache
from service.recommend.seeds import Seeds
from service.recommend.vocabulary import HashtagRules, HashtagVocabulary
from service.setting_groups import HttpSettings
from service.store.interfaces import Expected, NoteStore, Refusal, Suggestion
from service.store.records import StoredNote, fields_of

# The names of fields that every note may have.
_OWN_NAMES = {"category", "author", "language", "exposure", "created_at", "hashtags"}
_NAMES_FRESH_S, _NAMES_WAIT_S = 1.0, 0.25
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.1
# How long a write that is stored waits to learn its status: a write that changed nothing may be searchable already.
_STATUS_S = 0.05
_FRESHNESS_SAMPLE = 1000
# Of a filtered list, a request at most and the store at a time.
_MOST_LOOKED_AT, _LOOKED_AT = 10_000, 500
# How long a delete waits for the index: many times what a shard takes that keeps up with the store.
_LEAVES_S, _FIRST_LOOK_S = 0.25, 0.002


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """An acknowledged write."""

    note_id: str
    version: int
    status: NoteStatus


@dataclass(frozen=True, slots=True)
class NoteDetails:
    """A note, and the status of its current version. ``suggestion`` is for that version, or None."""

    record: StoredNote
    status: NoteStatus
    suggestion: Suggestion | None


@dataclass(frozen=True, slots=True)
class NoteList:
    """Notes in byte order of their ids; the next ones come after the id ``next``, None at the end."""

    notes: list[NoteDetails]
    next: str | None


class AttributeNames:
    """The names of all notes' attributes, asked for once a second at most."""

    def __init__(self, store: NoteStore) -> None:
        self._store = store
        self._known: frozenset[str] = frozenset()
        self._asked_s = -_NAMES_FRESH_S

    async def unknown(self, names: frozenset[str]) -> list[str]:
        """Those of the names in a filter that no note ever had: they match nothing. Raises StoreUnavailable."""
        asked = names - _OWN_NAMES
        if asked <= self._known:
            return []
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s >= _NAMES_FRESH_S:
            async with within(_NAMES_WAIT_S, StoreUnavailable):
                self._known = frozenset(await self._store.attribute_types())
            self._asked_s = now_s
        return sorted(asked - self._known)


class Notes:
    """The notes of a store, as the model with this ``fingerprint`` and its index know them.

    ``scores`` turns the model's figures into probabilities. ``freshness_s`` holds how long the last writes that were
    waited for took to be searchable.
    """

    def __init__(
        self,
        store: NoteStore,
        cache: NoteCache,
        seeds: Seeds,
        searcher: Searcher,
        vocabulary: HashtagVocabulary,
        scores: Scores,
        http: HttpSettings,
        fingerprint: str,
    ) -> None:
        self.freshness_s: deque[float] = deque(maxlen=_FRESHNESS_SAMPLE)
        self._store = store
        self._cache = cache
        self._seeds = seeds
        self._searcher = searcher
        self._vocabulary = vocabulary
        self._scores = scores
        self._http = http
        self._fingerprint = fingerprint

    async def put(self, record: StoredNote, wait_s: float = 0.0, expected: Expected = None) -> WriteReceipt:
        """Store a note; with ``wait_s``, wait up to that long for this version to become searchable.

        A write that changes nothing keeps version and status. Raises StoreUnavailable, QueueFull, NotAsExpected, and
        BadRequest for an attribute of another type than in live notes.
        """
        [version], before = await asyncio.gather(
            self.put_many([record], expected), self._seeds.lookup(record.note.id, _STATUS_S)
        )
        return await self._receipt(record, version, before, wait_s)

    async def patch(
        self, note_id: str, change: Callable[[StoredNote], StoredNote], wait_s: float = 0.0, expected: Expected = None
    ) -> WriteReceipt:
        """Store what ``change`` makes of the note as it stands; see `put`.

        Raises NoteNotFound, and what ``change`` and `put` do.
        """
        async with within(self._http.write_s, StoreUnavailable):
            (record, version), before = await asyncio.gather(
                self._change(note_id, change, expected), self._seeds.lookup(note_id, _STATUS_S)
            )
        return await self._receipt(record, version, before, wait_s)

    async def put_many(self, records: Sequence[StoredNote], expected: Expected = None) -> list[int | Refusal]:
        """Store notes and return their versions, or why one was not stored; of two with one id the later wins.

        A note that is hidden now is in no answer from here on, as one that was deleted; what was known of the others
        is in none either.
        """
        async with within(self._http.write_s, StoreUnavailable):
            versions = await self._store.put(records, expected)
        metrics.NOTES_ACCEPTED.inc(sum(not isinstance(version, Refusal) for version in versions))
        for record in records:
            # What is cached is outdated, though no log says so where Redis goes away now. One that was refused is
            # fetched again, no more.
            if record.hidden or self._cache.peek(record.note.id):
                self._cache.withdraw(record.note.id, deleted=False)
        return versions

    async def delete(self, note_id: str, expected: Expected = None) -> None:
        """Delete a note; a second time changes nothing. Raises NoteNotFound (never seen) and NotAsExpected.

        It waits a moment for the note's shard, which may soon have to answer without the store.
        """
        async with within(self._http.write_s, StoreUnavailable) as deadline:
            known = await self._store.delete(note_id, expected)
        if not known:
            raise NoteNotFound("no note of this id was ever stored")
        self._cache.withdraw(note_id, deleted=True)
        await self._leaves_index(note_id, min(_LEAVES_S, deadline.share_s(1.0)))

    async def details(self, note_id: str) -> NoteDetails:
        """The note, its status and the model's suggestions. Raises NoteNotFound and StoreUnavailable."""
        async with within(self._http.related_s, StoreUnavailable) as deadline:
            [record], suggestion, indexed, rules = await asyncio.gather(
                self._store.get([note_id]),
                self._store.suggestion(note_id, self._fingerprint),
                self._seeds.lookup(note_id, deadline.share_s()),
                self._vocabulary.rules(),
            )
        if record is None or record.deleted:
            raise NoteNotFound("there is no note of this id")
        return self._described(record, suggestion, _version_of(indexed), rules)

    async def page(self, after: str, limit: int, expression: Expression | None = None) -> NoteList:
        """The next live notes after an id that match, hidden, pending and failed ones too, as the store has them now.

        With an expression no more than `_MOST_LOOKED_AT` notes are looked at, for half of the deadline: then ``next``
        says where to go on, be there ``limit`` matching notes or none yet. Raises StoreUnavailable.
        """
        async with within(self._http.write_s, StoreUnavailable) as deadline:
            records, last = await self._matching(after, limit, expression, deadline)
            ids = [record.note.id for record in records]
            suggestions, versions, rules = await asyncio.gather(
                self._store.suggestions(ids, self._fingerprint),
                self._searcher.versions(ids, timeout_s=deadline.share_s()),
                self._vocabulary.rules(),
            )
        return NoteList(
            [
                self._described(record, suggestion, versions.get(record.note.id), rules)
                for record, suggestion in zip(records, suggestions, strict=True)
            ],
            last,
        )

    async def _matching(
        self, after: str, limit: int, expression: Expression | None, deadline: Deadline
    ) -> tuple[list[StoredNote], str | None]:
        """Up to ``limit`` records, and the id to go on after."""
        if expression is None:
            page = await self._store.page(after, limit)
            return page.records, page.last
        found: list[StoredNote] = []
        enough_s = deadline.share_s()
        for _ in range(_MOST_LOOKED_AT // _LOOKED_AT):
            page = await self._store.page(after, _LOOKED_AT)
            for record in page.records:
                if expression.matches(fields_of(record)):
                    found.append(record)
                    if len(found) == limit:
                        at_end = page.last is None and record is page.records[-1]
                        return found, None if at_end else record.note.id
            if page.last is None:
                return found, None
            after = page.last
            if deadline.share_s(1.0) < enough_s:
                break
        return found, after

    def _described(
        self, record: StoredNote, suggestion: Suggestion | None, indexed: int | None, rules: HashtagRules
    ) -> NoteDetails:
        """``indexed`` is the version that the index holds."""
        current = self._scored(suggestion, rules) if suggestion and suggestion.version == record.version else None
        return NoteDetails(record, _status(record.version, indexed, suggestion), current)

    def _scored(self, suggestion: Suggestion, rules: HashtagRules) -> Suggestion:
        hashtags = rules.merged((tag, self._scores.alone(score)) for tag, score in suggestion.hashtags)
        category = suggestion.category and (suggestion.category[0], self._scores.category(suggestion.category[1]))
        return replace(suggestion, hashtags=hashtags, category=category)

    async def _change(
        self, note_id: str, change: Callable[[StoredNote], StoredNote], expected: Expected
    ) -> tuple[StoredNote, int | Refusal]:
        """The changed note and its version. Where none is expected, another write in between means once more.

        What is expected is left to the store: a request that is repeated with its key has changed the version itself.
        """
        while True:
            [stored] = await self._store.get([note_id])
            if stored is None or stored.deleted:
                raise NoteNotFound("there is no note of this id")
            record = change(stored)
            is_any = expected in (None, "any")
            try:
                [version] = await self.put_many([record], stored.version if is_any else expected)
            except NotAsExpected:
                if not is_any:
                    raise
            else:
                return record, version

    async def _receipt(
        self,
        record: StoredNote,
        version: int | Refusal,
        before: IndexedVector | ShardUnavailable | None,
        wait_s: float,
    ) -> WriteReceipt:
        """``before`` is what the index held when the write went out: its version is as high if nothing was changed."""
        note_id = record.note.id
        if isinstance(version, Refusal):
            raise BadRequest(str(version))
        if record.hidden and not wait_s:
            await self._hides(note_id, version, _LEAVES_S)
        if wait_s > 0 and await self._becomes_searchable(note_id, version, wait_s):
            return WriteReceipt(note_id, version, "searchable")
        return WriteReceipt(note_id, version, await self._status_of(note_id, version, before))

    async def _status_of(
        self, note_id: str, version: int, indexed: IndexedVector | ShardUnavailable | None
    ) -> NoteStatus:
        """The status of this version; pending, too, where it cannot be told in a moment."""
        suggestion = None
        if not _is_searchable(indexed, version):
            with contextlib.suppress(StoreUnavailable):
                async with within(_STATUS_S, StoreUnavailable):
                    suggestion = await self._store.suggestion(note_id, self._fingerprint)
        return _status(version, _version_of(indexed), suggestion)

    async def _becomes_searchable(self, note_id: str, version: int, wait_s: float) -> bool:
        clock = asyncio.get_running_loop()
        accepted = clock.time()
        pause_s = _FIRST_POLL_S
        polls = 0
        while (left_s := accepted + wait_s - clock.time()) > 0:
            if _is_searchable(await self._seeds.lookup(note_id, left_s), version):
                if polls:  # the first poll succeeds only when the write changed nothing
                    self._observe_freshness(clock.time() - accepted)
                return True
            polls += 1
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LAST_POLL_S)
        return False

    async def _hides(self, note_id: str, version: int, wait_s: float) -> None:
        """Return when the note's shard knows this version or none, or when the time is over."""

        async def shows() -> bool:
            indexed = await self._seeds.lookup(note_id, wait_s)
            return isinstance(indexed, IndexedVector) and indexed.version < version

        await _while(shows, wait_s)

    async def _leaves_index(self, note_id: str, wait_s: float) -> None:
        """Return when no shard that responds holds the note any more, or when the time is over."""
        await _while(lambda: self._searcher.holds(note_id, timeout_s=wait_s), wait_s)

    def _observe_freshness(self, seconds: float) -> None:
        self.freshness_s.append(seconds)
        metrics.FRESHNESS_SECONDS.observe(seconds)


async def _while(holds: Callable[[], Awaitable[bool]], wait_s: float) -> None:
    """Return when it holds no more, or when the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            pause_s = _FIRST_LOOK_S
            while await holds():
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LAST_POLL_S)


def _version_of(indexed: IndexedVector | ShardUnavailable | None) -> int | None:
    return indexed.version if isinstance(indexed, IndexedVector) else None


def _is_searchable(indexed: IndexedVector | ShardUnavailable | None, version: int) -> bool:
    return isinstance(indexed, IndexedVector) and indexed.version >= version


def _status(version: int, indexed: int | None, suggestion: Suggestion | None) -> NoteStatus:
    if indexed is not None and indexed >= version:
        return "searchable"
    failed = suggestion and suggestion.version == version and suggestion.failure
    return "failed" if failed else "pending"
