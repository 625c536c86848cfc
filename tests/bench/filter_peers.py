"""A filtered search beside Qdrant's, each embedded in a process, one search after the other on one thread.

The peer is Qdrant Edge, Qdrant's engine as a library from PyPI, with an index of every field that chooses between graph
and scan by itself. Vectors and attributes are those of `filters.py`; it searches with the least effort that reaches our
recall. Filters are of a tenth and a thousandth of the notes, the same in every search (``repeated``) or another in each
(``fresh``), and ours are read from their text. The two take turns; costs are of the processor and medians over the
rounds, ``notellm_is_cheaper`` those of the ratios. The last line is one JSON object.

    python tests/bench/filter_peers.py --peers-venv .venv-peers [--vectors 100000] [--rounds 5]
"""

import argparse
import array
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

K = 10
ASKED = 200  # searches of a turn
EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LINKS, BUILD_EFFORT = 16, 100
LOADED_AT_ONCE = 2000

# A range or values of one field: {"key", "gte", "lt"} or {"key", "any"}.
Condition = dict[str, Any]
FILTERS: dict[str, Callable[[int], Condition | None]] = {
    "none": lambda _: None,
    "tenth_repeated": lambda _: {"key": "city", "any": ["c1", "c2", "c3", "c4", "c5"]},
    "tenth_fresh": lambda number: {"key": "price", "gte": number * 7 % 89_999, "lt": number * 7 % 89_999 + 10_000},
    "thousandth_repeated": lambda _: {"key": "brand", "any": ["b7"]},
    "thousandth_fresh": lambda number: {"key": "price", "gte": number * 7 % 99_899, "lt": number * 7 % 99_899 + 100},
}


class Contender(Protocol):
    """All notes, embedded in a process of its own thread."""

    def ask(self, effort: int, searches: Sequence[tuple[int, Condition | None]]) -> tuple[float, list[list[int]]]:
        """Seconds of the processor, and the rows that each search found; a search is a query's number and a filter."""
        ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-venv", type=Path, help="environment with peers.txt")
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--qdrant", type=Path, help=argparse.SUPPRESS)  # the peer's process
    options = parser.parse_args()
    if options.qdrant:
        serve_qdrant(options.qdrant)
    else:
        print(json.dumps(measure(options.peers_venv, options.vectors, options.rounds)))


