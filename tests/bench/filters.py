"""What a filter costs a search: one shard in a process of its own, 16 callers at once or one, each waiting for hits.

Notes have four attributes, two texts, a truth and a number, and a topic, which goes with the vector. Filters that a
tenth, a thousandth and other shares of the notes pass take turns with no filter; a cost is the median of the ratios of
the rounds, by the clock and by time of the processor, which other programs of the machine change less. ``repeated``
filters are the same from request to request, as those of a page or a shop are; ``fresh`` ones differ in every request,
so that none was evaluated before. With one caller, each search travels and runs alone; of 16 callers, those without a
filter and with the same one share searches. Some rows are in the delta, as they are in a busy shard. Recall is that of
the best ten among the notes that pass, by products of all of them. Bytes are those of the columns' arrays. The last
line is one JSON object.

    python tests/bench/filters.py [--vectors 100000] [--rounds 7]
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from clusters import DIM, MODEL, ROWS_OF_A_CLUSTER, clustered

from indexer.base import FlatBase
from indexer.filters.expression import Expression
from indexer.filters.parser import parse
from indexer.index import VectorIndex
from indexer.recipes import FLAT, IndexRecipe
from indexer.rows.bitmap import all_alive
from indexer.rows.columns import Columns
from indexer.rows.packed_fields import PackedFields
from indexer.rows.rows import Entries, Rows
from indexer.serving.client import ShardedSearcher
from indexer.serving.server import serve_shard
from indexer.snapshot import Snapshots
from indexer.types import Change, Fields

CALLERS, K = 16, 10
REQUESTS = 1600  # of each turn
QUERIES = 256
DELTA = 500
CITIES, BRANDS, CENTS = 50, 1000, 100_000
TIMEOUT_S = 60.0

Filters = Callable[[int], str]


def tenth(number: int) -> str:
    return f"price >= {number % 89_999} AND price < {number % 89_999 + CENTS // 10}"


def thousandth(number: int) -> str:
    return f"price >= {number % 99_899} AND price < {number % 99_899 + CENTS // 1000}"


FILTERS: dict[str, Filters] = {
    "tenth_repeated": lambda _: 'city IN ["c1", "c2", "c3", "c4", "c5"]',
    "tenth_fresh": tenth,
    "tenth_of_other_clusters_repeated": lambda _: 'topic = "t3"',
    "thousandth_repeated": lambda _: 'brand = "b7"',
    "thousandth_fresh": thousandth,
    "hundredth_repeated": lambda _: "price < 1000",
    "twentieth_repeated": lambda _: "price < 5000",
    "half_repeated": lambda _: "sale = true",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000, help="size of the shard")
    parser.add_argument("--rounds", type=int, default=7, help="turns that each filter takes")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # the shard's process
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.serve:
            runner.run(serve(options.serve))
        else:
            print(json.dumps(runner.run(measure(options.vectors, options.rounds))))


def attributes(rows: int, vectors: np.ndarray) -> list[Fields]:
    """Of each note; ``topic`` goes with its vector."""
    random = np.random.default_rng(5)
    drawn = zip(
        random.integers(CITIES, size=rows),
        random.integers(BRANDS, size=rows),
        random.integers(2, size=rows),
        random.integers(CENTS, size=rows),
        strict=True,
    )
    topics = (vectors @ clustered(10, 9, 1000).T).argmax(axis=1)
    return [
        {"city": f"c{city}", "brand": f"b{brand}", "sale": bool(sale), "price": float(price), "topic": f"t{topic}"}
        for (city, brand, sale, price), topic in zip(drawn, topics, strict=True)
    ]


def built(vectors: np.ndarray, fields: Sequence[Fields], folder: Path) -> VectorIndex:
    """An index with a trained base, and the last rows in its delta."""
    base = len(vectors) - DELTA
    entries = Entries([f"note{row}" for row in range(base)], [1] * base, vectors[:base], PackedFields(fields[:base]))
    contents = replace(
        VectorIndex(DIM, MODEL).contents(),
        base=FlatBase(IndexRecipe(FLAT, base), entries.vectors_MD),
        rows=Rows.of(entries),
        base_alive=all_alive(base),
    )
    index = VectorIndex.restore(contents, folder)
    index.compact(retrain=True)
    index.apply(
        [Change("1-0", f"note{row}", 1, MODEL, vectors[row], fields=fields[row]) for row in range(base, len(vectors))]
    )
    return index


async def serve(folder: Path) -> None:
    loaded = Snapshots(folder, MODEL).load()
    assert loaded
    server = await serve_shard("127.0.0.1:0", shard=0)
    server.add(loaded[0], cursor=lambda: "1-0")
    print(server.address, flush=True)
    await asyncio.Event().wait()


async def measure(rows: int, rounds: int) -> dict[str, Any]:
    clusters = max(1, rows // ROWS_OF_A_CLUSTER)
    vectors, queries = clustered(rows, 1, clusters), clustered(QUERIES, 2, clusters)
    fields = attributes(rows, vectors)
    report: dict[str, Any] = {"vectors": rows, "dim": DIM, "callers": CALLERS, "k": K, "delta": DELTA}
    report["bytes_of_four_attributes"] = round(bytes_of(fields), 1)
    report["us_of_gateway"] = {"two_comparisons": gateway_us(tenth), "eight_comparisons": gateway_us(eight)}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Snapshots(Path(name), MODEL).save(built(vectors, fields, Path(name)).contents(), "1-0")
        shard = subprocess.Popen([sys.executable, __file__, "--serve", name], stdout=subprocess.PIPE, text=True)
        assert shard.stdout
        try:
            searcher = ShardedSearcher([shard.stdout.readline().strip()], MODEL)
            report["recall"] = {
                name: await recall(searcher, vectors, fields, queries, make) for name, make in FILTERS.items()
            }
            said(f"recall: {report['recall']}")
            for callers in (CALLERS, 1):
                report[f"callers={callers}"] = await race(searcher, shard.pid, queries, rounds, callers)
            await searcher.close()
        finally:
            shard.terminate()
            shard.wait()
    return report


def eight(number: int) -> str:
    return (
        f'category = "Travel" AND (price < {number} OR sale = true) AND NOT author IN ["bob", "eve"] AND '
        'created_at >= "2026-01-01T00:00:00Z" AND hashtags = "ramen" AND city EXISTS AND brand != "b7"'
    )


def gateway_us(make: Filters) -> int:
    """What a filter that is new costs a gateway: it is parsed, and its names and its tree are read from it."""
    start_s = time.process_time()
    for number in range(REQUESTS):
        expression = parse(make(number))
        assert expression.names()
        assert expression.tree
    return round((time.process_time() - start_s) / REQUESTS * 1e6)


def bytes_of(fields: Sequence[Fields]) -> float:
    """A note's, without its topic: that makes them five."""
    four = Columns.of([{name: value for name, value in one.items() if name != "topic"} for one in fields])
    columns = (*four.texts.values(), *four.numbers.values())
    return sum(part.nbytes for column in columns for part in (column.values, column.starts, column.rows)) / len(fields)


