"""A big base that grows: appended to, trained anew when that is worth it, and never for the worse."""

import logging
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from support.index import neighbors

import indexer.index
from indexer.filters.parser import parse
from indexer.index import VectorIndex, outgrown
from indexer.recipes import IndexRecipe
from indexer.types import Change

DIM = 32
ROWS = 12_000
RNG = np.random.default_rng(3)
CENTERS = RNG.normal(size=(60, DIM))


def vectors_of(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = CENTERS[rng.integers(len(CENTERS), size=rows)] + 0.8 * rng.normal(size=(rows, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = vectors_of(ROWS, 1)
MORE = vectors_of(1200, 2)


def filled(scratch: Path | None = None) -> VectorIndex:
    index = VectorIndex(DIM, "m", scratch)
    index.apply([Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(VECTORS)])
    index.compact()
    return index


def test_names_that_only_dead_rows_have_are_gone_with_the_next_compaction():
    """A client that always takes new names costs no more than those in use."""
    index = filled()
    for version in range(2, 5):
        index.apply([Change("0-1", "5", version, "m", VECTORS[5], fields={"kept": 1.0, f"n{version}": 1.0})])
        index.compact()

    assert index.contents().rows.columns.numbers.keys() == {"kept", "n4"}
    assert len(index.contents().base) == ROWS + 3
    assert [one.id for one in neighbors(index, VECTORS[5][None], 9, filter_=parse("kept = 1"))[0]] == ["5"]


def add_more(index: VectorIndex) -> None:
    index.apply([Change("0-1", f"m{row}", 1, "m", vector) for row, vector in enumerate(MORE)])


def test_a_delta_is_appended_to_a_copy_and_every_row_keeps_its_place():
    index = filled()
    index.apply([Change("0-1", "5", 2, "m", None), Change("0-1", "6", 2, "m", VECTORS[0])])
    add_more(index)
    before = index.contents().base

    index.compact()

    after = index.contents().base
    assert (len(before), len(after)) == (ROWS, ROWS + 1 + len(MORE))
    assert after.recipe == before.recipe
    assert len(index) == ROWS - 1 + len(MORE)
    assert index.lookup("5") is None
    assert index.lookup("6").version == 2
    assert index.lookup("m7").vector == pytest.approx(MORE[7], abs=1e-3)
    [found] = neighbors(index, MORE[7][None], 1)
    assert found[0].id == "m7"
    assert {near.id for near in neighbors(index, VECTORS[:1], 2)[0]} == {"0", "6"}


def test_training_drops_dead_rows():
    index = filled()
    index.apply([Change("0-1", "5", 2, "m", None)])
    add_more(index)

    index.compact(retrain=True)

    assert len(index.contents().base) == len(index) == ROWS - 1 + len(MORE)
    assert (index.lookup("5"), index.figures.dead) == (None, 0)
    assert index.lookup("11999").vector == pytest.approx(VECTORS[11999], abs=1e-3)


@pytest.mark.parametrize(
    ("rows", "dead", "expected"),
    [(20_000, 0, False), (39_999, 0, False), (40_000, 0, True), (40_000, 1, False), (20_000, 4_000, True)],
)
def test_a_base_is_outgrown_at_twice_its_size_or_with_a_fifth_dead(rows, dead, expected):
    assert outgrown(IndexRecipe("IVF256,PQ16x4fsr", 20_000), rows, dead) is expected


def test_a_flat_base_is_always_built_anew():
    assert outgrown(IndexRecipe("flat", 100), 100, 0)


def test_a_base_whose_recall_is_worse_is_not_published(monkeypatch, caplog):
    index = filled()
    add_more(index)
    good = indexer.index.build_base

    def bad(recipe, vectors, scratch):
        base = good(recipe, vectors, scratch)
        base.ivf.quantizer.reset()  # every list has the wrong center
        base.ivf.quantizer.add(vectors[: recipe.nlist] * -1)
        return base

    monkeypatch.setattr(indexer.index, "build_base", bad)
    with caplog.at_level(logging.WARNING):
        index.compact(retrain=True)

    assert [record.message for record in caplog.records] == ["base_refused"]
    assert index.recall() >= 0.95
    assert index.lookup("m3") is not None
    assert index.figures.delta == 0
    monkeypatch.undo()
    assert not outgrown(index.recipe, len(index), 0)


def test_a_recall_that_was_never_better_calls_for_no_training():
    index = filled()

    assert index.has_declined(0.5)
    assert not index.has_declined(0.97)
    index._trained_recall = 0.5
    assert not index.has_declined(0.5)


def test_the_vectors_of_a_base_are_mapped_from_an_unnamed_file(tmp_path):
    index = filled(tmp_path)

    mapped = Path(f"/proc/{os.getpid()}/maps").read_text()
    assert str(tmp_path) in mapped
    assert list(tmp_path.iterdir()) == []
    assert neighbors(index, VECTORS[:1], 1)[0][0].id == "0"
    add_more(index)
    index.compact()
    assert index.lookup("m1").vector == pytest.approx(MORE[1], abs=1e-3)


def test_without_room_on_disk_a_compaction_fails_and_changes_nothing(tmp_path):
    index = filled(tmp_path)
    add_more(index)
    before = neighbors(index, VECTORS[:5], 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            index.compact()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert neighbors(index, VECTORS[:5], 10) == before
    assert list(tmp_path.iterdir()) == []
    index.compact()
    assert index.figures.delta == 0
