"""GET related under load with a large store, beside a bare route of the same app: a constant body of the same size.

A real Redis, two real shards and a real gateway with keys as processes, filled without a model: vectors come from the
seeded generator of the index's benchmark, texts are words by Zipf's law, no two alike. wrk draws ids at random, so
nearly every note is asked for. The two routes take turns, and figures are medians over the turns. The last line is one
JSON object, latencies in milliseconds; machines can be compared by the ratios, whose figures are of the same turn.

    python tests/bench/gateway.py [--notes 100000] [--seconds 3] [--rounds 5] [--alike | --filters]

With ``--alike`` all notes say the same but for two words: the worst case of the search for near copies. With
``--filters``, related with a category, a filter and a language take turns with related without any, k 10 at 16
connections.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from redis import Redis
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.index import DIM, ROWS_OF_A_CLUSTER, clustered
from support.change_stream import encode_change
from support.redis import RedisServer
from support.service import until

from indexer.types import Change
from model.network.checkpoint import load_manifest
from model.note import Note
from service.keys import create_key
from service.processes.state import free_port
from service.settings import MINI
from service.store.connection import open_redis
from service.store.notes import RedisStore
from service.store.records import StoredNote
from service.store.schema import ACTIVE, EMBEDDINGS, JOBS, MODELS

CONNECTIONS = (1, 16, 64)
KS = (10, 100)
# By what they let pass: an eighth, one or two in a hundred, a half.
FILTERS = {
    "category": "category=Food",
    "filter": "filter=" + quote('exposure = 0 AND hashtags IN ["tag7", "tag8"]', safe=""),
    "language": "language=same",
}
LANGUAGES = ("de", "en")
SHARDS = 2
LOADED_AT_ONCE = 1000
WARM_UP_RUN_S, WARM_UP_S = 5, 120
CATEGORIES = ("Food", "Travel", "Music", "Sport", "Books", "Film", "Garden", "Home")
# Zipf's law, as of a natural text: the sum of the weights of so many of the words that are most used.
ZIPF = np.cumsum(1 / np.arange(1, 30_001))
TITLE_WORDS, CONTENT_WORDS = 8, 100
# The requests that the run before left unanswered hold their permits so long at most.
SETTLE_S = 0.3
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}

# A gateway like any other, but for one route: the floor that HTTP, routing and the middleware set.
GATEWAY = """
import sys
import service.api.app
from fastapi import Request, Response
from service import logs
from service.api.auth import GuardedRoute, needs
from service.settings import Settings
from service.wiring.gateway import run

create_app = service.api.app.create_app

def with_bare_route(*arguments, **options):
    app = create_app(*arguments, **options)

    async def bare(request: Request, size: int, note_id: str) -> Response:
        return Response(b"x" * size, media_type="application/json")

    policy = [needs("read", "related")]
    app.router.routes.append(GuardedRoute("/bare/{size}/{note_id}", bare, dependencies=policy))
    return app

service.api.app.create_app = with_bare_route
logs.configure("INFO")
run(Settings())
"""

AT_RANDOM = """
math.randomseed(0)
request = function() return wrk.format("GET", string.format("{path}", math.random({notes}) - 1)) end
"""
IN_ORDER = """
local asked = FIRST
request = function() asked = asked + 1; return wrk.format("GET", string.format("{path}", asked % {notes})) end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=100_000, help="size of the store")
    parser.add_argument("--seconds", type=int, default=3, help="length of each run")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each route takes")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--alike", action="store_true", help="notes that share most of their phrases")
    kind.add_argument("--filters", action="store_true", help="related with filters, beside related without")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bearer = f"Authorization: Bearer {create_key(folder / 'keys.json', ['read'])[1]}"
        with stack(folder, options.notes, bearer, alike=options.alike) as url:
            load = Load(url, folder, options.notes, bearer)
            measured = measure_filters if options.filters else measure
            print(json.dumps(measured(load, options.seconds, options.rounds)))


