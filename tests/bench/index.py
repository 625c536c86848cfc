"""The index on clustered vectors, compared with the FAISS index inside it, IndexFlatIP and hnswlib, in one run.

Vectors come from a seeded generator. Searches are timed in rounds in which the contenders take turns, one query a
call on one thread and in batches on two; a ratio is the median of the ratios of the rounds: only ratios can be compared
between machines, and between minutes of one. Memory and cold start are those of a process that loads the
snapshot. The last line is one JSON object.

    python tests/bench/index.py [--vectors 1000000] [--rounds 5] [--without-hnsw]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from clusters import DIM, MODEL, ROWS_OF_A_CLUSTER, clustered, flat_index

from indexer.base import EXACT_UP_TO, IvfBase
from indexer.index import VectorIndex
from indexer.recipes import SAMPLE_PER_LIST, recipe_for
from indexer.snapshot import Snapshots
from indexer.types import Hits, Query

QUERIES = 512
BATCH = 64
PASSES = 10  # over all queries, in batches: one takes 30 ms, in which a moment of the machine decides
THREADS = 2
HNSW_LINKS, HNSW_EFFORT = 16, 100

Search = Callable[[np.ndarray, int], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="size of the index")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contender takes")
    parser.add_argument("--without-hnsw", action="store_true", help="leave hnswlib out: it takes long to build")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # for the process that loads the snapshot
    options = parser.parse_args()
    if options.load:
        print(json.dumps(cold_start(options.load)))
        return
    if options.vectors <= EXACT_UP_TO:
        sys.exit(f"--vectors must exceed {EXACT_UP_TO}: smaller indexes are flat")
    print(json.dumps(measure(options.vectors, options.rounds, hnsw=not options.without_hnsw)))


def measure(rows: int, rounds: int, *, hnsw: bool) -> dict[str, object]:
    clusters = rows // ROWS_OF_A_CLUSTER
    vectors, queries = clustered(rows, 1, clusters), clustered(QUERIES, 2, clusters)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    truth = flat.search(queries, 100)[1]
    report: dict[str, Any] = {"vectors": rows, "dim": DIM}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index, report["build"] = built(vectors, folder)
        said(f"built: {report['build']}")
        snapshots = Snapshots(folder, MODEL)
        snapshots.save(index.contents(), "1-0")
        del vectors
        report["snapshot"] = fresh_process(folder)
        said(f"loaded: {report['snapshot']}")
        index, _ = snapshots.load()
        base = index.contents().base
        report["recipe"] = asdict(base.recipe)
        contenders = {"index": ours(index), "raw_faiss": raw(base), "flat": lambda q, k: flat.search(q, k)[1]}
        report["recall"] = {
            name: {f"@{k}": recall(search, queries, truth, k) for k in (10, 100)} for name, search in contenders.items()
        }
        if hnsw:
            graph, report["hnsw"] = hnsw_at(report["recall"]["index"]["@10"], flat, queries, truth)
            contenders["hnsw"] = graph
        said(f"recall: {report['recall']}")
        report["one_thread"] = {f"k={k}": race(contenders, queries, k, rounds, one_by_one) for k in (10, 100)}
        report["batched_on_two"] = {f"k={k}": race(contenders, queries, k, rounds, batched) for k in (10, 100)}
    return report


def built(vectors: np.ndarray, folder: Path) -> tuple[VectorIndex, dict[str, float]]:
    """The index of these vectors as a compaction makes it, and how fast."""
    faiss.omp_set_num_threads(1)  # as the thread of a shard's chores
    rows = len(vectors)
    recipe = recipe_for(rows, DIM)
    sample = vectors[np.random.default_rng(0).choice(rows, min(rows, SAMPLE_PER_LIST * recipe.nlist), replace=False)]
    training_s = timed(lambda: faiss.index_factory(DIM, recipe.name, faiss.METRIC_INNER_PRODUCT).train(sample))
    index = flat_index(vectors, np.arange(rows), folder)
    building_s = timed(index.compact)
    return index, {
        "training_s": round(training_s, 1),
        "whole_s": round(building_s, 1),
        "vectors_per_s_after_training": round(rows / (building_s - training_s)),
    }


def ours(index: VectorIndex) -> Search:
    return lambda queries, k: index.search([Query(query, k) for query in queries])


def raw(base: IvfBase) -> Search:
    """The FAISS index inside ours, called directly."""
    refined = faiss.IndexRefine(base.ivf, base.store)
    recipe = base.recipe
    params = {
        k: faiss.IndexRefineSearchParameters(
            k_factor=max(recipe.rerank, recipe.min_candidates / k),
            base_index_params=faiss.SearchParametersIVF(nprobe=recipe.nprobe),
        )
        for k in (10, 100)
    }
    return lambda queries, k: refined.search(queries, k, params=params[k])[1]


def hnsw_at(recall_at_10: float, flat: Any, queries: np.ndarray, truth: np.ndarray) -> tuple[Search, dict[str, Any]]:
    """A graph searched with the least effort that reaches this recall."""
    import hnswlib

    rows = flat.ntotal
    graph = hnswlib.Index("ip", DIM)
    graph.init_index(rows, HNSW_EFFORT, HNSW_LINKS)
    vectors = flat.reconstruct_n(0, rows)
    building_s = timed(lambda: graph.add_items(vectors, num_threads=THREADS))

    def search(queries: np.ndarray, k: int) -> Any:
        return graph.knn_query(queries, k, num_threads=1 if len(queries) == 1 else faiss.omp_get_max_threads())[0]

    for effort in (10, 15, 20, 30, 50, 80, 120, 200, 400, 800):
        graph.set_ef(effort)
        reached = recall(search, queries, truth, 10)
        if reached >= recall_at_10:
            break
    return search, {
        "links": HNSW_LINKS,
        "ef": effort,
        "recall@10": reached,
        "vectors_per_s": round(rows / building_s),
        "bytes_per_vector": 4 * DIM + 8 * HNSW_LINKS + 16,
    }


def recall(search: Search, queries: np.ndarray, truth: np.ndarray, k: int) -> float:
    found = search(queries, k)
    if isinstance(found[0], Hits):
        found = [[int(id_.removeprefix("note")) for id_ in hits.ids] for hits in found]
    hits = sum(len(set(row) & set(true)) for row, true in zip(map(list, found), truth[:, :k].tolist(), strict=True))
    return round(hits / truth[:, :k].size, 4)


def one_by_one(search: Search, queries: np.ndarray, k: int) -> None:
    faiss.omp_set_num_threads(1)
    for query in queries[: QUERIES // 2, None]:
        search(query, k)


def batched(search: Search, queries: np.ndarray, k: int) -> None:
    """Batches on several threads, as a shard's server searches."""
    batches = [queries[start : start + BATCH] for start in range(0, QUERIES, BATCH)]
    with ThreadPoolExecutor(THREADS, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        list(pool.map(lambda batch: search(batch, k), batches))


def race(
    contenders: dict[str, Search],
    queries: np.ndarray,
    k: int,
    rounds: int,
    run: Callable[[Search, np.ndarray, int], None],
) -> dict[str, float]:
    """Searches per second of each, and of ours in those of each other."""
    number = QUERIES // 2 if run is one_by_one else QUERIES
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(1 + rounds):
        for name, search in contenders.items():
            few = queries[:32] if name == "flat" and run is one_by_one else queries
            passes = 1 if name == "flat" or run is one_by_one else PASSES
            seconds = timed(lambda search=search, few=few, passes=passes: [run(search, few, k) for _ in range(passes)])
            rates[name].append(passes * min(len(few), number) / seconds)
    medians = {name: round(statistics.median(rate[1:])) for name, rate in rates.items()}  # the first warms up
    ratios = {
        f"of_{name}": round(statistics.median(a / b for a, b in zip(rates["index"][1:], rate[1:], strict=True)), 3)
        for name, rate in rates.items()
        if name != "index"
    }
    said(f"{run.__name__} k={k}: {medians} {ratios}")
    return medians | ratios


def fresh_process(folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--load", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded: dict[str, float] = json.loads(output.splitlines()[-1])
    return loaded


def cold_start(folder: Path) -> dict[str, float]:
    """Seconds of a new process from the snapshot to its first search, and its memory after a thousand."""
    faiss.omp_set_num_threads(1)
    queries = clustered(1000, 3, 1000)
    before = memory_bytes()
    start = time.perf_counter()
    index, _ = Snapshots(folder, MODEL).load()
    index.search([Query(queries[0], 10)])
    first_answer_s = time.perf_counter() - start
    for query in queries:
        index.search([Query(query, 10)])
    after = memory_bytes()
    return {
        "first_answer_s": round(first_answer_s, 2),
        # Mapped pages belong to the file: the system drops them when it needs the room.
        "resident_bytes_per_vector": round((after["RssAnon"] - before["RssAnon"]) / len(index), 1),
        "mapped_bytes_per_vector": round((after["RssFile"] - before["RssFile"]) / len(index), 1),
    }


def memory_bytes() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
