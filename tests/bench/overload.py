"""The gateway under three times what it can do, with and without nginx, and clients that hold connections.

Starts the real service (a tiny model, keys on) with notes, and asks for related?k=10 from a process of its own, first
directly and then through an nginx with the file of deploy/nginx:

- closed loop, 16 connections: what it can do (the peak);
- open loop, half of that, three times: the latency before, as the median of the three;
- open loop, three times of it: goodput, refusals, memory, and how many cores each process had; then a pause of 10 s,
  and half of it again: the latency after.

Then through nginx alone: open loop, a tenth of the peak, alone and beside 500 silent sockets, 500 half-sent heads and
200 slow bodies, which connect within a second, while /livez and /readyz are asked every tenth of a second: the latency
beside, and how many of them nginx closed, and when. A body that drips on stays open: nginx alone pays for it.

The clients run on the same machine: the peak is what both of them can do there together. The last line is one JSON
object, latencies in milliseconds.

    python tests/bench/overload.py [--seconds 60]
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.checkpoint import tiny_checkpoint
from support.generator import Generator, Outcome, Party, get, hold
from support.nginx import Proxy
from support.service import Service, running, until

from service.keys import create_key

NOTES = 2000
CONNECTIONS = 16
FACTOR = 3
OVERLOAD_CONNECTIONS = 400
PAUSE_S = 10.0
HELD_S = 10.0
SILENT, HALF_SENT, SLOW = 500, 500, 200
WORDS = [
    "harbor",
    "tram",
    "noodle",
    "seaside",
    "temple",
    "market",
    "garden",
    "ramen",
    "ferry",
    "bakery",
    "museum",
    "fern",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=60, help="length of the overload; other runs take a third of it"
    )
    seconds = parser.parse_args().seconds
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_checkpoint(folder / "checkpoint")
        key = create_key(folder / "keys.json", ["read", "write"])[1]
        service = Service(folder, folder / "checkpoint")
        service.environment |= {"NOTELLM_KEYS_FILE": str(folder / "keys.json")}
        with running(service):
            fill(service, key)
            port = int(service.api.rsplit(":", 1)[1])
            with Clients(service, key, port) as clients:
                direct = overload(clients, seconds)
            proxy = Proxy(folder, port)
            with Clients(service, key, proxy.port) as clients:
                behind = overload(clients, seconds) | {"slow_clients": slow_clients(clients, seconds / 3)}
            proxy.stop()
        print(json.dumps({"direct": direct, "nginx": behind}))


class Clients:
    """Those who ask for related notes, in a process of their own, and those who do not ask, in another."""

    def __init__(self, service: Service, key: str, port: int) -> None:
        self.service = service
        self.key = key
        self.port = port
        self.requests = [
            get(f"/notes/n{number}/related?k=10", f"Authorization: Bearer {key}", "Accept: */*")
            for number in range(0, NOTES, 7)
        ]

    def __enter__(self) -> "Clients":
        self._process = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def cpu_s(self) -> dict[str, float]:
        """Processor time that each process has had, with its threads."""
        asking = [process.pid for process in multiprocessing.active_children() if process.pid]
        return {
            **{name: cpu_s(process) for name, process in self.service.children().items()},
            "clients": sum(map(cpu_s, asking)),
        }

    def closed(self, seconds: float) -> Outcome:
        return self._process.submit(closed, self.port, self.requests, seconds).result()

    def open(self, rate: float, seconds: float, connections: int) -> Outcome:
        return self._process.submit(opened, self.port, self.requests, rate, seconds, connections).result()

    def hold(self, parties: list[Party]) -> list[list[float]]:
        return self._process.submit(hold, self.port, parties, HELD_S + 2).result()


def closed(port: int, requests: list[bytes], seconds: float) -> Outcome:
    return Generator(port, requests, CONNECTIONS).closed(seconds)


def opened(port: int, requests: list[bytes], rate: float, seconds: float, connections: int) -> Outcome:
    return Generator(port, requests, connections).open(rate, seconds)


def fill(service: Service, key: str) -> None:
    """Write notes and wait until all of them are found."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=service.api, headers=headers, timeout=60) as client:
        for start in range(0, NOTES, 500):
            notes = [
                {"note_id": f"n{n}", "title": f"{WORDS[n % 12]} {WORDS[n // 12 % 12]} {n}", "category": "Travel"}
                for n in range(start, start + 500)
            ]
            client.post("/notes", json=notes).raise_for_status()
        until(lambda: client.get("/status").json()["notes"]["searchable"] == NOTES, 600)


