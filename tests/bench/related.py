"""GET related?k=10 under load, beside a bare route of the same app that returns a constant body of the same size.

Starts the real service with the sample notes, a second gateway that also has the bare route, and wrk (16 connections,
ids drawn at random). The last line is one JSON object, latencies in milliseconds. Machines can be compared by the
ratios alone: both figures come from the same run.

    python tests/bench/related.py [--seconds 20]
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.service import Service, running, until

from model.samples.generate import sample_notes
from service.settings import MINI
from service.supervisor import free_port

CONNECTIONS = 16
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}

# A gateway like any other, but for one route: the floor that HTTP, routing and the middleware set.
GATEWAY = """
import sys
import service.app
from fastapi import Response
from service import logs, wiring
from service.settings import Settings

create_app = service.app.create_app

def with_bare_route(recommender, settings):
    app = create_app(recommender, settings)
    body = b"x" * int(sys.argv[1])

    @app.get("/bare/{note_id}")
    async def bare(note_id: str) -> Response:
        return Response(body, media_type="application/json")

    return app

service.app.create_app = with_bare_route
logs.configure("INFO")
wiring.run_gateway(Settings())
"""

SCRIPT = """
local ids = {{}}
for line in io.lines("{ids}") do ids[#ids + 1] = line end
math.randomseed(0)
request = function() return wrk.format("GET", string.format("{path}", ids[math.random(#ids)])) end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="length of each run")
    seconds = parser.parse_args().seconds
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Service(Path(folder), MINI, "--samples")) as service,
    ):
        print(json.dumps(measure(service, Path(folder), seconds)))


def measure(service: Service, folder: Path, seconds: int) -> dict[str, object]:
    """Throughput and latency of both routes, one after the other, on the same gateway process."""
    ids = [note.id for note in sample_notes()]
    (folder / "ids").write_text("\n".join(ids) + "\n")
    example = httpx.get(f"{service.api}/notes/{ids[0]}/related?k=10")
    gateway = service.children()["gateway"]
    environment = dict(
        pair.split("=", 1) for pair in Path(f"/proc/{gateway}/environ").read_bytes().decode().split("\0") if pair
    )
    port = free_port("127.0.0.1", 0, "")
    environment |= {"NOTELLM_HTTP__PORT": str(port), "NOTELLM_OPS__PORT": "0"}
    environment |= {"NOTELLM_OPS__PORT_FILE": str(folder / "bench.ops")}
    log = (folder / "gateway.log").open("w")
    process = subprocess.Popen([sys.executable, "-c", GATEWAY, str(len(example.content))], env=environment, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/bare/x"))
        load(url, "/notes/%s/related?k=10", folder, 2)  # connections and caches
        related = load(url, "/notes/%s/related?k=10", folder, seconds)
        bare = load(url, "/bare/%s", folder, seconds)
    finally:
        process.terminate()
        process.wait()
        log.close()
    return {
        "notes": len(ids),
        "connections": CONNECTIONS,
        "body_bytes": len(example.content),
        "related": related,
        "bare": bare,
        "share_of_bare": round(related["per_second"] / bare["per_second"], 3),
        "p99_in_bare_p50": round(related["p99_ms"] / bare["p50_ms"], 1),
    }


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def load(url: str, path: str, folder: Path, seconds: int) -> dict[str, float]:
    """One run of wrk. Exits when an answer was not 200: its speed would mean nothing."""
    script = folder / "requests.lua"
    script.write_text(SCRIPT.format(ids=folder / "ids", path=path))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        sys.exit(f"some answers were errors:\n{output}")

    def percentile(name: str) -> float:
        value, unit = re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", output).groups()
        return float(value) * MILLISECONDS[unit]

    return {
        "requests": int(re.search(r"(\d+) requests in", output)[1]),
        "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
        "p50_ms": round(percentile("50"), 3),
        "p99_ms": round(percentile("99"), 3),
    }


if __name__ == "__main__":
    main()