def measure(peers_venv: Path, rows: int, rounds: int) -> dict[str, Any]:
    import numpy as np
    from clusters import DIM, ROWS_OF_A_CLUSTER, clustered
    from filters import QUERIES, attributes

    clusters = max(1, rows // ROWS_OF_A_CLUSTER)
    vectors, queries = clustered(rows, 1, clusters), clustered(QUERIES, 2, clusters)
    fields = attributes(rows, vectors)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for array_, file in ((vectors, "vectors"), (queries, "queries")):
            np.ascontiguousarray(array_, dtype="<f4").tofile(folder / file)
        (folder / "notes.json").write_text(json.dumps({"dim": DIM, "fields": fields}))
        contenders = {"notellm": NoteLLM(vectors, fields, queries, folder), "qdrant": Qdrant(peers_venv, folder)}
        report: dict[str, Any] = {"vectors": rows, "dim": DIM, "k": K, "qdrant_built_s": contenders["qdrant"].built_s}
        for name, make in FILTERS.items():
            report[name] = compare(contenders, name, make, rounds, Truth(vectors, fields, queries))
        contenders["qdrant"].close()
    return report


def compare(
    contenders: dict[str, Contender], name: str, make: Callable[[int], Condition | None], rounds: int, truth: "Truth"
) -> dict[str, Any]:
    first = [(query, make(query * 349)) for query in range(ASKED)]
    ours = truth.recall(first, contenders["notellm"].ask(0, first)[1])
    for effort in EFFORTS:
        theirs = truth.recall(first, contenders["qdrant"].ask(effort, first)[1])
        if theirs >= ours:
            break
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(1 + rounds):
        searches = [(query, make((round_ + 2) * 100_003 + query)) for query in range(ASKED)]
        for contender, asked in contenders.items():
            taken[contender].append(asked.ask(effort, searches)[0])
    costs = {contender: statistics.median(took[1:]) / ASKED * 1e6 for contender, took in taken.items()}
    ratio = statistics.median(their / our for our, their in zip(*(took[1:] for took in taken.values()), strict=True))
    figures = {
        "recall": {"notellm": ours, "qdrant": theirs},
        "hnsw_ef": effort,
        "us_of_processor": {contender: round(cost) for contender, cost in costs.items()},
        "notellm_is_cheaper": round(ratio, 2),
    }
    print(f"{name}: {figures}", file=sys.stderr, flush=True)
    return figures


class Truth:
    """The nearest notes that pass, by products of all of them."""

    def __init__(self, vectors: Any, fields: Sequence[dict[str, Any]], queries: Any) -> None:
        self._vectors, self._fields, self._queries = vectors, fields, queries

    def recall(self, searches: Sequence[tuple[int, Condition | None]], found: Sequence[Sequence[int]]) -> float:
        """The share of them that was found."""
        import numpy as np

        hits = wanted = 0
        for (query, condition), rows in zip(searches, found, strict=True):
            passing = np.flatnonzero([condition is None or passes(one, condition) for one in self._fields])
            nearest = passing[np.argsort(-(self._vectors[passing] @ self._queries[query]))[:K]]
            hits += len({*nearest.tolist()} & {*rows})
            wanted += len(nearest)
        return round(hits / wanted, 4)


def passes(fields: dict[str, Any], condition: Condition) -> bool:
    value = fields[condition["key"]]
    return value in condition["any"] if "any" in condition else condition["gte"] <= value < condition["lt"]


class NoteLLM:
    """A shard's index in this process."""

    def __init__(self, vectors: Any, fields: Sequence[dict[str, Any]], queries: Any, folder: Path) -> None:
        import faiss
        from filters import built

        self._queries = queries
        self._index = built(vectors, fields, folder)
        faiss.omp_set_num_threads(1)

    def ask(self, _effort: int, searches: Sequence[tuple[int, Condition | None]]) -> tuple[float, list[list[int]]]:
        """It tunes itself."""
        from indexer.filters.parser import parse
        from indexer.types import Query

        texts = [(query, condition and text(condition)) for query, condition in searches]
        start_s = time.process_time()
        hits = [
            self._index.search([Query(self._queries[query], K, (), parse(filter_) if filter_ else None)])[0]
            for query, filter_ in texts
        ]
        took_s = time.process_time() - start_s
        return took_s, [[int(id_.removeprefix("note")) for id_ in one.ids] for one in hits]


def text(condition: Condition) -> str:
    key = condition["key"]
    if "any" in condition:
        return f"{key} IN {json.dumps(condition['any'])}"
    return f"{key} >= {condition['gte']} AND {key} < {condition['lt']}"


class Qdrant:
    """A shard of Qdrant Edge in the peers' environment, asked by lines of JSON."""

    def __init__(self, venv: Path, folder: Path) -> None:
        command = [str(venv / "bin" / "python"), __file__, "--qdrant", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.built_s = self._line()

    def ask(self, effort: int, searches: Sequence[tuple[int, Condition | None]]) -> tuple[float, list[list[int]]]:
        """``effort`` is hnsw_ef."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([effort, searches]) + "\n")
        self._process.stdin.flush()
        took_s, found = self._line()
        return took_s, found

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())


def serve_qdrant(folder: Path) -> None:
    """Build the shard, say how long that took, and answer lines until there are no more. Runs without NumPy."""
    import qdrant_edge as edge

    notes = json.loads((folder / "notes.json").read_text())
    dim, fields = notes["dim"], notes["fields"]
    start_s = time.monotonic()
    graph = edge.HnswIndexConfig(m=LINKS, ef_construct=BUILD_EFFORT, full_scan_threshold=10_000)
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(size=dim, distance=edge.Distance.Dot),
        hnsw_config=graph,
        optimizers=edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1000),
        max_search_threads=1,
    )
    (folder / "qdrant").mkdir()
    shard = edge.EdgeShard.create(str(folder / "qdrant"), config)
    kinds = edge.PayloadSchemaType
    for key, kind in {"city": kinds.Keyword, "brand": kinds.Keyword, "sale": kinds.Bool, "price": kinds.Float}.items():
        shard.update(edge.UpdateOperation.create_field_index(key, kind))
    vectors = list(matrix(folder / "vectors", dim))
    for start in range(0, len(vectors), LOADED_AT_ONCE):
        rows = range(start, min(start + LOADED_AT_ONCE, len(vectors)))
        points = [edge.Point(row, vectors[row], fields[row]) for row in rows]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    del vectors
    print(json.dumps(round(time.monotonic() - start_s)), flush=True)
    queries = [edge.Query.Nearest(query) for query in matrix(folder / "queries", dim)]

    def filtered(condition: Condition | None) -> Any:
        if condition is None:
            return None
        if "any" in condition:
            return edge.Filter(must=[edge.FieldCondition(condition["key"], match=edge.MatchAny(condition["any"]))])
        bounds = edge.RangeFloat(gte=condition["gte"], lt=condition["lt"])
        return edge.Filter(must=[edge.FieldCondition(condition["key"], range=bounds)])

    for line in sys.stdin:
        effort, searches = json.loads(line)
        params = edge.SearchParams(hnsw_ef=effort)
        start_s = time.process_time()
        found = [
            shard.search(edge.SearchRequest(queries[query], K, filter=filtered(condition), params=params))
            for query, condition in searches
        ]
        took_s = time.process_time() - start_s
        print(json.dumps([took_s, [[point.id for point in points] for points in found]]), flush=True)


def matrix(file: Path, dim: int) -> Iterable[list[float]]:
    numbers = array.array("f", file.read_bytes()).tolist()
    return (numbers[start : start + dim] for start in range(0, len(numbers), dim))


if __name__ == "__main__":
    main()