async def recall(
    searcher: ShardedSearcher, vectors: np.ndarray, fields: Sequence[Fields], queries: np.ndarray, make: Filters
) -> float:
    found, wanted = 0, 0
    for number, query in enumerate(queries):
        expression = parse(make(number * 349))
        rows = passing(fields, expression)
        nearest = rows[np.argsort(-(vectors[rows] @ query))[:K]]
        hits = (await searcher.search(query, K, filter=expression, timeout_s=TIMEOUT_S)).hits.ids
        assert len(hits) == len(nearest), "fewer hits than there are notes that pass"
        found += len({f"note{row}" for row in nearest} & set(hits))
        wanted += len(nearest)
    return round(found / wanted, 4)


_kept: dict[Expression, np.ndarray] = {}


def passing(fields: Sequence[Fields], expression: Expression) -> np.ndarray:
    if expression not in _kept:
        _kept[expression] = np.flatnonzero([expression.matches(one) for one in fields])
    return _kept[expression]


async def race(searcher: ShardedSearcher, shard: int, queries: np.ndarray, rounds: int, callers: int) -> dict[str, Any]:
    """Searches per second of each contender, and what a search of it costs in those without a filter."""
    contenders: dict[str, Filters | None] = {"unfiltered": None, **FILTERS}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    of_processor: dict[str, list[float]] = {name: [] for name in contenders}
    numbers = count()
    for _ in range(1 + rounds):
        for name, make in contenders.items():
            filters = [parse(make(next(numbers) * 7)) if make else None for _ in range(REQUESTS)]
            start_s, start_cpu_s = time.perf_counter(), processor_s(shard)
            await asyncio.gather(*(call(searcher, queries, filters[caller::callers]) for caller in range(callers)))
            seconds[name].append(time.perf_counter() - start_s)
            of_processor[name].append(processor_s(shard) - start_cpu_s)
    report = {
        "cost": ratios(seconds),
        "cost_of_processor": ratios(of_processor),
        "searches_per_s": {name: round(REQUESTS / statistics.median(took[1:])) for name, took in seconds.items()},
        "us_of_processor": {
            name: round(1e6 / REQUESTS * statistics.median(took[1:])) for name, took in of_processor.items()
        },
    }
    said(f"{report}")
    return report


def ratios(taken: dict[str, list[float]]) -> dict[str, float]:
    """Medians of what each took in that of no filter; the first round warms up."""
    plain = taken["unfiltered"][1:]
    return {
        name: round(statistics.median(own / other for own, other in zip(took[1:], plain, strict=True)), 2)
        for name, took in taken.items()
        if name != "unfiltered"
    }


def processor_s(shard: int) -> float:
    """Seconds of the processor that the shard and the callers took; other processes of the machine do not count."""
    fields = Path(f"/proc/{shard}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + time.process_time()


async def call(searcher: ShardedSearcher, queries: np.ndarray, filters: Sequence[Expression | None]) -> None:
    for place, filter_ in enumerate(filters):
        await searcher.search(queries[place % QUERIES], K, filter=filter_, timeout_s=TIMEOUT_S)


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
