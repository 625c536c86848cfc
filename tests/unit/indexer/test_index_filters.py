"""Filters inside the search: as many items as there are, whatever share of the notes passes."""

import numpy as np
import pytest
from support.index import neighbors

from indexer.filters.expression import Expression, Not, OneOf, all_of
from indexer.index import VectorIndex
from indexer.types import Change

DIM = 16
ROWS = 20_000
CATEGORIES = {"large": 10_000, "middle": 9_980, "rare": 20}  # rows of each; 20 of 20,000 are 0.1 %
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(ROWS, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CATEGORY = RNG.permutation(np.repeat(list(CATEGORIES), list(CATEGORIES.values())))
AUTHOR = RNG.integers(50, size=ROWS).astype(str)
QUERIES = VECTORS[::2000] * 0.9 + VECTORS[1::2000] * 0.1
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


def change(row: int, version: int = 1) -> Change:
    return Change(
        "0-0", str(row), version, "m", VECTORS[row], fields={"category": CATEGORY[row], "author": AUTHOR[row]}
    )


def of(category: str | None, author: str | None = None) -> Expression | None:
    """Of this category, and not of this author."""
    return all_of(
        [category and OneOf("category", (category,)), author and Not(OneOf("author", (author,)))],
    )


@pytest.fixture(scope="module", params=["base", "base and delta"])
def index(request: pytest.FixtureRequest) -> VectorIndex:
    """Rows 0..9 are deleted."""
    index = VectorIndex(DIM, "m")
    split = ROWS if request.param == "base" else ROWS - 500
    index.apply([change(row) for row in range(split)])
    index.compact()
    index.apply([change(row) for row in range(split, ROWS)])
    index.apply([Change("0-1", str(row), 2, "m", None) for row in range(10)])
    return index


def passing(category: str | None, author: str | None) -> np.ndarray:
    rows = np.arange(10, ROWS)
    if category:
        rows = rows[CATEGORY[rows] == category]
    return rows[AUTHOR[rows] != author] if author else rows


@pytest.mark.parametrize("author", [None, "7"])
@pytest.mark.parametrize("category", [None, *CATEGORIES])
def test_a_search_finds_the_k_nearest_of_the_notes_that_pass(index, category, author):
    rows = passing(category, author)
    k = 10
    results = neighbors(index, QUERIES, k, filter_=of(category, author))

    hits = 0
    for query, found in zip(QUERIES, results, strict=True):
        nearest = rows[np.argsort(-(VECTORS[rows] @ query))[:k]]
        assert len(found) == k
        assert {int(near.id) for near in found} <= set(rows.tolist())
        hits += len({int(near.id) for near in found} & set(nearest.tolist()))
    assert hits / (k * len(QUERIES)) >= (1.0 if category == "rare" else 0.95)


def test_all_of_a_rare_category_can_be_had_and_no_more(index):
    [found] = neighbors(index, QUERIES[:1], 100, filter_=of("rare"))

    assert {int(near.id) for near in found} == set(passing("rare", None).tolist())


def test_a_category_that_nobody_wrote_in_has_no_notes(index):
    assert neighbors(index, QUERIES[:1], 5, filter_=of("nobody's")) == [[]]


def test_excluded_ids_make_room_within_a_category(index):
    [found] = neighbors(index, QUERIES[:1], 5, filter_=of("rare"))
    first = [near.id for near in found[:3]]

    [others] = neighbors(index, QUERIES[:1], 5, first, of("rare"))

    assert not {near.id for near in others} & set(first)
    assert len(others) == 5


def test_a_note_that_moved_to_another_category_is_found_there_only():
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", "a", 1, "m", VECTORS[0], fields={"category": "old"})])
    index.compact()
    index.apply([Change("0-1", "a", 2, "m", VECTORS[0], fields={"category": "new"})])

    for _ in range(2):
        assert neighbors(index, VECTORS[:1], 5, filter_=of("old")) == [[]]
        assert neighbors(index, VECTORS[:1], 5, filter_=of("new"))[0][0].id == "a"
        index.compact()
