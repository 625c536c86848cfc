"""`VectorIndex` change by change: applied, stale, refused, found."""

import numpy as np
import pytest
from support.index import neighbors

from indexer.index import VectorIndex, compaction_due
from indexer.types import Change, Neighbor, Tally

DIM = 8


def unit(*numbers: float) -> np.ndarray:
    vector = np.zeros(DIM, dtype=np.float32)
    vector[: len(numbers)] = numbers
    return vector / np.linalg.norm(vector)


def upsert(id_: str, version: int, vector: np.ndarray, fingerprint: str = "m") -> Change:
    return Change("0-0", id_, version, fingerprint, vector)


def delete(id_: str, version: int, fingerprint: str = "m") -> Change:
    return Change("0-0", id_, version, fingerprint, None)


@pytest.fixture
def index() -> VectorIndex:
    return VectorIndex(DIM, "m")


def ids(found: list[list[Neighbor]]) -> list[str]:
    assert len(found) == 1
    return [neighbor.id for neighbor in found[0]]


def test_an_empty_index_finds_nothing(index):
    assert neighbors(index, unit(1)[None], 5) == [[]]
    assert index.lookup("a") is None
    assert len(index) == 0


def test_no_queries_give_no_hits(index):
    assert neighbors(index, np.empty((0, DIM), dtype=np.float32), 5) == []


def test_neighbors_stand_in_order_of_their_cosine(index):
    index.apply([upsert("far", 1, unit(0, 1)), upsert("near", 1, unit(1, 0.1)), upsert("same", 1, unit(1))])

    [found] = neighbors(index, unit(1)[None], 3)

    assert [neighbor.id for neighbor in found] == ["same", "near", "far"]
    assert [neighbor.score for neighbor in found] == pytest.approx([1, 1 / np.sqrt(1.01), 0], abs=1e-6)


def test_each_query_has_its_own_hits_in_the_order_of_the_queries(index):
    index.apply([upsert("x", 1, unit(1)), upsert("y", 1, unit(0, 1))])

    found = neighbors(index, np.stack([unit(0, 1), unit(1)]), 1)

    assert [[neighbor.id for neighbor in hits] for hits in found] == [["y"], ["x"]]


def test_a_query_and_a_vector_slightly_off_the_unit_norm_still_score_their_cosine(index):
    index.apply([upsert("a", 1, unit(1, 1) * np.float32(1.0009))])

    [[neighbor]] = neighbors(index, unit(1)[None] * np.float32(0.9991), 1)

    assert neighbor.score == pytest.approx(np.sqrt(0.5), abs=1e-6)


def test_excluded_ids_make_room_for_others(index):
    index.apply([upsert(name, 1, unit(1, place)) for place, name in enumerate("abcd")])

    assert ids(neighbors(index, unit(1)[None], 2, exclude=["a", "c", "unknown"])) == ["b", "d"]


def test_a_newer_version_replaces_an_older_one(index):
    index.apply([upsert("a", 1, unit(1)), upsert("a", 2, unit(0, 1))])

    [[neighbor]] = neighbors(index, unit(1)[None], 5)
    indexed = index.lookup("a")

    assert neighbor.score == pytest.approx(0)
    assert indexed.version == 2
    assert indexed.vector == pytest.approx(unit(0, 1))
    assert len(index) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_an_equal_or_older_version_is_stale(index, version):
    index.apply([upsert("a", 2, unit(1))])

    assert index.apply([upsert("a", version, unit(0, 1)), delete("a", version)]) == Tally(applied=0, stale=2)
    assert index.lookup("a").vector == pytest.approx(unit(1))


def test_a_delete_holds_against_every_older_upsert_even_for_an_id_never_seen(index):
    index.apply([delete("a", 5)])

    assert index.apply([upsert("a", 5, unit(1)), upsert("a", 4, unit(1))]).stale == 2
    assert index.lookup("a") is None
    assert neighbors(index, unit(1)[None], 1) == [[]]


def test_a_deleted_id_comes_back_with_a_newer_version(index):
    index.apply([upsert("a", 1, unit(1)), delete("a", 2), upsert("a", 3, unit(0, 1))])

    assert index.lookup("a").version == 3
    assert ids(neighbors(index, unit(1)[None], 5)) == ["a"]
    assert len(index) == 1


