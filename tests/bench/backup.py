"""What a note costs Redis, and how long a backup and its way back take. The last line is one JSON object.

Notes are of ordinary size (about 600 characters and five hashtags), each read once by one model of 128 numbers.
Redis keeps an append-only file and calls fsync before it answers, as `notellm serve` runs it.

    python tests/bench/backup.py [--notes 100000]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.redis import RedisServer

from model.note import Note
from service.backup.backup import back_up
from service.backup.restore import restore
from service.store.cells.ring import Cells
from service.store.connection import open_redis, open_sync_redis
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction, source_of
from service.store.schema import EMBEDDINGS, READINGS

MODEL, DIM, AT_ONCE = "bench", 128, 256
TAGS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=100_000)
    print(json.dumps(measure(parser.parse_args().notes)))


def measure(notes: int) -> dict[str, float]:
    server, other = RedisServer(), RedisServer()
    with tempfile.TemporaryDirectory() as name:
        try:
            server.start()
            asyncio.run(fill(server.url, notes))
            redis = open_sync_redis(server.url)
            with_stream = used_bytes(server)
            redis.delete(EMBEDDINGS)
            kept = used_bytes(server)
            log_bytes = size(server.folder / "appendonlydir")
            folder = Path(name) / "backup"
            backup_s = timed(lambda: back_up(Cells.of([redis]), folder))
            other.start()
            target = open_sync_redis(other.url)
            restore_s = timed(lambda: restore(Cells.of([target]), folder))
            redis.delete(READINGS + MODEL)
            without_readings = used_bytes(server)
            return {
                "notes": notes,
                "dim": DIM,
                "redis_bytes_per_note": round(kept / notes),
                "of_these_per_model": round((kept - without_readings) / notes),
                "redis_bytes_per_change_in_the_stream": round((with_stream - kept) / notes),
                "append_only_file_bytes_per_note": round(log_bytes / notes),
                "backup_bytes_per_note": round(size(folder) / notes),
                "backup_notes_per_s": round(notes / backup_s),
                "restore_notes_per_s": round(notes / restore_s),
            }
        finally:
            server.close()
            other.close()


async def fill(url: str, notes: int) -> None:
    redis = open_redis(url)
    store, queue = RedisStore(redis, max_queue=notes), JobQueue(redis, "w0", MODEL, DIM)
    await queue.open()
    draw = np.random.default_rng(0)
    for start in tqdm(range(0, notes, AT_ONCE), "fill", unit_scale=AT_ONCE):
        batch = [note(number, draw) for number in range(start, min(start + AT_ONCE, notes))]
        await store.put([StoredNote(one, 0, author=f"author{one.exposure % 1000}") for one in batch])
        claimed = await queue.claim(AT_ONCE, 1.0)
        by_id = {one.id: one for one in batch}
        await queue.publish([(item, prediction(by_id[item.job.note_id], draw)) for item in claimed])
    await redis.aclose()


def note(number: int, draw: np.random.Generator) -> Note:
    tags = tuple(f"tag{tag}" for tag in draw.integers(5000, size=TAGS))
    words = draw.choice(np.array(["kyoto", "bus", "garden", "noodles", "morning", "walk", "river", "quiet"]), 90)
    return Note(
        f"{number:012x}-{number:08x}", f"Note {number} about {tags[0]}", " ".join(words), tags, "Travel", number
    )


def prediction(one: Note, draw: np.random.Generator) -> StoredPrediction:
    vector = draw.standard_normal(DIM).astype(np.float32)
    tags = tuple((f"tag{tag}", float(draw.random())) for tag in draw.integers(5000, size=TAGS))
    return StoredPrediction(1, MODEL, vector / np.linalg.norm(vector), tags, ("Travel", 0.9), source_of(one, TAGS))


def used_bytes(server: RedisServer) -> int:
    with open_sync_redis(server.url) as redis:
        return int(redis.info("memory")["used_memory"])


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


if __name__ == "__main__":
    main()
