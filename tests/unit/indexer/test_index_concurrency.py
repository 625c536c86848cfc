"""Readers during writes and compactions: every result fits some moment of the history."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from support.index import neighbors

import indexer.index
from indexer.filters.parser import parse
from indexer.index import VectorIndex
from indexer.types import Change

DIM = 16


def unit_rows(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def while_running(work: Callable[[], None], readers: list[Callable[[], None]]) -> None:
    """Run ``work`` while the readers run in loops; re-raise the first error of a reader."""
    done, errors = threading.Event(), []

    def loop(read: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                read()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(read,)) for read in readers]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def test_readers_see_known_ids_once_with_a_score_they_had_while_bases_are_swapped():
    """Every id alternates between two vectors; compaction runs all the while."""
    even, odd = unit_rows(300, seed=1), unit_rows(300, seed=2)
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", str(row), 1, "m", even[row]) for row in range(300)])
    queries = unit_rows(3, seed=3)
    possible = np.stack([queries @ even.T, queries @ odd.T])

    def search() -> None:
        for number, found in enumerate(neighbors(index, queries, 40)):
            assert len(found) == 40
            assert len({neighbor.id for neighbor in found}) == 40
            for neighbor in found:
                assert np.abs(possible[:, number, int(neighbor.id)] - neighbor.score).min() < 1e-5

    def lookup() -> None:
        for row in range(0, 300, 7):
            indexed = index.lookup(str(row))
            expected = even if indexed.version % 2 else odd
            np.testing.assert_allclose(indexed.vector, expected[row], atol=1e-6)

    def compact() -> None:
        index.compact()

    def write() -> None:
        for version in range(2, 12):
            vectors = even if version % 2 else odd
            index.apply([Change("0-1", str(row), version, "m", vectors[row]) for row in range(300)])

    while_running(write, [search, lookup, compact])

    index.compact()
    assert len(index) == 300
    assert all(index.lookup(str(row)).version == 11 for row in range(300))


def test_filters_hold_while_fields_change_and_bases_are_swapped():
    """Every id alternates between two vectors and their names; a tenth are hidden with the second one."""
    even, odd = unit_rows(300, seed=1), unit_rows(300, seed=2)
    index = VectorIndex(DIM, "m")
    queries = unit_rows(3, seed=3)
    cosines = {"even": queries @ even.T, "odd": queries @ odd.T}

    def change(row: int, version: int) -> Change:
        name, vectors = ("odd", odd) if version % 2 else ("even", even)
        fields = {"vector": name, "version": float(version)}
        return Change("0-1", str(row), version, "m", vectors[row], fields=fields, hidden=name == "odd" and not row % 10)

    index.apply([change(row, 0) for row in range(300)])

    def search(name: str) -> None:
        for text in (f'vector = "{name}"', f'NOT vector IN ["{"odd" if name == "even" else "even"}"] AND version >= 0'):
            for cosines_M, found in zip(cosines[name], neighbors(index, queries, 300, (), parse(text)), strict=True):
                rows = [int(neighbor.id) for neighbor in found]
                assert [neighbor.score for neighbor in found] == pytest.approx(cosines_M[rows].tolist(), abs=1e-5)
                assert name == "even" or not [row for row in rows if not row % 10]

    def write() -> None:
        for version in range(1, 10):
            for first in range(0, 300, 50):
                index.apply([change(row, version) for row in range(first, first + 50)])
            index.compact()

    while_running(write, [lambda: search("even"), lambda: search("odd")])

    assert len(index) == 300
    [found] = neighbors(index, queries[:1], 300, (), parse('vector = "odd" AND version = 9'))
    assert len(found) == 270


def test_a_search_finds_every_id_that_an_earlier_lookup_found():
    """The map from id to row follows publication, so "searchable" is never said too early."""
    vectors = unit_rows(2000, seed=4)
    index = VectorIndex(DIM, "m")

    def see() -> None:
        newest = len(index)
        if newest < len(vectors) and index.lookup(str(newest)) is not None:
            [[nearest]] = neighbors(index, vectors[newest][None], 1)
            assert nearest.id == str(newest)

    def write() -> None:
        for row, vector in enumerate(vectors):
            index.apply([Change("0-1", str(row), 1, "m", vector)])

    while_running(write, [see, see])


def test_changes_that_arrive_during_a_compaction_are_kept(monkeypatch: pytest.MonkeyPatch):
    """The build is held at its slowest point while rows are overwritten, deleted, added and brought back."""
    vectors = unit_rows(8, seed=5)
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", name, 1, "m", vectors[row]) for row, name in enumerate("abcd")])
    building, go_on = threading.Event(), threading.Event()
    build_base = indexer.index.build_base

    def slowly(*args):
        building.set()
        assert go_on.wait(30)
        return build_base(*args)

    monkeypatch.setattr(indexer.index, "build_base", slowly)
    compaction = threading.Thread(target=index.compact)
    compaction.start()
    assert building.wait(30)
    index.apply(
        [
            Change("0-1", "a", 2, "m", vectors[4]),
            Change("0-2", "b", 2, "m", None),
            Change("0-3", "c", 2, "m", None),
            Change("0-4", "c", 3, "m", vectors[5]),
            Change("0-5", "e", 1, "m", vectors[6]),
            Change("0-6", "f", 1, "m", vectors[7]),
            Change("0-7", "f", 2, "m", None),
        ]
    )
    go_on.set()
    compaction.join()

    expected = {"a": (2, 4), "c": (3, 5), "d": (1, 3), "e": (1, 6)}
    [found] = neighbors(index, vectors[:1], 10)
    assert {neighbor.id for neighbor in found} == set(expected)
    assert len(index) == 4
    for name in "abcdef":
        indexed = index.lookup(name)
        if name not in expected:
            assert indexed is None
            continue
        version, row = expected[name]
        assert indexed.version == version
        assert indexed.vector == pytest.approx(vectors[row], abs=1e-6)
    assert index.apply([Change("0-8", "b", 1, "m", vectors[1])]).stale == 1


def test_a_snapshot_is_of_one_moment_though_the_index_goes_on():
    vectors = unit_rows(3, seed=6)
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", "a", 1, "m", vectors[0])])

    contents = index.contents()
    index.apply([Change("0-1", "a", 2, "m", vectors[1]), Change("0-2", "b", 1, "m", vectors[2])])
    index.compact()
    copy = VectorIndex.restore(contents)

    assert copy.lookup("a").version == 1
    assert copy.lookup("b") is None
    assert len(copy) == 1


def test_eight_readers_find_every_note_through_two_hundred_swaps():
    """Nothing is written meanwhile: every base must hold all notes, each once."""
    vectors = unit_rows(500, seed=7)
    index = VectorIndex(DIM, "m")
    index.apply([Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(vectors)])
    names = {str(row) for row in range(len(vectors))}

    def search() -> None:
        before = index.generation
        [found] = neighbors(index, vectors[:1], len(vectors))
        assert len(found) == len(names)
        assert {neighbor.id for neighbor in found} == names
        assert found[0].id == "0"
        assert index.lookup("499") is not None
        assert index.generation >= before

    def swap() -> None:
        for _ in range(200):
            index.compact()

    while_running(swap, [search] * 8)

    assert index.generation == 200
