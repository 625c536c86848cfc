"""Two workers that are killed and stopped, an author who writes meanwhile, and what must be there in the end."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import support
from redis.asyncio import Redis

from indexer.index import VectorIndex
from model.inference.hashing import BAD, DIM, text_vector
from model.note import Note
from service.store.changes import RedisChangeStream
from service.store.connection import open_sync_redis
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.schema import FILLED, JOBS, READINGS, WORKERS

FINGERPRINT = "hashing-a"
NAMES = ("w0", "w1")


class Lives:
    """The workers, each one process at a time."""

    def __init__(self, forks: "subprocess.Popen[str]") -> None:
        self._forks = forks
        self._processes = {name: self._start(name) for name in NAMES}

    def kill(self, name: str) -> None:
        """kill -9, and a new life under the same name."""
        os.kill(self._processes[name], signal.SIGKILL)
        self._processes[name] = self._start(name)

    def stop(self, name: str) -> None:
        """SIGSTOP: it stands still in the middle of what it does."""
        os.kill(self._processes[name], signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT: it does not know how much time has passed."""
        os.kill(self._processes[name], signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM."""
        for process in self._processes.values():
            os.kill(process, signal.SIGCONT)
            os.kill(process, signal.SIGTERM)

    def _start(self, name: str) -> int:
        assert self._forks.stdin
        assert self._forks.stdout
        self._forks.stdin.write(f"{name}\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())


@contextmanager
def lives(url: str, without: str = "") -> Iterator[Lives]:
    """Both at work, ``without`` one of the safeguards of `support.worker_process`."""
    command = [sys.executable, "-P", "-m", "support.worker_process", url, without]
    paths = [str(Path(support.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as forks:
        both = Lives(forks)
        try:
            yield both
        finally:
            both.end()


class Author:
    """Writes notes, writes some again and deletes some; ``titles`` is what must be found in the end."""

    def __init__(self, store: RedisStore, seed: int) -> None:
        self.titles: dict[str, str] = {}
        self.deleted: set[str] = set()
        self._store = store
        self._random = random.Random(seed)

    async def write(self, count: int) -> None:
        """So many new notes, and for every ten of them one written again and one deleted."""
        first = len(self.titles) + len(self.deleted)
        fresh = [f"n{number}" for number in range(first, first + count)]
        await self.rewrite([*fresh, *self._random.sample(sorted(self.titles), min(len(self.titles), count // 10))])
        for note_id in self._random.sample(sorted(self.titles), count // 10):
            assert await self._store.delete(note_id)
            del self.titles[note_id]
            self.deleted.add(note_id)
        if self.deleted:
            # One comes back.
            await self.rewrite([self._random.choice(sorted(self.deleted))])

    async def rewrite(self, note_ids: Sequence[str]) -> None:
        """Give the notes other titles; ids may be new or of deleted notes."""
        written = {note_id: f"{note_id} {self._random.random()}" for note_id in note_ids}
        await self._store.put([StoredNote(Note(note_id, title), 0) for note_id, title in written.items()])
        self.titles |= written
        self.deleted -= written.keys()

    async def poison(self, note_ids: Sequence[str]) -> None:
        """Write notes that the model refuses."""
        await self._store.put([StoredNote(Note(note_id, f"{note_id}{BAD}"), 0) for note_id in note_ids])


async def in_hand(redis: Redis, name: str) -> list[str]:
    """The ids of the notes that a worker has claimed and not published."""
    jobs = JOBS + FINGERPRINT
    pending = await redis.xpending_range(jobs, WORKERS, "-", "+", 1000, consumername=name)
    found = [await redis.xrange(jobs, one["message_id"], one["message_id"]) for one in pending]
    return [entries[0][1][b"id"].decode() for entries in found if entries]


async def done(redis: Redis) -> bool:
    """Whether no job is left."""
    return bool(await redis.sismember(FILLED, FINGERPRINT)) and await redis.xlen(JOBS + FINGERPRINT) == 0


async def problems(redis: Redis, url: str, author: Author) -> list[str]:
    """What is wrong with the predictions in the store, and with an index that replays the changes."""
    index = VectorIndex(DIM, FINGERPRINT)
    with open_sync_redis(url) as client:
        stream, cursor = RedisChangeStream(client, FINGERPRINT), "0-0"
        while changes := stream.read(cursor, 1000, 0):
            index.apply(changes)
            cursor = changes[-1].cursor
    found = [f"resurrected: {note_id}" for note_id in author.deleted if index.lookup(note_id)]
    if len(index) != len(author.titles):
        found.append(f"{len(index)} notes in the index, not {len(author.titles)}")
    ids = sorted(author.titles)
    notes, records = await RedisStore(redis, 1).get(ids), await redis.hmget(READINGS + FINGERPRINT, ids)
    for note_id, note, record in zip(ids, notes, records, strict=True):
        held, prediction = index.lookup(note_id), record and StoredPrediction.decode(record)
        if not (held and prediction):
            found.append(f"lost: {note_id}")
        elif not prediction.version == held.version == note.version:
            found.append(f"{note_id} at {note.version}: predicted {prediction.version}, indexed {held.version}")
        elif not np.allclose(held.vector, text_vector(FINGERPRINT + author.titles[note_id]), atol=1e-6):
            found.append(f"{note_id} has another text's vector")
    return found
