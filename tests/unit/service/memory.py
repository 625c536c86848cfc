"""The gateway's seams in memory: real implementations of NoteStore, Searcher, Drafter, and an app over them.

``down`` and ``hangs`` stand for a socket that breaks or stays silent; the store answers while ``open`` is set. The
model is a bag of words: texts that share words are close, and a test can say by hand which are closer.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import httpx
import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from indexer.types import Answer, Found, Held, Neighbor, ShardStatus, ShardUnavailable
from model.backends.base import Reading, Scored
from model.note import Note
from model.suggestions import spelled
from model.tags import fold
from service.app import create_app
from service.errors import NotAsExpected, QueueFull, StoreUnavailable, WorkerUnavailable
from service.events import Event
from service.idempotency import Answers
from service.keys import Keyring
from service.recommend import Recommender
from service.settings import HttpSettings, IndexSettings, Settings
from service.store import Counts, Expected, StoredNote, Suggestion, View, open_redis

FINGERPRINT = "bag-of-words"
DIM = 256


def bag_of_words(note: Note) -> NDArray[np.float32]:
    """Unit vector of a note's words, shape (DIM,): one random direction a word, the same in every run."""
    total = np.full(DIM, 1e-3, dtype=np.float32)
    for word in f"{note.title} {note.content}".split():
        seed = int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big")
        total += np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return total / np.linalg.norm(total)


class MemoryStore:
    """NoteStore in a dict."""

    def __init__(self, max_queue: int = 1_000_000) -> None:
        self.down = False
        self.hangs = False
        self.open = asyncio.Event()
        self.open.set()
        self.jobs: list[tuple[str, int]] = []
        self._max_queue = max_queue
        self._records: dict[str, StoredNote] = {}
        self._suggestions: dict[str, Suggestion] = {}
        self._log: list[str] = []
        self.views = 0

    async def put(self, notes: Sequence[StoredNote], expected: Expected = None) -> list[int]:
        await self._answer()
        if expected is not None:
            self._expect(notes[0].note.id, expected)
        if len(self.jobs) + len(notes) > self._max_queue:
            raise QueueFull("too many notes wait to be embedded")
        return [self._put(record) for record in notes]

    async def delete(self, note_id: str, expected: Expected = None) -> bool:
        await self._answer()
        old = self._records.get(note_id)
        if old and expected is not None:
            self._expect(note_id, expected)
        if old and not old.deleted:
            self._log.append(note_id)
            self._records[note_id] = StoredNote(Note(note_id), old.version + 1, deleted=True)
            self._suggestions.pop(note_id, None)
        return old is not None

    async def get(self, note_ids: Sequence[str]) -> list[StoredNote | None]:
        await self._answer()
        return [self._records.get(note_id) for note_id in note_ids]

    async def view(self, note_ids: Sequence[str], since: str | None) -> View:
        self.views += 1
        records = await self.get(note_ids)
        end = len(self._log)
        return View(records, None if since is None else self._log[int(since) : end], str(end) if end else None)

    async def suggestion(self, note_id: str, fingerprint: str) -> Suggestion | None:
        await self._answer()
        return self._suggestions.get(note_id)

    async def counts(self, fingerprint: str) -> Counts:
        await self._answer()
        live = sum(not record.deleted for record in self._records.values())
        failed = sum(suggestion.failure is not None for suggestion in self._suggestions.values())
        return Counts(live, failed, len(self.jobs), oldest_job_s=0.5 if self.jobs else 0.0)

    async def spellings(self, tags: Sequence[str]) -> list[str | None]:
        await self._answer()
        live = [spelled(record.note.hashtags) for record in self._records.values() if not record.deleted]
        counts = [Counter(written[fold(tag)] for written in live if fold(tag) in written) for tag in tags]
        return [max(count, key=lambda spelling: (count[spelling], spelling), default=None) for count in counts]

    def suggest(self, note_id: str, suggestion: Suggestion) -> None:
        """What a worker leaves behind after it has read a note, or given it up."""
        self._suggestions[note_id] = suggestion

    def _put(self, record: StoredNote) -> int:
        old = self._records.get(record.note.id)
        if old and replace(record, version=old.version) == old:
            return old.version
        version = old.version + 1 if old else 1
        self._records[record.note.id] = replace(record, version=version)
        self.jobs.append((record.note.id, version))
        self._log.append(record.note.id)
        return version

    def _expect(self, note_id: str, expected: Expected) -> None:
        old = self._records.get(note_id)
        exists = old is not None and not old.deleted
        holds = (
            exists if expected == "any" else not exists if expected == "none" else exists and old.version == expected
        )
        if not holds:
            raise NotAsExpected("the note is not at the version that the request names")

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await self.open.wait()
        if self.down:
            raise StoreUnavailable("the store does not answer")