def test_a_delete_holds_whatever_model_it_was_written_under(index):
    index.apply([upsert("a", 1, unit(1))])

    assert index.apply([delete("a", 2, fingerprint="")]).applied == 1
    assert index.lookup("a") is None


def test_deletes_outlast_compaction(index):
    index.apply([upsert("a", 1, unit(1)), delete("a", 2)])
    index.compact()

    assert index.apply([upsert("a", 1, unit(1))]).stale == 1
    assert len(index) == 0


@pytest.mark.parametrize(
    ("vector", "fingerprint", "reason"),
    [
        (unit(1), "other", "fingerprint"),
        (np.ones(DIM + 2, dtype=np.float32), "m", "dimension"),
        (unit(1)[None], "m", "dimension"),
        (np.full(DIM, np.nan, dtype=np.float32), "m", "not_finite"),
        (np.full(DIM, np.inf, dtype=np.float32), "m", "not_finite"),
        (np.full(DIM, 3e38, dtype=np.float32), "m", "not_finite"),
        (np.zeros(DIM, dtype=np.float32), "m", "norm"),
        (unit(1) * np.float32(1.002), "m", "norm"),
    ],
)
def test_a_bad_vector_is_refused_counted_and_leaves_the_others_alone(index, vector, fingerprint, reason):
    bad = upsert("b", 1, vector, fingerprint)
    tally = index.apply([upsert("a", 1, unit(1)), bad, upsert("c", 1, unit(1))])

    assert tally == Tally(applied=2, stale=0, refused=[(bad, reason)])
    assert index.lookup("b") is None
    assert sorted(ids(neighbors(index, unit(1)[None], 5))) == ["a", "c"]


def test_a_refused_version_may_be_sent_again_in_good_order(index):
    index.apply([upsert("a", 1, np.zeros(DIM, dtype=np.float32))])

    assert index.apply([upsert("a", 1, unit(1))]).applied == 1


@pytest.mark.parametrize(
    ("query", "k"),
    [(unit(1), 0), (np.zeros(DIM, dtype=np.float32), 1), (np.ones(3, dtype=np.float32), 1)],
)
def test_a_search_that_makes_no_sense_is_refused_by_the_check(index, query, k):
    with pytest.raises(ValueError, match="must be"):
        neighbors(index, query[None], k)


@pytest.mark.parametrize("dim", [0, 7])
def test_a_dimension_that_cannot_be_coded_is_refused_at_once(dim):
    with pytest.raises(ValueError, match="even"):
        VectorIndex(dim, "m")


def test_equal_vectors_never_score_above_one(index):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index.apply([upsert(str(row), 1, vector) for row, vector in enumerate(vectors)])

    assert max(found[0].score for found in neighbors(index, vectors, 1)) <= 1.0


def test_compaction_changes_no_hit_and_counts_the_generation(index):
    index.apply([upsert(str(place), 1, unit(1, place)) for place in range(20)])
    index.apply([upsert("3", 2, unit(0, 0, 1)), delete("4", 2)])
    before = neighbors(index, unit(1)[None], 30)

    index.compact()

    assert neighbors(index, unit(1)[None], 30) == before
    assert (index.figures.base, index.figures.delta, index.figures.dead) == (19, 0, 0)
    assert (index.generation, index.recipe.name, len(index)) == (1, "flat", 19)


def test_the_delta_grows_beyond_its_first_buffer_and_old_rows_stay(index):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first = index.lookup("0")
    index.apply([upsert(str(row), 1, vector) for row, vector in enumerate(vectors)])

    assert first is None
    assert all(index.lookup(str(row)).vector == pytest.approx(vectors[row]) for row in range(0, 3000, 100))
    assert ids(neighbors(index, vectors[2999][None], 1)) == ["2999"]


@pytest.mark.parametrize(
    ("base", "delta", "dead", "expected"),
    [
        (0, 0, 0, False),
        (0, 1023, 1023, False),
        (0, 1024, 0, True),
        (1_000_000, 3_999, 0, False),
        (1_000_000, 4_000, 0, True),
        (10_000_000, 8_192, 0, True),
        (100_000, 0, 19_999, False),
        (100_000, 0, 20_000, True),
    ],
)
def test_compaction_is_due_when_delta_or_dead_rows_outgrow_the_base(base, delta, dead, expected):
    assert compaction_due(base, delta, dead) is expected