@dataclass(frozen=True)
class Load:
    """Where wrk asks, with which key, for which notes."""

    url: str
    folder: Path
    notes: int
    bearer: str

    def run(self, path: str, connections: int, seconds: int, script: str = "") -> dict[str, float]:
        """One run of wrk. Exits when an answer was not 200: its speed would mean nothing."""
        time.sleep(SETTLE_S)
        file = self.folder / "requests.lua"
        file.write_text((script or AT_RANDOM).format(notes=self.notes, path=path))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", self.bearer, "-s", str(file)]
        output = subprocess.run([*command, self.url], capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in output:
            sys.exit(f"some answers were errors:\n{output}")
        return {
            "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
            "p50_ms": percentile(output, "50"),
            "p99_ms": percentile(output, "99"),
        }


def percentile(output: str, name: str) -> float:
    """What wrk says of a percentile, in milliseconds."""
    value, unit = re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", output).groups()
    return round(float(value) * MILLISECONDS[unit], 3)


@contextmanager
def stack(folder: Path, notes: int, bearer: str, *, alike: bool = False) -> Iterator[str]:
    """A filled Redis, the shards and a gateway; the gateway's address."""
    redis = RedisServer()
    redis.start()
    with ExitStack() as running:
        running.callback(redis.close)
        model = load_manifest(MINI)
        with Redis.from_url(redis.url) as client:
            client.hset(MODELS, model.fingerprint, model.dim)
            client.set(ACTIVE, model.fingerprint)
        port = free_port("127.0.0.1", 0, "")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NOTELLM_")},
            "NOTELLM_REDIS_URL": redis.url,
            "NOTELLM_KEYS_FILE": str(folder / "keys.json"),
            "NOTELLM_INDEX__ADDRESSES": json.dumps([str(folder / f"shard-{shard}.sock") for shard in range(SHARDS)]),
            "NOTELLM_INDEX__SNAPSHOT_DIR": str(folder / "index"),
            "NOTELLM_HTTP__PORT": str(port),
            "NOTELLM_OPS__PORT": "0",
        }
        for shard in range(SHARDS):
            command = [sys.executable, "-P", "-m", "service.cli.main", "indexer"]
            running.enter_context(process(command, environment | {"NOTELLM_INDEX__NUMBER": str(shard)}, folder))
        running.enter_context(process([sys.executable, "-c", GATEWAY], environment, folder))
        url = f"http://127.0.0.1:{port}"
        # A shard that starts with nothing takes what the store holds; the vectors here are in the stream alone.
        until(lambda: status(url, bearer).get("index", {}).get("shards_ok") == SHARDS, 60)
        asyncio.run(fill(redis.url, notes, alike=alike))
        until(lambda: status(url, bearer)["notes"]["searchable"] == notes, 120)
        yield url


