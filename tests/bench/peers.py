"""The same job for NoteLLM and for two peers from PyPI, each over its own server: an id in, k related notes with title
and category out, at equal recall.

The peers are pgvector in PostgreSQL (`pgserver`), asked by pgbench with prepared statements, and Chroma, asked by wrk.
Chroma finds nothing by an id: it is handed the vector, for which its users would have to ask before. Both search HNSW
graphs, with the least effort that reaches our recall. Notes and vectors are those of the gateway's benchmark; the three
take turns, and the ratios are medians over the rounds. The last line is one JSON object, latencies in milliseconds.

    python tests/bench/peers.py --peers-venv .venv-peers [--notes 100000] [--seconds 10] [--rounds 3]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
from clusters import ROWS_OF_A_CLUSTER, clustered
from gateway import KS, Load, ask, note, process, stack, warm_up
from tqdm import tqdm

from service.keys import create_key
from service.processes.state import free_port

ASKED = 200  # notes whose answers are compared with exact search
EFFORTS = (20, 30, 40, 60, 80, 120, 160, 240, 400, 800)
LINKS, BUILD_EFFORT = 16, 100
BODIES = 2000
LOADED_AT_ONCE = 2000

POSTGRES = """
import sys, pgserver
server = pgserver.get_server(sys.argv[1])
for setting in ("shared_buffers='1GB'", "maintenance_work_mem='1GB'", "max_connections=200", "jit=off"):
    server.psql(f"ALTER SYSTEM SET {setting};")