def overload(clients: Clients, seconds: float) -> dict[str, Any]:
    """The service within its means, far beyond them, and afterwards."""
    gateway = clients.service.children()["gateway"]
    clients.closed(2)  # connections and caches
    peak = clients.closed(seconds / 3)
    before_ms = half_load_p99_ms(clients, peak.goodput / 2, seconds / 6)
    rss_before = rss_mib(gateway)
    cpu_before = clients.cpu_s()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(clients.open, FACTOR * peak.goodput, seconds, OVERLOAD_CONNECTIONS)
        time.sleep(seconds / 3)
        rss_third = rss_mib(gateway)
        beyond = running.result()
    rss_after = rss_mib(gateway)
    cores = {name: round((spent - cpu_before[name]) / seconds, 2) for name, spent in clients.cpu_s().items()}
    time.sleep(PAUSE_S)
    after_ms = half_load_p99_ms(clients, peak.goodput / 2, seconds / 6)
    answered = sum(beyond.statuses.values())
    return {
        "connections": CONNECTIONS,
        "peak_per_s": round(peak.goodput, 1),
        "peak_p50_ms": peak.p(0.5, 200),
        "peak_p99_ms": peak.p(0.99, 200),
        "offered_per_s": round(FACTOR * peak.goodput, 1),
        "answered_per_s": round(answered / seconds, 1),
        "unsent": beyond.unsent,
        "goodput_per_s": round(beyond.goodput, 1),
        "goodput_share": round(beyond.goodput / peak.goodput, 3),
        "accepted_p99_ms": beyond.p(0.99, 200),
        "refused_p50_ms": beyond.p(0.5, 429, 503),
        "refused_p99_ms": beyond.p(0.99, 429, 503),
        "statuses": beyond.statuses,
        "without_retry_after": beyond.without_retry_after,
        "broken_connections": beyond.broken,
        "rss_before_mib": rss_before,
        "rss_after_a_third_mib": rss_third,
        "rss_after_mib": rss_after,
        "cores": cores,
        "half_load_p99_before_ms": before_ms,
        "half_load_p99_after_ms": after_ms,
    }


def half_load_p99_ms(clients: Clients, rate: float, seconds: float) -> float:
    """The median of three runs: one pause of the machine is a percentile of a short one."""
    return statistics.median(clients.open(rate, seconds, 64).p(0.99, 200) or math.inf for _ in range(3))


def slow_clients(clients: Clients, seconds: float) -> dict[str, Any]:
    """Legitimate requests alone, and beside those who hold connections."""
    rate = clients.closed(2).goodput / 10
    alone = clients.open(rate, max(10.0, seconds), 64)
    return asyncio.run(beside(clients, rate, alone))


async def beside(clients: Clients, rate: float, alone: Outcome) -> dict[str, Any]:
    """The same requests, while sockets are held that bring nothing."""
    half = b"GET /notes/n1/related HTTP/1.1\r\nHost: a\r\nX-Half: "
    parties = [Party(SILENT), Party(HALF_SENT, half), Party(SLOW, slow_put(clients.key), drip=b" ")]
    legitimate = asyncio.create_task(asyncio.to_thread(clients.open, rate, HELD_S, 64))
    health = asyncio.create_task(probe(clients.service, HELD_S))
    silent, half_sent, slow = await asyncio.to_thread(clients.hold, parties)
    beside, probes = await legitimate, await health
    return {
        "legitimate_per_s": round(rate, 1),
        "p50_alone_ms": alone.p(0.5, 200),
        "p50_beside_ms": beside.p(0.5, 200),
        "p99_alone_ms": alone.p(0.99, 200),
        "p99_beside_ms": beside.p(0.99, 200),
        "statuses_beside": beside.statuses,
        "health_answered": round(sum(probes) / len(probes), 3),
        "closed": {
            party: {"connections": len(times), "within_s": round(max(times, default=0.0), 2)}
            for party, times in (("silent", silent), ("half_sent", half_sent), ("slow_bodies", slow))
        },
    }


def slow_put(key: str) -> bytes:
    lines = ["PUT /notes/slow HTTP/1.1", "Host: a", f"Authorization: Bearer {key}", "Content-Length: 10000"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n{"


async def probe(service: Service, seconds: float) -> list[bool]:
    """Whether each probe of /livez and /readyz was answered 200 within a second."""
    port = (service.state / "run" / "gateway.ops").read_text()
    answers: list[bool] = []
    end_s = time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=1) as client:
        while time.perf_counter() < end_s:
            for path in ("/livez", "/readyz"):
                try:
                    answers.append((await client.get(path)).status_code == 200)
                except httpx.HTTPError:
                    answers.append(False)
            await asyncio.sleep(0.1)
    return answers


def cpu_s(process: int) -> float:
    """User and system time; see proc_pid_stat(5)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise AssertionError("no VmRSS")


if __name__ == "__main__":
    main()