@contextmanager
def process(command: Sequence[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / "log").open("a") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        started.terminate()
        started.wait()


async def fill(url: str, notes: int, *, alike: bool) -> None:
    """Notes as a gateway writes them and vectors as a worker publishes them."""
    redis = open_redis(url)
    store = RedisStore(redis, max_queue=2 * notes)
    fingerprint = load_manifest(MINI).fingerprint
    vectors = clustered(notes, 1, max(1, notes // ROWS_OF_A_CLUSTER))
    assert vectors.shape[1] == load_manifest(MINI).dim == DIM
    for start in tqdm(range(0, notes, LOADED_AT_ONCE), "fill", unit_scale=LOADED_AT_ONCE):
        numbers = range(start, min(start + LOADED_AT_ONCE, notes))
        batch = [StoredNote(note(one, alike=alike), 0, language=LANGUAGES[one // 2 % 2]) for one in numbers]
        versions = await store.put(batch)
        pipe = redis.pipeline(transaction=True)
        for one, version, vector in zip(batch, versions, vectors[start:], strict=False):
            change = encode_change(Change("", one.note.id, version, fingerprint, vector))
            pipe.xadd(EMBEDDINGS, change | {b"note": without_text(one)})
        await pipe.execute()
    await redis.delete(JOBS + fingerprint)  # there is no worker
    await redis.aclose()


def without_text(stored: StoredNote) -> bytes:
    """A note as the stream carries it for filters."""
    return replace(stored, note=replace(stored.note, title="", content="")).encode()


def note(number: int, *, alike: bool = False) -> Note:
    """A note of ordinary size."""
    draw = np.random.default_rng(number)
    tags = tuple(f"tag{tag}" for tag in draw.integers(500, size=4))
    title, content = (phrases if alike else words)(number, draw, tags[0])
    return Note(str(number), title, content, tags, CATEGORIES[number % len(CATEGORIES)])


def words(_number: int, draw: np.random.Generator, _tag: str) -> tuple[str, str]:
    """Title and content that no other note shares: words by Zipf's law."""
    weights = draw.random(TITLE_WORDS + CONTENT_WORDS) * ZIPF[-1]
    drawn = [f"word{rank}" for rank in np.searchsorted(ZIPF, weights)]
    return " ".join(drawn[:TITLE_WORDS]), " ".join(drawn[TITLE_WORDS:])


def phrases(number: int, _draw: np.random.Generator, tag: str) -> tuple[str, str]:
    """Title and content that all notes share but for two words."""
    title = f"Note {number} about {tag} and what came of it"
    return title, f"{title}. " * 12


def status(url: str, bearer: str) -> dict[str, Any]:
    """What /status says; empty while nobody answers."""
    try:
        return dict(ask(url, "/status", bearer).json())
    except httpx.HTTPError:
        return {}


def ask(url: str, path: str, bearer: str) -> httpx.Response:
    return httpx.get(url + path, headers=[tuple(bearer.split(": "))])


def measure(load: Load, seconds: int, rounds: int) -> dict[str, object]:
    """Throughput and latency of related and of the bare route, which take turns on the same gateway process."""
    report: dict[str, object] = {"notes": load.notes, "shards": SHARDS}
    for k in KS:
        path = f"/notes/%d/related?k={k}"
        size = len(ask(load.url, path % 0, load.bearer).content)
        warm_up(load, path)
        runs = {}
        for connections in CONNECTIONS:
            turns = [
                [load.run(asked, connections, seconds) for asked in (path, f"/bare/{size}/%d")] for _ in range(rounds)
            ]
            runs[connections] = {
                "related": medians([related for related, _ in turns]),
                "bare": medians([bare for _, bare in turns]),
                "share_of_bare": round(
                    statistics.median(related["per_second"] / bare["per_second"] for related, bare in turns), 3
                ),
                "p99_in_bare_p50": round(
                    statistics.median(related["p99_ms"] / bare["p50_ms"] for related, bare in turns), 1
                ),
            }
            print(f"k={k} connections={connections}: {runs[connections]}", file=sys.stderr)
        report[f"k={k}"] = {"body_bytes": size} | runs
    return report


def measure_filters(load: Load, seconds: int, rounds: int) -> dict[str, object]:
    """Throughput and latency of related with each of `FILTERS`, in turns with related without."""
    connections, path = 16, "/notes/%d/related?k=10"
    filtered = {name: f"{path}&{query}" for name, query in FILTERS.items()}
    for name, asked in filtered.items():
        assert len(ask(load.url, asked.replace("%d", "0"), load.bearer).json()["items"]) == 10, name
    warm_up(load, path)
    turns = [
        {
            name: load.run(asked.replace("%", "%%").replace("%%d", "%d"), connections, seconds)
            for name, asked in {"related": path, **filtered}.items()
        }
        for _ in range(rounds)
    ]
    report: dict[str, object] = {"notes": load.notes, "shards": SHARDS, "connections": connections}
    for name in turns[0]:
        report[name] = medians([turn[name] for turn in turns]) | {
            "share_of_related": round(
                statistics.median(turn[name]["per_second"] / turn["related"]["per_second"] for turn in turns), 3
            )
        }
    return report


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def warm_up(load: Load, path: str) -> None:
    """Every note asked for about once, as in a gateway that has run for a while."""
    asked, start = 0.0, time.monotonic()
    while asked < load.notes and time.monotonic() - start < WARM_UP_S:
        asked += (
            WARM_UP_RUN_S * load.run(path, 16, WARM_UP_RUN_S, IN_ORDER.replace("FIRST", str(int(asked))))["per_second"]
        )


if __name__ == "__main__":
    main()
