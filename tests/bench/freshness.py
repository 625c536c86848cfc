"""How fresh the index is under load, and what its chores cost a search.

Real Redis, shards as processes, each with a trained base from a snapshot. A process of its own writes 200 vectors and
20 deletes a second into the stream, half of the vectors of existing notes, in bursts with rests between. For every
tenth write the time is taken from Redis' acknowledgement until a lookup in its shard, every 10 ms, finds it. Eight
clients search all shards the whole time; their searches are grouped: during a chore of any shard, by the logs of the
shards, else during a rest of the writer ("idle"), else "writes alone". The bases begin with so many dead rows that they
are trained anew on the way. Clients and writer share the machine with the shards; they run on a gateway's event loop,
which leaves more of it to the shards.

Latencies depend on the machine and its minutes; bursts and rests take turns, so that ratios to "idle" do so less. The
last line is one JSON object; latencies are in milliseconds, freshness in seconds.

    python tests/bench/freshness.py [--vectors 1000000] [--shards 2] [--seconds 90] [--searches-per-s 20]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvloop
from redis import Redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from clusters import DIM, MODEL, ROWS_OF_A_CLUSTER, clustered, flat_index
from support.change_stream import encode_change
from support.indexers import Indexers
from support.redis import RedisServer

from indexer.serving.client import ShardedSearcher
from indexer.shards import shard_of
from indexer.snapshot import Snapshots
from indexer.types import Change
from service.store.connection import open_redis
from service.store.schema import ACTIVE, EMBEDDINGS, MODELS

CLIENTS, K = 8, 10
UPSERTS_PER_S, DELETES_PER_S = 200, 20
PROBED = 10
POLL_S = 0.01
BURST_S, REST_S = 20, 10
SNAPSHOT_EVERY_S = 15
# A search during two of them counts for the first.
KINDS = ("training", "compaction", "snapshot", "probe")
START = "1-0"
TIMEOUT_S = 30.0

T = TypeVar("T")
# When it began and ended, by the wall clock.
Span = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="size of the index, over all shards")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=90, help="of writing; rests come on top")
    parser.add_argument(
        "--searches-per-s", type=float, default=20, help="of each client; 0 leaves no pause between two"
    )
    parser.add_argument(
        "--write", nargs=2, metavar=("URL", "ADDRESSES"), help=argparse.SUPPRESS
    )  # the writer's process
    options = parser.parse_args()
    if options.write:
        url, addresses = options.write
        print(json.dumps(run(write(url, json.loads(addresses), options.vectors, options.seconds))))
    else:
        print(json.dumps(measure(options)))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    server = RedisServer()
    server.start()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Redis.from_url(server.url) as redis:
        indexers = Indexers(Path(name), server.url, options.shards)
        indexers.environment["NOTELLM_INDEX__SNAPSHOT_EVERY_S"] = str(SNAPSHOT_EVERY_S)
        try:
            redis.hset(MODELS, MODEL, DIM)
            redis.set(ACTIVE, MODEL)
            redis.xadd(EMBEDDINGS, encode_change(Change("", "nothing", 1, MODEL, None)), START)
            prepare(Path(name) / "snapshots", options)
            for place in indexers.everywhere:
                indexers.start(*place)
            searches, written = run(load(server.url, indexers.addresses, options))
        finally:
            indexers.end_all()
            server.close()
        logs = [line for place in indexers.everywhere for line in logged(Path(name), *place)]
    return report(options, searches, written, logs)


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """A snapshot of each shard, whose base is trained anew a third into the load."""
    numbers = np.arange(options.vectors)
    vectors = clustered(options.vectors, 1, max(1, options.vectors // ROWS_OF_A_CLUSTER))
    shards = np.array([shard_of(f"note{number}", options.shards) for number in numbers])
    for shard in range(options.shards):
        own = shards == shard
        home = folder / f"shard-{shard}" / MODEL
        index = flat_index(vectors[own], numbers[own], home)
        index.compact()
        dying_per_s = (UPSERTS_PER_S / 2 + DELETES_PER_S) / options.shards
        dead = max(0, int(own.sum() / 5 - dying_per_s * options.seconds / 3))
        # From the end: the writer takes its existing notes from the first half.
        index.apply([Change("", f"note{number}", 2, MODEL, None) for number in numbers[own][::-1][:dead]])
        Snapshots(home, MODEL, shard, options.shards).save(index.contents(), START)
        said(f"shard {shard}: {len(index)} notes in {index.recipe.name}, {dead} dead")


async def load(url: str, addresses: list[str], options: argparse.Namespace) -> tuple[list[Span], dict[str, Any]]:
    """The spans of all searches while the writer ran, and the writer's report."""
    clients = [ShardedSearcher(addresses, MODEL) for _ in range(CLIENTS)]
    queries = clustered(1000, 2, max(1, options.vectors // ROWS_OF_A_CLUSTER))
    pause_s = 1 / options.searches_per_s if options.searches_per_s else 0.0
    while len(await clients[0].status(timeout_s=1)) < options.shards:
        await asyncio.sleep(0.2)
    spans: list[Span] = []
    enough = asyncio.Event()
    tasks = [asyncio.create_task(search_on(client, queries, pause_s, spans, enough)) for client in clients]
    await asyncio.sleep(3)  # the pages of the maps come into memory
    spans.clear()
    command = [sys.executable, __file__, "--write", url, json.dumps(addresses)]
    command += ["--vectors", str(options.vectors), "--seconds", str(options.seconds)]
    writer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await writer.communicate()
    enough.set()
    await asyncio.gather(*tasks)
    for client in clients:
        await client.close()
    written: dict[str, Any] = json.loads(output.splitlines()[-1])
    return spans, written


async def search_on(
    client: ShardedSearcher, queries: np.ndarray, pause_s: float, spans: list[Span], enough: asyncio.Event
) -> None:
    """Search until it is enough; a search that could not begin in time begins at once."""
    rng = np.random.default_rng(id(client) % 2**32)
    due_s = time.time() + rng.uniform(0, pause_s)
    while not enough.is_set():
        await asyncio.sleep(max(0.0, due_s - time.time()))
        start_s = time.time()
        found = await client.search(queries[rng.integers(len(queries))], K, timeout_s=TIMEOUT_S)
        assert found.shards_ok == found.shards_total
        spans.append((start_s, time.time()))
        due_s = max(due_s + pause_s, time.time())


async def write(url: str, addresses: list[str], rows: int, seconds: float) -> dict[str, Any]:
    """Write the load; returns quantiles of the probed writes' freshness, and the rests between the bursts."""
    redis, searcher = open_redis(url), ShardedSearcher(addresses, MODEL)
    count = int(UPSERTS_PER_S * seconds)
    vectors = clustered(count, 3, max(1, rows // ROWS_OF_A_CLUSTER))
    chance = np.random.default_rng(4)
    existing = iter(chance.permutation(rows // 2))
    fresh_s: list[float] = []
    rests: list[Span] = []

    async def accept(change: Change) -> None:
        await redis.xadd(EMBEDDINGS, encode_change(change))
        accepted_s = time.perf_counter()
        while change.version % PROBED == 0:
            indexed = await searcher.lookup(change.id, timeout_s=TIMEOUT_S)
            is_there = indexed is not None and indexed.version >= change.version
            if (indexed is None) if change.vector is None else is_there:
                fresh_s.append(time.perf_counter() - accepted_s)
                return
            await asyncio.sleep(POLL_S)

    async def burst(numbers: Iterable[int]) -> None:
        start_s, tasks = time.perf_counter(), []
        for done, number in enumerate(numbers):
            await asyncio.sleep(max(0.0, start_s + done / UPSERTS_PER_S - time.perf_counter()))
            id_ = f"note{next(existing)}" if chance.random() < 0.5 else f"new{number}"
            tasks.append(asyncio.create_task(accept(Change("", id_, 3 + number, MODEL, vectors[number]))))
            if chance.random() < DELETES_PER_S / UPSERTS_PER_S:
                delete = Change("", f"note{next(existing)}", 3 + number, MODEL, None)
                tasks.append(asyncio.create_task(accept(delete)))
        await asyncio.gather(*tasks)

    for first in range(0, count, UPSERTS_PER_S * BURST_S):
        began_s = time.time()
        await asyncio.sleep(REST_S)
        rests.append((began_s, time.time()))
        await burst(range(first, min(first + UPSERTS_PER_S * BURST_S, count)))
    await searcher.close()
    await redis.aclose()
    return {"freshness_s": quantiles(fresh_s, 3), "rests": rests}


def logged(folder: Path, shard: int, replica: int) -> Iterable[dict[str, Any]]:
    with (folder / f"{shard}-{replica}.log").open() as log:
        for line in log:
            yield {"shard": shard} | json.loads(line)


def chores(logs: Iterable[dict[str, Any]]) -> dict[str, list[Span]]:
    """When each kind of chore ran. A compaction that trained is a training."""
    spans, trained = defaultdict(list), set()
    for entry in logs:
        if entry["event"] == "base_trained":
            trained.add(entry["shard"])
        elif entry["event"] == "chore_done":
            end_s = datetime.fromisoformat(entry["time"]).timestamp()
            kind = entry["chore"]
            if kind == "compaction" and entry["shard"] in trained:
                kind = "training"
                trained.discard(entry["shard"])
            spans[kind].append((end_s - entry["seconds"], end_s))
    return spans


def report(
    options: argparse.Namespace, searches: list[Span], written: dict[str, Any], logs: list[dict[str, Any]]
) -> dict[str, Any]:
    began_s, ended_s = searches[0][0], searches[-1][1]
    kinds = chores(logs)
    done = {kind: spans for kind in KINDS if (spans := [span for span in kinds[kind] if span[1] > began_s])}
    times = {**done, "idle": written["rests"]}
    during = defaultdict(list)
    for start_s, end_s in searches:
        kind = (kind for kind, spans in times.items() if any(start_s < end and begin < end_s for begin, end in spans))
        during[next(kind, "writes alone")].append(1000 * (end_s - start_s))
    milliseconds = {kind: quantiles(took, 2) for kind, took in during.items()}
    idle = milliseconds["idle"]["p99"]
    return {
        "vectors": options.vectors,
        "shards": options.shards,
        "freshness_s": written["freshness_s"],
        "searches_per_s": round(len(searches) / (ended_s - began_s), 1),
        "search_ms": milliseconds,
        "p99_of_idle": {kind: round(took["p99"] / idle, 2) for kind, took in milliseconds.items() if kind != "idle"},
        "chores": {
            kind: {"count": len(spans), "longest_s": round(max(end - begin for begin, end in spans), 2)}
            for kind, spans in done.items()
        },
    }


def quantiles(values: list[float], digits: int) -> dict[str, float]:
    p50, p99 = np.quantile(values, [0.5, 0.99], method="higher")
    return {"p50": round(float(p50), digits), "p99": round(float(p99), digits), "count": len(values)}


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
