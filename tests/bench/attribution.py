"""What the log of answers costs a request, and what a report of many events costs. The last line is JSON.

Processor time of the gateway, in turns: blocks of related requests through the whole application in memory, called
without a client and a socket, with the log on a real Redis and without any record, one after the other. What a gateway
does besides, such as HTTP and the calls of its shards, is left out, so that its own ratio is lower. Then a report of
events and answers that are drawn at random.

    python tests/bench/attribution.py --events 1000000
"""

import argparse
import asyncio
import gc
import json
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from redis.asyncio import Redis
from starlette.types import ASGIApp, Message, Scope
from support.gateway import MemoryGateway
from support.redis import RedisServer

from model.evaluation.online.report import online_report
from model.note import Note
from service.api.routes import requests
from service.backup.events import ANSWER_SCHEMA, SCHEMA
from service.store.attribution.buffer import AnswerBuffer
from service.store.attribution.log import RedisAnswerLog
from service.store.attribution.quality import Quality

# Blocks so short that both kinds meet the same machine; a round is of 1,000 requests of each, and then of a flush, as
# of five seconds with 200 a second.
NOTES, BLOCK, BLOCKS, ROUNDS = 300, 50, 20, 15


async def cost() -> dict[str, float]:
    """Microseconds of processor time a request, without and with the log, and how many times as much it is with it.

    The ratio is of the sums of all rounds, with the 95% interval of a bootstrap over them.
    """
    gc.set_threshold(10_000, 1)  # as `run_gateway` has it
    server = RedisServer()
    server.start()
    redis = Redis(unix_socket_path=server.url.removeprefix("unix://"))
    gateway = MemoryGateway()
    await gateway.publish(*(Note(f"n{number}", f"harbor tram {number}") for number in range(NOTES)))
    buffer = gateway.app.state.buffer = AnswerBuffer(RedisAnswerLog(redis, 1_000_000, 30))
    quality, logs = Quality(redis, buffer.counts), requests.Answering.log

    async def block(with_log: bool) -> float:
        requests.Answering.log = logs if with_log else (lambda *_, **__: f"{random.getrandbits(64):016x}")
        start = time.process_time()
        for number in range(BLOCK):
            await get(gateway.app, f"/notes/n{number * 7 % NOTES}/related", f"k=10&for_user=u{number}")
        return time.process_time() - start

    async def flush() -> float:
        start = time.process_time()
        await buffer.flush()
        await quality.flush()
        return time.process_time() - start

    async def in_turns() -> tuple[float, float, float]:
        taken_s = {False: 0.0, True: 0.0}
        for number in range(2 * BLOCKS):
            with_log = number % 2 == number // 2 % 2  # without, with, with, without
            taken_s[with_log] += await block(with_log)
        return taken_s[False], taken_s[True], await flush()

    await in_turns()
    rounds_R3 = np.array([await in_turns() for _ in range(ROUNDS)]) / (BLOCK * BLOCKS) * 1e6
    requests.Answering.log = logs
    await redis.aclose()
    server.close()
    drawn_R = np.random.default_rng(0).integers(ROUNDS, size=(1000, ROUNDS))
    without, request, flushed = (rounds_R3[drawn_R, column].sum(1) for column in range(3))
    low, high = np.quantile((request + flushed) / without, [0.025, 0.975])
    without, request, flushed = rounds_R3.mean(0)
    found = {"without_us": without, "request_us": request - without, "flush_us": flushed}
    found |= {"ratio": (request + flushed) / without, "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in found.items()}


async def get(app: ASGIApp, path: str, query: str) -> None:
    """A request without a client and a socket, whose costs would hide what is measured."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "root_path": "",
        "state": {},
    }
    statuses = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    assert statuses == [200]


def write(folder: Path, events: int) -> None:
    """Events of a tenth as many answers of ten notes: nine in ten are impressions, and Zipf rules notes and readers."""
    rng = np.random.default_rng(0)
    answers = events // 10
    ids = np.char.add("n", (rng.zipf(1.3, (answers, 10)) % 100_000).astype(str))
    names = np.array([f"{number:016x}.r.0123abcd" for number in range(answers)])
    readers = np.char.add("u", (rng.zipf(1.2, answers) % 200_000).astype(str))
    of = np.repeat(np.arange(answers), 10)
    clicked = rng.random(len(of)) < 0.1
    columns = {
        "user_id": readers[of],
        "note_id": ids.ravel(),
        "event": np.where(clicked, "click", "impression"),
        "ts": 1_767_225_600_000_000 + np.sort(rng.integers(0, 14 * 86_400_000_000, len(of))),
        "source_note_id": pa.nulls(len(of), pa.string()),
        "event_id": np.arange(len(of)).astype(str),
        "value": pa.nulls(len(of), pa.float64()),
        "answer_id": names[of],
        "position": np.tile(np.arange(1, 11), answers),
    }
    (folder / "dt=2026-01-01").mkdir(parents=True)
    pq.write_table(pa.table(columns, SCHEMA), folder / "dt=2026-01-01/part-000000000000001-000000.parquet")
    rows = {field.name: pa.nulls(answers, field.type) for field in ANSWER_SCHEMA} | {
        "answer_id": names,
        "ts": 1_767_225_600_000_000 + np.arange(answers),
        "scenario": pa.array(["related"] * answers),
        "model": pa.array(["0123abcd01234567"] * answers),
        "ids": pa.array(ids.tolist(), pa.list_(pa.string())),
        "reader": readers,
    }
    (folder / "_answers/dt=2026-01-01").mkdir(parents=True)
    pq.write_table(pa.table(rows, ANSWER_SCHEMA), folder / "_answers/dt=2026-01-01/part-000000000000001-000000.parquet")


def report(events: int) -> dict[str, float]:
    """Seconds, by the clock and of the processor, and how much the peak of memory grew."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), events)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        found = online_report(Path(folder))
        clock_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shown = sum(one.shown for one in found.rates["scenario"].values())
    sizes = {"peak_mb": round(peak / 1024), "grown_mb": round((peak - before) / 1024)}
    return {"events": events, "items": shown, "report_s": round(clock_s, 1), "report_cpu_s": round(cpu_s, 1), **sizes}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(cost()) | report(arguments.events)))
