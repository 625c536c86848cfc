"""A whole gateway over the twins of its seams: the application as `service.wiring` makes it, in memory."""

import httpx

from indexer.serving.memory import MemorySearcher
from indexer.types import IndexedVector
from model.note import Note
from service.api.app import create_app
from service.keys import Keyring
from service.recommend.memory import FINGERPRINT, WordDrafter, bag_of_words
from service.recommend.recommender import Recommender
from service.recommend.vocabulary import HashtagVocabulary
from service.setting_groups import HttpSettings, IndexSettings
from service.settings import Settings
from service.store.attribution.buffer import AnswerBuffer
from service.store.attribution.memory import MemoryAnswerLog
from service.store.hashtags.memory import MemoryHashtags
from service.store.interfaces import Answers, Suggestion
from service.store.memory import MemoryAnswers, MemoryEvents, MemoryStore
from service.store.records import StoredNote, fields_of


class MemoryGateway:
    """A whole gateway in memory; `drain` and `publish` play the worker and the index."""

    def __init__(self, keys: Keyring | None = None, answers: Answers | None = None, **http: object) -> None:
        self.store = MemoryStore()
        self.searcher = MemorySearcher(fingerprint=FINGERPRINT)
        self.drafter = WordDrafter()
        self.settings = Settings(
            http=HttpSettings.model_validate(http), index=IndexSettings(addresses=("shard0", "shard1"))
        )
        self.events = MemoryEvents()
        self.answers = answers or MemoryAnswers()
        self.hashtags = MemoryHashtags(self.store)
        self.vocabulary = HashtagVocabulary(self.hashtags, self.settings.http.related_s)
        self.seams = self.store, self.events, self.vocabulary, self.searcher, self.drafter
        self.recommender = Recommender(*self.seams, self.settings, FINGERPRINT)
        self.served = MemoryAnswerLog()
        self.buffer = AnswerBuffer(self.served)
        self.app = create_app(lambda _: self.recommender, self.answers, self.settings, keys, buffer=self.buffer)

    def client(self) -> httpx.AsyncClient:
        """An HTTP client of the app; a 500 is an answer here, not an exception in the test."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        # What is sent as bytes is JSON unless a test says otherwise.
        headers = {"Content-Type": "application/json"}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    async def publish(self, *notes: Note | StoredNote) -> None:
        """Store notes and make them searchable."""
        await self.store.put([note if isinstance(note, StoredNote) else StoredNote(note, 0) for note in notes])
        await self.drain()

    async def drain(self) -> None:
        """Predict for every queued note, and index it and those whose prediction moved."""
        for note_id, version in self.store.jobs + self.store.moved:
            [record] = await self.store.get([note_id])
            if record and record.version == version and not record.deleted:
                self.store.suggest(note_id, Suggestion(version, FINGERPRINT, (("suggested", 0.5),), ("Travel", 0.9)))
                self.store.predict(note_id, IndexedVector(version, bag_of_words(record.note)))
                self.searcher.put(note_id, version, bag_of_words(record.note), fields_of(record), hidden=record.hidden)
        self.store.jobs.clear()
        self.store.moved.clear()
