"""Related notes and writes a second with 1, 3 and 6 cells, in turns, on one machine.

For each number a real Redis, a shard and a gateway, filled without a model. All cells are on one Redis, and all share
this machine: it shows what a request costs by the number of cells, in processor time of Redis (``redis_ms``) and of the
gateway (``gateway_ms``), and not what several machines bring. The last line is one JSON object.

    python tests/bench/cells.py [--notes 20000] [--seconds 3] [--rounds 5] [--connections 16]
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.clusters import DIM, clustered
from bench.gateway import note, process
from support.generator import Generator, get
from support.redis import RedisServer
from support.service import NOTELLM, UNSET, until

from model.network.checkpoint import load_manifest
from service.processes.state import free_port
from service.settings import MINI
from service.store.cells.size import check_size
from service.store.records import StoredNote, StoredPrediction
from service.wiring import stores

CELLS = (1, 3, 6)
BATCH = 500
START_S = 300
TICKS_S = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=20_000, help="size of the store")
    parser.add_argument("--seconds", type=float, default=3, help="length of each run")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each number takes")
    parser.add_argument("--connections", type=int, default=16, help="requests at once")
    options = parser.parse_args()
    with ExitStack() as stack:
        measured = [Service(cells, options.notes, stack) for cells in CELLS]
        for _ in range(options.rounds):
            for one in measured:
                one.turn(options.seconds, options.connections)
    figures = {str(one.cells): one.figures() for one in measured}
    print(json.dumps({"notes": options.notes, "connections": options.connections, "cells": figures}))


@dataclass(frozen=True)
class Run:
    """What a run showed: requests a second, and processor time a request in milliseconds."""

    per_s: float
    p99_ms: float
    redis_ms: float
    gateway_ms: float


class Service:
    """A service of so many cells; what it starts ends with the stack."""

    def __init__(self, cells: int, notes: int, stack: ExitStack) -> None:
        self.cells = cells
        self._notes = notes
        self._runs: dict[str, list[Run]] = {"related": [], "writes": []}
        self._written = itertools.count()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._redis = RedisServer()
        self._redis.start()
        stack.callback(self._redis.close)
        self._port = free_port("127.0.0.1", 0, "")
        environment = UNSET | {
            "NOTELLM_REDIS_URL": self._redis.url,
            "NOTELLM_CELLS": str(self.cells),
            "NOTELLM_INDEX__ADDRESSES": json.dumps([str(folder / "shard-0.sock")]),
            "NOTELLM_INDEX__SNAPSHOT_DIR": str(folder / "index"),
            "NOTELLM_WORKER__ADDRESSES": json.dumps([str(folder / "no-worker.sock")]),
            "NOTELLM_HTTP__PORT": str(self._port),
            "NOTELLM_OPS__PORT": "0",
        }
        asyncio.run(self._fill())
        stack.enter_context(process([*NOTELLM, "indexer"], environment, folder))
        before = _children()
        stack.enter_context(process([*NOTELLM, "gateway"], environment, folder))
        [self._gateway] = _children() - before
        until(self._finds_all, START_S)

    def turn(self, seconds: float, connections: int) -> None:
        """One run of each kind."""
        asked = np.random.default_rng(len(self._runs["related"])).integers(self._notes, size=5000)
        related = [get(f"/notes/{number}/related?k=10") for number in asked]
        self._runs["related"].append(self._run(related, seconds, connections))
        self._runs["writes"].append(self._run(list(self._writes(20_000)), seconds, connections))

    def figures(self) -> dict[str, dict[str, float]]:
        """Medians over the turns."""
        names = ("per_s", "p99_ms", "redis_ms", "gateway_ms")
        return {
            kind: {name: round(statistics.median(getattr(run, name) for run in runs), 3) for name in names}
            for kind, runs in self._runs.items()
        }

    def _finds_all(self) -> bool:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30) as client:
            try:
                return bool(client.get("/status").json()["notes"]["searchable"] == self._notes)
            except (httpx.HTTPError, KeyError):
                return False

    def _writes(self, count: int) -> Iterator[bytes]:
        for number in itertools.islice(self._written, count):
            body = json.dumps({"title": f"Written {number}", "content": "word " * 100, "hashtags": ["a", "b"]}).encode()
            head = f"PUT /notes/w{number} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            yield f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def _run(self, requests: list[bytes], seconds: float, connections: int) -> Run:
        assert self._redis.process
        processes = self._redis.process.pid, self._gateway
        before = [_processor_s(process) for process in processes]
        outcome = Generator(self._port, requests, connections).closed(seconds)
        redis_s, gateway_s = (_processor_s(one) - then for one, then in zip(processes, before, strict=True))
        if outcome.statuses.keys() - {200, 202}:
            sys.exit(f"some answers were errors: {outcome.statuses}")
        [answered] = outcome.statuses.values()
        p99_ms = outcome.p(0.99, 200, 202) or 0.0
        return Run(answered / seconds, p99_ms, 1000 * redis_s / answered, 1000 * gateway_s / answered)

    async def _fill(self) -> None:
        """Notes as a gateway writes them, and predictions as a worker publishes them."""
        fingerprint = load_manifest(MINI).fingerprint
        vectors = clustered(self._notes, 1, max(1, self._notes // 1000))
        async with stores.open_cells(self._redis.url, self.cells) as cells:
            await check_size(cells.first, self.cells)
            store, queue = stores.note_store(cells, 10**7), stores.job_queue(cells, "w", fingerprint, DIM)
            await queue.open()
            for start in range(0, self._notes, BATCH):
                numbers = range(start, min(start + BATCH, self._notes))
                await store.put([StoredNote(note(number), 0, detected="") for number in numbers])
                while claimed := await queue.claim(BATCH, 0.01):
                    said = [
                        StoredPrediction(1, fingerprint, vectors[int(item.job.note_id)], (), None) for item in claimed
                    ]
                    await queue.publish(list(zip(claimed, said, strict=True)))


def _children() -> set[int]:
    return {int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def _processor_s(process: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


if __name__ == "__main__":
    main()
