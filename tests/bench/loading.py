"""What `notellm load --vectors` costs the command, Redis and the shards, and when all notes can be found.

A running service of two shards and the mini model gets notes of 100 words, from passages of the samples, with four of
500 hashtags, and clustered vectors in the folder that `notellm embed` would have written. Processor time is in
microseconds a note, of all threads. The shards go on after the command: theirs is counted until every note is
searchable, with training and snapshots of this time. Everything shares the machine. The last line is one JSON object.

    python tests/bench/loading.py [--notes 100000]
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from clusters import ROWS_OF_A_CLUSTER, clustered
from support.service import NOTELLM, Service, running

from model.data.samples.generate import sample_notes
from model.inference.bulk.load import begin, missing, writing
from model.network.checkpoint import load_manifest
from service.settings import MINI

WORDS, TAGS, TAGS_A_NOTE = 100, 500, 4
A_PART = 10_000
PATIENCE_S = 3600.0
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=100_000)
    count = parser.parse_args().notes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, vectors = prepare(folder, count)
        with running(Service(folder, MINI)) as service:
            print(json.dumps(measure(service, source, vectors, count)))


def prepare(folder: Path, count: int) -> tuple[Path, Path]:
    """The file of notes, and the folder of their vectors."""
    draw = random.Random(0)
    words = [word for note in sample_notes() for word in note.content.split()]
    tags = [f"tag{number}" for number in range(TAGS)]
    source = folder / "notes.parquet"
    kinds = {"note_id": pa.string(), "title": pa.string(), "content": pa.string(), "hashtags": pa.list_(pa.string())}
    with pq.ParquetWriter(source, pa.schema(kinds), compression="zstd") as writer:
        for start in range(0, count, A_PART):
            rows = [
                {
                    "note_id": f"n{number}",
                    "title": " ".join(passage(words, draw, 6)),
                    "content": " ".join(passage(words, draw, WORDS - 6)),
                    "hashtags": draw.sample(tags, TAGS_A_NOTE),
                }
                for number in range(start, min(start + A_PART, count))
            ]
            writer.write_table(pa.Table.from_pylist(rows, writer.schema))
    load = begin(source, folder / "vectors", load_manifest(MINI).fingerprint, A_PART)
    for part, notes in missing(load):
        with writing(load, part, notes) as write:
            write(clustered(len(notes), part + 1, max(1, count // ROWS_OF_A_CLUSTER)))
    return source, folder / "vectors"


def passage(words: list[str], draw: random.Random, count: int) -> list[str]:
    """So many words in the order of somebody's sentences, by which their language is known."""
    start = draw.randrange(len(words) - count)
    return words[start : start + count]


def measure(service: Service, source: Path, vectors: Path, count: int) -> dict[str, Any]:
    redis, shards = service.children()["redis"], indexers(service)
    before = {process: used_s(process) for process in (redis, *shards)}
    started, own = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [*NOTELLM, "load", source, "--vectors", vectors]
    subprocess.run(list(map(str, command)), env=service.environment, check=True, stdout=subprocess.DEVNULL)
    loaded_s = time.monotonic() - started
    command_s = seconds(resource.getrusage(resource.RUSAGE_CHILDREN)) - seconds(own)
    redis_s = used_s(redis) - before[redis]
    with service.client() as notellm:
        while (searchable := notellm.status().notes.searchable) < count:
            assert time.monotonic() - started < PATIENCE_S
            time.sleep(0.2)
    return {
        "notes": count,
        "loaded_s": round(loaded_s, 1),
        "notes_per_s": round(count / loaded_s),
        "searchable": searchable,
        "shards": len(shards),
        "searchable_s": round(time.monotonic() - started, 1),
        "command_us": round(1e6 * command_s / count, 1),
        "redis_us": round(1e6 * redis_s / count, 1),
        "shards_us": round(1e6 * sum(used_s(shard) - before[shard] for shard in shards) / count, 1),
    }


def indexers(service: Service) -> list[int]:
    """Process ids of the shards, which have one name."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    return [int(child) for child in children if b"\0indexer\0" in Path(f"/proc/{child}/cmdline").read_bytes()]


def used_s(process: int) -> float:
    """Processor time of a process, all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def seconds(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
