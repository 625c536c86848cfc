"""Filters inside the search: as many items as there are, whatever share of the notes passes."""

import numpy as np
import pytest
from support.index import neighbors

from indexer.filters.expression import Expression, Not, OneOf, all_of
from indexer.filters.parser import parse
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
# The direction that a vector comes closest to, of 2 x 16: rows of one lie together, and far from most queries.
SIDE = np.concatenate([VECTORS, -VECTORS], axis=1).argmax(axis=1)
QUERIES = VECTORS[::2000] * 0.9 + VECTORS[1::2000] * 0.1
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


def change(row: int, version: int = 1) -> Change:
    fields = {"category": CATEGORY[row], "author": AUTHOR[row], "side": float(SIDE[row]), "row": float(row)}
    return Change("0-0", str(row), version, "m", VECTORS[row], fields=fields)


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


@pytest.mark.parametrize("k", [10, 100])
@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("side = 3", SIDE == 3),
        ("side IN [3, 7, 20]", np.isin(SIDE, [3, 7, 20])),
        ("side = 3 OR row < 1000", (SIDE == 3) | (np.arange(ROWS) < 1000)),
        ("row >= 700 AND row < 1000", (np.arange(ROWS) >= 700) & (np.arange(ROWS) < 1000)),
        ("side != 3", SIDE != 3),
    ],
)
def test_notes_that_lie_far_from_the_query_are_found_like_others(index, text, passes, k):
    rows = np.flatnonzero(passes & (np.arange(ROWS) >= 10))

    results = neighbors(index, QUERIES, k, filter_=parse(text))

    hits = 0
    for query, found in zip(QUERIES, results, strict=True):
        nearest = {str(row) for row in rows[np.argsort(-(VECTORS[rows] @ query))[:k]]}
        assert len(found) == k
        hits += len({near.id for near in found} & nearest)
    assert hits / (k * len(QUERIES)) >= 0.96


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


def test_of_few_notes_in_many_places_as_many_lists_are_probed_as_hold_enough_of_them():
    """Vectors in clusters, so that an unfiltered search probes no more lists than its recipe says at first."""
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.normal(size=(400, DIM)), 50, axis=0) + 0.1 * rng.normal(size=(ROWS, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = VectorIndex(DIM, "m")
    index.apply(
        [Change("0-0", str(row), 1, "m", vectors[row], fields={"part": float(row % 40)}) for row in range(ROWS)]
    )
    index.compact()
    assert index.contents().base.recipe.nprobe == 16
    rows = np.arange(0, ROWS, 40)

    for k in (10, 50):
        hits = 0
        for query, found in zip(
            vectors[1::900], neighbors(index, vectors[1::900], k, (), parse("part = 0")), strict=True
        ):
            nearest = {str(row) for row in rows[np.argsort(-(vectors[rows] @ query))[:k]]}
            hits += len({near.id for near in found} & nearest)
        assert hits / (k * len(vectors[1::900])) >= 0.96
