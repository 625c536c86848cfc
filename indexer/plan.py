"""How many shards and how much memory a corpus needs, by the table of `indexer.recipes` and by measurements.

Figures are for one replica of each shard, ids of 36 letters (a UUID) and one core at building. Measurements of a
million vectors of 128 numbers, from `make bench-index`, are scaled: training with the square of the lists (their
points times their centers), the others with rows and dimension.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

from indexer.recipes import FLAT, SAMPLE_PER_LIST, IndexRecipe, recipe_for

# FAISS' number of a row, version, hash of the id and its order, two fields; the id.
ROW_BYTES = 8 + 8 + 8 + 4 + 2 * 4 + 36
# What notes have besides category and author: language, exposure, a time, and six hashtags or attributes.
FIELDS_BYTES = 4 + 4 + 12 + 6 * 4
# Unused memory of lists and allocators: 86 bytes a row were measured where the sum was 78.
SLACK_BYTES = 8
TRAINING_S, TRAINED_LISTS = 16.0, 2048
FILLED_PER_S = 50_000
MEASURED_DIM = 128


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of shards, and the figures of each.

    ``resident_bytes`` cannot be dropped; ``building_bytes`` is their peak, while a base is built and the old one still
    searched. ``mapped_bytes`` are on disk, and searches are fast while the page cache holds them.
    """

    shards: int
    rows: int
    recipe: IndexRecipe
    resident_bytes: int
    building_bytes: int
    mapped_bytes: int
    training_s: float
    filling_s: float


def plan(notes: int, dim: int, memory_bytes: int) -> Plan:
    """The fewest shards that each fit into ``memory_bytes`` while a new base is built.

    Raises:
        ValueError: if the dimension cannot be coded, there are no notes, or the memory holds not even one.
    """
    if notes < 1:
        raise ValueError(f"need at least one note; got {notes}")
    fitting = bisect_right(range(1, notes + 1), memory_bytes, key=lambda rows: _building_bytes(rows, dim))
    if not fitting:
        raise ValueError(f"a shard needs {_building_bytes(1, dim)} bytes for one note; got {memory_bytes}")
    shards = math.ceil(notes / fitting)
    rows = math.ceil(notes / shards)
    recipe = recipe_for(rows, dim)
    flat = recipe.name == FLAT
    return Plan(
        shards=shards,
        rows=rows,
        recipe=recipe,
        resident_bytes=_resident_bytes(rows, dim),
        building_bytes=_building_bytes(rows, dim),
        mapped_bytes=0 if flat else _vectors_bytes(rows, dim),
        training_s=TRAINING_S * (recipe.nlist / TRAINED_LISTS) ** 2 * dim / MEASURED_DIM,
        filling_s=0.0 if flat else rows / FILLED_PER_S * dim / MEASURED_DIM,
    )


def _resident_bytes(rows: int, dim: int) -> int:
    vector_bytes = 4 * dim if recipe_for(rows, dim).name == FLAT else dim // 4
    return rows * (vector_bytes + ROW_BYTES + FIELDS_BYTES + SLACK_BYTES)


def _building_bytes(rows: int, dim: int) -> int:
    """Old and new base, the pages of the vectors while they are written, and the training sample."""
    recipe = recipe_for(rows, dim)
    sample_bytes = 4 * dim * SAMPLE_PER_LIST * recipe.nlist
    vectors_bytes = 0 if recipe.name == FLAT else _vectors_bytes(rows, dim)
    return 2 * _resident_bytes(rows, dim) + vectors_bytes + sample_bytes


def _vectors_bytes(rows: int, dim: int) -> int:
    return 2 * dim * rows
