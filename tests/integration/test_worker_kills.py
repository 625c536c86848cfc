"""Two workers, killed 50 times between them while 5,000 notes are loaded, rewritten and deleted."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import support
from redis.asyncio import Redis
from support.redis import RedisServer
from support.working import until

from indexer.index import VectorIndex
from model.inference.hashing import DIM, text_vector
from model.note import Note
from service.store.changes import RedisChangeStream
from service.store.connection import open_sync_redis
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.schema import DEAD, FILLED, JOBS, READINGS, WORKERS

NOTES = 5_000
KILLS = 50
FINGERPRINT = "hashing-a"


class Lives:
    """Two workers, each one process at a time."""

    def __init__(self, forks: "subprocess.Popen[str]") -> None:
        self._forks = forks
        self._processes = {name: self._start(name) for name in ("w0", "w1")}

    def kill(self, name: str) -> None:
        """kill -9, and a new life under the same name."""
        os.kill(self._processes[name], signal.SIGKILL)
        self._processes[name] = self._start(name)

    def end(self) -> None:
        """SIGTERM."""
        for process in self._processes.values():
            os.kill(process, signal.SIGTERM)

    def _start(self, name: str) -> int:
        assert self._forks.stdin
        assert self._forks.stdout
        self._forks.stdin.write(f"{name}\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())


@contextmanager
def lives(url: str) -> Iterator[Lives]:
    command = [sys.executable, "-P", "-m", "support.worker_process", url]
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

    async def write(self, first: int, count: int) -> None:
        """So many new notes, and for every ten of them one written again and one deleted."""
        fresh = [f"n{number}" for number in range(first, first + count)]
        old = self._random.sample(sorted(self.titles), min(len(self.titles), count // 10))
        await self._put([*fresh, *old])
        for note_id in self._random.sample(sorted(self.titles), count // 10):
            assert await self._store.delete(note_id)
            del self.titles[note_id]
            self.deleted.add(note_id)
        if self.deleted:
            # One comes back.
            back = self._random.choice(sorted(self.deleted))
            self.deleted.discard(back)
            await self._put([back])

    async def _put(self, note_ids: list[str]) -> None:
        written = {note_id: f"{note_id} {self._random.random()}" for note_id in note_ids}
        await self._store.put([StoredNote(Note(note_id, title), 0) for note_id, title in written.items()])
        self.titles |= written


def replayed(redis_server: RedisServer) -> VectorIndex:
    """An index that has followed the stream of changes from its beginning."""
    index = VectorIndex(DIM, FINGERPRINT)
    client = open_sync_redis(redis_server.url)
    stream, cursor = RedisChangeStream(client, FINGERPRINT), "0-0"
    while changes := stream.read(cursor, 1000, 0):
        index.apply(changes)
        cursor = changes[-1].cursor
    client.close()
    return index


async def test_after_fifty_kills_every_note_is_found_once_as_it_was_last_written(
    redis: Redis, redis_server: RedisServer
):
    chance = random.Random(4)
    store = RedisStore(redis, max_queue=NOTES)
    author = Author(store, seed=5)
    died_at_work = 0

    async def done() -> bool:
        return await redis.sismember(FILLED, FINGERPRINT) and await redis.xlen(JOBS + FINGERPRINT) == 0

    with lives(redis_server.url) as workers:
        for number in range(KILLS):
            await author.write(number * NOTES // KILLS, NOTES // KILLS)
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            died = chance.choice(["w0", "w1"])
            workers.kill(died)
            pending = await redis.xpending_range(JOBS + FINGERPRINT, WORKERS, "-", "+", 1, consumername=died)
            died_at_work += bool(pending)
        await until(done, patience_s=200)

    assert died_at_work > KILLS // 5
    assert await redis.xrange(DEAD) == []
    index = replayed(redis_server)
    assert len(index) == len(author.titles)
    assert not any(index.lookup(note_id) for note_id in author.deleted)
    ids = sorted(author.titles)
    for note_id, note, record in zip(
        ids, await store.get(ids), await redis.hmget(READINGS + FINGERPRINT, ids), strict=True
    ):
        held, prediction = index.lookup(note_id), StoredPrediction.decode(record)
        assert (prediction.version, prediction.fingerprint, held.version) == (note.version, FINGERPRINT, note.version)
        assert np.allclose(held.vector, text_vector(FINGERPRINT + author.titles[note_id]), atol=1e-6)
    assert (await redis.xpending(JOBS + FINGERPRINT, WORKERS))["pending"] == 0
