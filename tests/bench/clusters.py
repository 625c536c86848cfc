"""Vectors for the index's benchmarks, clustered, from a seeded generator; and an index of them on a flat base."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from indexer.base import FlatBase
from indexer.index import VectorIndex
from indexer.recipes import FLAT, IndexRecipe
from indexer.rows.bitmap import all_alive
from indexer.rows.packed_fields import PackedFields
from indexer.rows.rows import Entries, Rows

DIM = 128
ROWS_OF_A_CLUSTER = 1000
SPREAD = 0.6
MODEL = "be9c000000000000"


def clustered(rows: int, seed: int, clusters: int) -> np.ndarray:
    """Unit vectors around centers that are the same for every seed."""
    centers = unit(np.random.default_rng(0).standard_normal((clusters, DIM), dtype=np.float32))
    rng = np.random.default_rng(seed)
    vectors = SPREAD / DIM**0.5 * rng.standard_normal((rows, DIM), dtype=np.float32)
    vectors += centers[rng.integers(clusters, size=rows)]
    return unit(vectors)


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def flat_index(vectors: np.ndarray, numbers: np.ndarray, folder: Path) -> VectorIndex:
    """An index of vectors named after their numbers, in a flat base however many: the next compaction trains."""
    rows = len(vectors)
    fields = PackedFields({"category": f"c{number % 50}", "author": f"a{number // 10}"} for number in numbers)
    entries = Entries([f"note{number}" for number in numbers], [1] * rows, vectors, fields)
    contents = replace(
        VectorIndex(DIM, MODEL).contents(),
        base=FlatBase(IndexRecipe(FLAT, rows), vectors),
        rows=Rows.of(entries),
        base_alive=all_alive(rows),
    )
    return VectorIndex.restore(contents, folder)