class MemorySearcher:
    """Searcher over exact matrices, one dict a shard; ``down`` holds the shards that do not answer."""

    def __init__(self, shards: int = 2) -> None:
        self.down: set[int] = set()
        self.generation = 3
        self.searches = 0
        self._shards: list[dict[str, Held]] = [{} for _ in range(shards)]
        self._labels: dict[str, tuple[str | None, str | None]] = {}

    async def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        exclude: Sequence[str] = (),
        *,
        category: str | None = None,
        exclude_author: str | None = None,
        timeout_s: float,
    ) -> Found:
        self.searches += 1
        up = [shard for number, shard in enumerate(self._shards) if number not in self.down]
        scored = [
            Neighbor(note_id, float(vector @ held.vector))
            for shard in up
            for note_id, held in shard.items()
            if note_id not in exclude
            and category in (None, self._labels[note_id][0])
            and (exclude_author is None or exclude_author != self._labels[note_id][1])
        ]
        nearest = sorted(scored, key=lambda neighbor: -neighbor.score)[:k]
        hits = Answer([neighbor.id for neighbor in nearest], [neighbor.score for neighbor in nearest])
        return Found(hits, self.generation, len(up), len(self._shards))

    async def lookup(self, id: str, *, timeout_s: float) -> Held | None:  # noqa: A002
        if self.shard_of(id) in self.down:
            raise ShardUnavailable("no answer")
        return self._shards[self.shard_of(id)].get(id)

    async def vectors(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, NDArray[np.float32]]:
        up = [shard for number, shard in enumerate(self._shards) if number not in self.down]
        return {id_: shard[id_].vector for shard in up for id_ in ids if id_ in shard}

    async def status(self, *, timeout_s: float) -> list[ShardStatus]:
        return [
            ShardStatus(number, len(shard), self.generation, "flat", FINGERPRINT, "0-1", 1.0, 0)
            for number, shard in enumerate(self._shards)
            if number not in self.down
        ]

    def shard_of(self, note_id: str) -> int:
        """The shard that holds the id."""
        return sum(note_id.encode()) % len(self._shards)

    def hold(
        self,
        note_id: str,
        version: int,
        vector: NDArray[np.float32],
        category: str | None = None,
        author: str | None = None,
    ) -> None:
        """What following the stream does to the index."""
        self._labels[note_id] = (category, author)
        self._shards[self.shard_of(note_id)][note_id] = Held(version, vector)

    def forget(self, note_id: str) -> None:
        """What a delete on the stream does to the index."""
        self._shards[self.shard_of(note_id)].pop(note_id, None)


class MemoryEvents:
    """EventLog in a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, Event] = {}

    async def append(self, events: Sequence[Event]) -> int:
        before = len(self.kept)
        self.kept = {event.event_id: event for event in events} | self.kept
        return len(self.kept) - before


class WordDrafter:
    """Drafter over `bag_of_words`: a title's words are its hashtags, each half as likely as the last."""

    def __init__(self) -> None:
        self.down = False
        self.hangs = False
        self.category: Scored | None = Scored("Travel", 0.93)

    async def read(self, note: Note, max_hashtags: int, *, timeout_s: float) -> Reading:
        if self.hangs:
            await asyncio.Event().wait()
        if self.down:
            raise WorkerUnavailable("no worker answered in time")
        words = note.title.split()[:max_hashtags]
        tags = tuple(Scored(word, 0.8 / 2**place) for place, word in enumerate(words))
        return Reading(bag_of_words(note), tags, self.category)

    async def ready(self, *, timeout_s: float) -> bool:
        return not self.down


class MemoryGateway:
    """A whole gateway in memory; `drain` and `publish` play the worker and the index.

    Without a ``redis``, no write may carry an idempotency key.
    """

    def __init__(self, keys: Keyring | None = None, redis: Redis | None = None, **http: float) -> None:
        self.store = MemoryStore()
        self.searcher = MemorySearcher()
        self.drafter = WordDrafter()
        settings = Settings(http=HttpSettings.model_validate(http), index=IndexSettings(addresses=("shard0", "shard1")))
        self.events = MemoryEvents()
        self.recommender = Recommender(self.store, self.events, self.searcher, self.drafter, settings, FINGERPRINT)
        answers = Answers(redis or open_redis("unix:///nowhere"))
        self.app = create_app(lambda: self.recommender, answers, settings, keys)

    def client(self) -> httpx.AsyncClient:
        """An HTTP client of the app; a 500 is an answer here, not an exception in the test."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def publish(self, *notes: Note | StoredNote) -> None:
        """Store notes and make them searchable."""
        await self.store.put([note if isinstance(note, StoredNote) else StoredNote(note, 0) for note in notes])
        await self.drain()

    async def drain(self) -> None:
        """Read every queued note and put it into the index."""
        for note_id, version in self.store.jobs:
            [record] = await self.store.get([note_id])
            if record and record.version == version and not record.deleted:
                self.store.suggest(note_id, Suggestion(version, FINGERPRINT, (("suggested", 0.5),), ("Travel", 0.9)))
                self.searcher.hold(note_id, version, bag_of_words(record.note), record.note.category, record.author)
        self.store.jobs.clear()