server.cleanup()
server = pgserver.get_server(sys.argv[1])
print(server.get_uri(), pgserver.__file__, flush=True)
sys.stdin.read()
server.cleanup()
"""
SCHEMA = """
CREATE EXTENSION vector;
CREATE TABLE notes (id int PRIMARY KEY, title text, category text, v vector({dim}));
"""
GRAPH = f"CREATE INDEX ON notes USING hnsw (v vector_ip_ops) WITH (m = {LINKS}, ef_construction = {BUILD_EFFORT});"
RELATED = """
SELECT id, title, category, -(v <#> (SELECT v FROM notes WHERE id = {id})) AS score FROM notes WHERE id <> {id}
ORDER BY v <#> (SELECT v FROM notes WHERE id = {id}) LIMIT {k};
"""
POST = """
local bodies, asked = {{}}, 0
for line in io.lines("{bodies}") do bodies[#bodies + 1] = line end
wrk.headers["Content-Type"] = "application/json"
request = function() asked = asked + 1; return wrk.format("POST", "{path}", nil, bodies[asked % #bodies + 1]) end
"""

Figures = dict[str, float]


class Contender(Protocol):
    """A server that holds all notes."""

    def tune(self, effort: int) -> None:
        """How much a search may look at, from now on."""

    def related(self, number: int, k: int) -> Sequence[int]:
        """The k notes closest to one, without it."""

    def load(self, k: int, connections: int, seconds: int) -> Figures:
        """Questions a second, and the latencies."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-venv", type=Path, required=True, help="environment with tests/bench/peers.txt")
    parser.add_argument("--notes", type=int, default=100_000, help="size of the store")
    parser.add_argument("--seconds", type=int, default=10, help="length of each run")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each contender takes")
    parser.add_argument("--connections", type=int, default=16, help="questions under way at a time")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    vectors = clustered(options.notes, 1, max(1, options.notes // ROWS_OF_A_CLUSTER))
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL does not run as root
        contenders: dict[str, Contender] = {
            "notellm": running.enter_context(notellm(folder, options.notes)),
            "pgvector": running.enter_context(pgvector(folder, options.peers_venv, vectors)),
            "chroma": running.enter_context(chroma(folder, options.peers_venv, vectors)),
        }
        report: dict[str, Any] = {"notes": options.notes, "connections": options.connections}
        for k in KS:
            report[f"k={k}"] = compare(contenders, vectors, k, options)
        print(json.dumps(report))


def compare(
    contenders: dict[str, Contender], vectors: np.ndarray, k: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Recall and speed of each, and our speed in those of the others."""
    truth = exact(vectors, k)
    ours = recall(contenders["notellm"], truth, k)
    report: dict[str, Any] = {"notellm": {"recall": ours}}
    for name, peer in contenders.items():
        if name != "notellm":
            report[name] = tuned(peer, ours, truth, k)
    runs: dict[str, list[Figures]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            runs[name].append(contender.load(k, options.connections, options.seconds))
    for name, figures in runs.items():
        for figure in ("per_second", "p50_ms", "p99_ms"):
            report[name][figure] = round(statistics.median(run[figure] for run in figures), 3)
    rates = {name: [run["per_second"] for run in figures] for name, figures in runs.items()}
    for name in report.keys() - {"notellm"}:
        ratios = [mine / theirs for mine, theirs in zip(rates["notellm"], rates[name], strict=True)]
        report[name]["notellm_is_faster"] = round(statistics.median(ratios), 2)
    said(f"k={k}: {report}")
    return report


def tuned(peer: Contender, wanted: float, truth: dict[int, set[int]], k: int) -> dict[str, Any]:
    """The least effort that reaches the recall."""
    for effort in EFFORTS:
        if effort <= k:  # it would find fewer than k
            continue
        peer.tune(effort)
        reached = recall(peer, truth, k)
        if reached >= wanted:
            break
    return {"recall": reached, "ef_search": effort}


def exact(vectors: np.ndarray, k: int) -> dict[int, set[int]]:
    """The k closest notes of each that is asked for, by all inner products."""
    asked = np.random.default_rng(3).choice(len(vectors), ASKED, replace=False)
    scores_AN = vectors[asked] @ vectors.T
    scores_AN[np.arange(ASKED), asked] = -np.inf
    closest_AK = np.argpartition(-scores_AN, k, axis=1)[:, :k]
    return {int(number): set(row.tolist()) for number, row in zip(asked, closest_AK, strict=True)}


def recall(contender: Contender, truth: dict[int, set[int]], k: int) -> float:
    hits = sum(len(true & set(contender.related(number, k))) for number, true in truth.items())
    return round(hits / (k * len(truth)), 4)


class NoteLLM:
    """The gateway with two shards and keys."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def tune(self, effort: int) -> None:
        """It tunes itself."""

    def related(self, number: int, k: int) -> Sequence[int]:
        """Over HTTP."""
        answer = ask(self._load.url, f"/notes/{number}/related?k={k}", self._load.bearer).json()
        return [int(item["note_id"]) for item in answer["items"]]

    def load(self, k: int, connections: int, seconds: int) -> Figures:
        """Ids at random, by wrk."""
        return self._load.run(f"/notes/%d/related?k={k}", connections, seconds)


@contextmanager
def notellm(folder: Path, notes: int) -> Iterator[NoteLLM]:
    own = folder / "notellm"
    own.mkdir()
    bearer = f"Authorization: Bearer {create_key(own / 'keys.json', ['read'])[1]}"
    with stack(own, notes, bearer) as url:
        load = Load(url, own, notes, bearer)
        warm_up(load, f"/notes/%d/related?k={KS[0]}")
        yield NoteLLM(load)


class PgVector:
    """PostgreSQL with a table of notes, and a graph over their vectors."""

    def __init__(self, uri: str, programs: Path, folder: Path, notes: int) -> None:
        self._uri = uri
        self._programs = programs
        self._folder = folder
        self._notes = notes
        self._effort = EFFORTS[0]

    def tune(self, effort: int) -> None:
        """hnsw.ef_search of every session from now on."""
        self._effort = effort

    def related(self, number: int, k: int) -> Sequence[int]:
        """By psql."""
        rows = self.psql(RELATED.format(id=number, k=k)).splitlines()
        return [int(row.partition("|")[0]) for row in rows]

    def load(self, k: int, connections: int, seconds: int) -> Figures:
        """Ids at random, by pgbench; each answer's time is in its log."""
        script = self._folder / "related.sql"
        script.write_text(f"\\set id random(0, {self._notes - 1})\n" + RELATED.format(id=":id", k=k))
        log = self._folder / "pgbench"
        self._run(
            "pgbench", "-n", "-Mprepared", "-j1", "-l", f"--log-prefix={log}", f"-c{connections}", f"-T{seconds}",
            "-f", str(script), self._uri,
        )  # fmt: skip
        files = list(self._folder.glob("pgbench.*"))
        times_ms = [int(line.split()[2]) / 1000 for file in files for line in file.read_text().splitlines()]
        for file in files:
            file.unlink()
        p50_ms, p99_ms = np.percentile(times_ms, [50, 99])
        return {"per_second": len(times_ms) / seconds, "p50_ms": float(p50_ms), "p99_ms": float(p99_ms)}

    def psql(self, statements: str) -> str:
        """What they print."""
        return self._run("psql", "-qAt", "-v", "ON_ERROR_STOP=1", self._uri, given=statements)

    def _run(self, program: str, *arguments: str, given: str = "") -> str:
        environment = os.environ | {"PGOPTIONS": f"-c hnsw.ef_search={self._effort}"}
        command = [str(self._programs / program), *arguments]
        return subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=True).stdout


@contextmanager
def pgvector(folder: Path, venv: Path, vectors: np.ndarray) -> Iterator[PgVector]:
    own = folder / "pgvector"
    own.mkdir()
    own.chmod(0o777)
    command = [str(venv / "bin" / "python"), "-c", POSTGRES, str(own / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin
        assert server.stdout
        try:
            uri, module = server.stdout.readline().split()
            postgres = PgVector(uri, Path(module).parent / "pginstall" / "bin", own, len(vectors))
            postgres.psql(SCHEMA.format(dim=vectors.shape[1]))
            for start in tqdm(range(0, len(vectors), LOADED_AT_ONCE), "pgvector", unit_scale=LOADED_AT_ONCE):
                batch = vectors[start : start + LOADED_AT_ONCE]
                rows = (
                    f"{one.id}\t{one.title}\t{one.category}\t{json.dumps(vector)}"
                    for one, vector in zip(map(note, range(start, start + len(batch))), batch.tolist(), strict=True)
                )
                postgres.psql("COPY notes FROM STDIN;\n" + "\n".join(rows) + "\n\\.\n")
            postgres.psql(GRAPH)
            postgres.psql("VACUUM ANALYZE notes;")
            yield postgres
        finally:
            server.stdin.close()
            server.wait()


class Chroma:
    """A collection of notes behind `chroma run`."""

    def __init__(self, url: str, path: str, folder: Path, vectors: np.ndarray) -> None:
        self._client = httpx.Client(base_url=url, timeout=60)
        self._url = url
        self._path = path
        self._folder = folder
        self._vectors = vectors

    def tune(self, effort: int) -> None:
        """ef_search of the collection from now on."""
        self.call("PUT", "", {"new_configuration": {"hnsw": {"ef_search": effort}}})

    def related(self, number: int, k: int) -> Sequence[int]:
        """Over HTTP; the note itself is found, too, and left out."""
        answer = self.call("POST", "/query", self._question(number, k))
        return [int(id_) for id_ in answer["ids"][0] if int(id_) != number][:k]

    def load(self, k: int, connections: int, seconds: int) -> Figures:
        """Vectors of notes at random, by wrk."""
        bodies = self._folder / "bodies"
        drawn = np.random.default_rng(4).integers(len(self._vectors), size=BODIES)
        bodies.write_text("\n".join(json.dumps(self._question(int(number), k)) for number in drawn))
        load = Load(self._url, self._folder, len(self._vectors), "X-Nothing: 0")
        return load.run(f"{self._path}/query", connections, seconds, POST.replace("{bodies}", str(bodies)))

    def call(self, method: str, path: str, body: object) -> Any:
        """One request to the collection."""
        answer = self._client.request(method, self._path + path, json=body)
        answer.raise_for_status()
        return answer.json()

    def _question(self, number: int, k: int) -> dict[str, object]:
        vector = self._vectors[number].tolist()
        return {"query_embeddings": [vector], "n_results": k + 1, "include": ["metadatas", "distances"]}


@contextmanager
def chroma(folder: Path, venv: Path, vectors: np.ndarray) -> Iterator[Chroma]:
    own = folder / "chroma"
    own.mkdir()
    port = free_port("127.0.0.1", 0, "")
    url, base = f"http://127.0.0.1:{port}", "/api/v2/tenants/default_tenant/databases/default_database/collections"
    command = [str(venv / "bin" / "chroma"), "run", "--path", str(own / "data"), "--port", str(port)]
    with process(command, dict(os.environ) | {"ANONYMIZED_TELEMETRY": "0"}, own):
        wait_for(lambda: httpx.get(f"{url}/api/v2/heartbeat").status_code == 200)
        graph = {"space": "ip", "max_neighbors": LINKS, "ef_construction": BUILD_EFFORT}
        created = httpx.post(url + base, json={"name": "notes", "configuration": {"hnsw": graph}})
        created.raise_for_status()
        collection = Chroma(url, f"{base}/{created.json()['id']}", own, vectors)
        for start in tqdm(range(0, len(vectors), LOADED_AT_ONCE), "chroma", unit_scale=LOADED_AT_ONCE):
            batch = vectors[start : start + LOADED_AT_ONCE]
            notes = [note(number) for number in range(start, start + len(batch))]
            collection.call(
                "POST",
                "/add",
                {
                    "ids": [one.id for one in notes],
                    "embeddings": batch.tolist(),
                    "metadatas": [{"title": one.title, "category": one.category} for one in notes],
                },
            )
        yield collection


def wait_for(answers: Callable[[], bool]) -> None:
    from support.service import until

    def is_there() -> bool:
        try:
            return answers()
        except httpx.HTTPError:
            return False

    until(is_there)


def said(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
