"""How fresh the index is under load, and what its chores cost a search.

Real Redis, shards as processes, each with a trained base from a snapshot. A process of its own writes 200 vectors and
20 deletes a second into the stream; half of the vectors are of notes that are there. Of every tenth write the time
is taken from Redis' acknowledgement until its shard's lookup shows it. Eight clients search all shards the whole time,
first without any writes ("idle"), then under the load; their searches are told apart by the chore that ran meanwhile in
any shard, as the shards' logs say. The bases begin with so many dead rows that they are trained anew on the way.

Latencies depend on the machine, ratios to "idle" less so. The last line is one JSON object; latencies are in
milliseconds, freshness in seconds.

    python tests/bench/freshness.py [--vectors 1000000] [--shards 2] [--seconds 90] [--searches-per-s 20]
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from clusters import DIM, MODEL, ROWS_OF_A_CLUSTER, clustered, flat_index
from support.indexers import Indexers
from support.redis import RedisServer

from indexer.client import ShardedSearcher
from indexer.shards import shard_of
from indexer.snapshot import Snapshots
from indexer.types import Change
from service.messages import ACTIVE, EMBEDDINGS, MODELS, encode_change
from service.store import open_redis

CLIENTS, K = 8, 10
UPSERTS_PER_S, DELETES_PER_S = 200, 20
PROBED = 10
POLL_S = 0.005
SNAPSHOT_EVERY_S = 15
START = "1-0"
TIMEOUT_S = 30.0

# When it began and ended, by the wall clock.
Span = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="size of the index, over all shards")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=90, help="under load; a third of it idle before")
    parser.add_argument(
        "--searches-per-s", type=float, default=20, help="of each client; 0 leaves no pause between two"
    )
    parser.add_argument(
        "--write", nargs=2, metavar=("URL", "ADDRESSES"), help=argparse.SUPPRESS
    )  # the writer's process
    options = parser.parse_args()
    if options.write:
        url, addresses = options.write
        print(json.dumps(asyncio.run(write(url, json.loads(addresses), options.vectors, options.seconds))))
    else:
        print(json.dumps(measure(options)))


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
            processes = [process.pid for process in indexers.processes.values()]
            searches, written = asyncio.run(load(server.url, indexers.addresses, processes, options))
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
        # From the end, where no writer looks for notes that are there.
        index.apply([Change("", f"note{number}", 2, MODEL, None) for number in numbers[own][::-1][:dead]])
        Snapshots(home, MODEL, shard, options.shards).save(index.contents(), START)
        said(f"shard {shard}: {len(index)} notes in {index.recipe.name}, {dead} dead")


async def load(
    url: str, addresses: list[str], processes: list[int], options: argparse.Namespace
) -> tuple[dict[str, list[Span]], dict[str, Any]]:
    """Every search by what was going on, "idle" or "load", and what the writer says."""
    clients = [ShardedSearcher(addresses, MODEL) for _ in range(CLIENTS)]
    queries = clustered(1000, 2, max(1, options.vectors // ROWS_OF_A_CLUSTER))
    pause_s = 1 / options.searches_per_s if options.searches_per_s else 0.0
    while len(await clients[0].status(timeout_s=1)) < options.shards:
        await asyncio.sleep(0.2)
    searches: dict[str, list[Span]] = {}

    async def search_until(end: Awaitable[object]) -> list[Span]:
        spans: list[Span] = []
        enough = asyncio.Event()
        tasks = [asyncio.create_task(search_on(client, queries, pause_s, spans, enough)) for client in clients]
        await end
        enough.set()
        await asyncio.gather(*tasks)
        return spans

    await search_until(asyncio.sleep(3))  # the pages of the maps come into memory
    cores = {}
    used_s, since_s = cpu_s(processes), time.time()
    searches["idle"] = await search_until(asyncio.sleep(options.seconds / 3))
    cores["idle"] = round((cpu_s(processes) - used_s) / (time.time() - since_s), 3)
    said("idle measured")
    used_s, since_s = cpu_s(processes), time.time()
    command = [sys.executable, __file__, "--write", url, json.dumps(addresses)]
    command += ["--vectors", str(options.vectors), "--seconds", str(options.seconds)]
    writer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    finished = asyncio.ensure_future(writer.communicate())
    searches["load"] = await search_until(finished)
    for client in clients:
        await client.close()
    cores["load"] = round((cpu_s(processes) - used_s) / (time.time() - since_s), 3)
    written: dict[str, Any] = json.loads((await finished)[0].splitlines()[-1])
    return searches, written | {"shards_use_cores": cores}


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
    """The load, and how long each of the probed writes took to be seen."""
    redis, searcher = open_redis(url), ShardedSearcher(addresses, MODEL)
    count = int(UPSERTS_PER_S * seconds)
    vectors = clustered(count, 3, max(1, rows // ROWS_OF_A_CLUSTER))
    chance = np.random.default_rng(4)
    there = iter(chance.permutation(rows // 2))
    fresh_s: list[float] = []

    async def accept(change: Change, probed: bool) -> None:
        await redis.xadd(EMBEDDINGS, encode_change(change))
        accepted_s = time.perf_counter()
        while probed:
            held = await searcher.lookup(change.id, timeout_s=TIMEOUT_S)
            if (held is None) if change.vector is None else (held is not None and held.version >= change.version):
                fresh_s.append(time.perf_counter() - accepted_s)
                return
            await asyncio.sleep(POLL_S)

    start_s = time.perf_counter()
    tasks = []
    for number in range(count):
        await asyncio.sleep(max(0.0, start_s + number / UPSERTS_PER_S - time.perf_counter()))
        id_ = f"note{next(there)}" if number % 2 else f"new{number}"
        tasks.append(asyncio.create_task(accept(Change("", id_, 3, MODEL, vectors[number]), number % PROBED == 0)))
        if number % (UPSERTS_PER_S // DELETES_PER_S) == 5:
            gone = Change("", f"note{next(there)}", 4, MODEL, None)
            tasks.append(asyncio.create_task(accept(gone, number % (PROBED * 10) == 5)))
    await asyncio.gather(*tasks)
    took_s = time.perf_counter() - start_s
    await searcher.close()
    await redis.aclose()
    return {"freshness_s": quantiles(fresh_s, 3), "changes_per_s": round(len(tasks) / took_s, 1)}


def cpu_s(processes: list[int]) -> float:
    """Seconds of CPU that these processes have used."""
    fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes]
    return sum(int(field) for each in fields for field in each[11:13]) / os.sysconf("SC_CLK_TCK")


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
    options: argparse.Namespace, searches: dict[str, list[Span]], written: dict[str, Any], logs: list[dict[str, Any]]
) -> dict[str, Any]:
    done = chores(logs)
    kinds = ("training", "compaction", "snapshot", "probe")
    during = defaultdict(list)
    for start_s, end_s in searches["load"]:
        beside = (kind for kind in kinds if any(start_s < end and begin < end_s for begin, end in done[kind]))
        during[next(beside, "writes alone")].append(end_s - start_s)
    during["idle"] = [end_s - start_s for start_s, end_s in searches["idle"]]
    during["load"] = [end_s - start_s for start_s, end_s in searches["load"]]
    milliseconds = {kind: quantiles([1000 * took_s for took_s in took], 2) for kind, took in during.items()}
    began_s, ended_s = searches["load"][0][0], searches["load"][-1][1]
    return {
        "vectors": options.vectors,
        "shards": options.shards,
        **written,
        "searches_per_s": round(len(searches["load"]) / (ended_s - began_s), 1),
        "search_ms": milliseconds,
        "p99_of_idle": {
            kind: round(took["p99"] / milliseconds["idle"]["p99"], 2)
            for kind, took in milliseconds.items()
            if kind != "idle"
        },
        "chores": {
            kind: {"count": len(spans), "longest_s": round(max(end - begin for begin, end in spans), 2)}
            for kind, spans in ((kind, [span for span in done[kind] if span[1] > began_s]) for kind in kinds)
            if spans
        },
    }


def quantiles(values: list[float], digits: int) -> dict[str, float]:
    p50, p99 = np.quantile(values, [0.5, 0.99], method="higher")
    return {"p50": round(float(p50), digits), "p99": round(float(p99), digits), "count": len(values)}


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
