"""Ids of one index that another one is missing, against two dictionaries."""

import random

import numpy as np

from indexer.index import VectorIndex
from indexer.types import Change

DIM = 8
VECTORS = np.random.default_rng(0).normal(size=(64, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
IDS = [f"n{number}" for number in range(40)]


def test_missing_are_the_ids_that_the_other_index_holds_alone_or_in_a_newer_version():
    chance = random.Random(0)
    indexes, versions = [VectorIndex(DIM, "m") for _ in range(2)], [{}, {}]
    for step in range(600):
        side, id_ = chance.randrange(2), chance.choice(IDS)
        version = step if chance.random() < 0.5 else chance.randrange(step + 1)
        vector = None if chance.random() < 0.3 else VECTORS[step % 64]
        if indexes[side].apply([Change("0-0", id_, version, "m", vector)]).applied:
            versions[side][id_] = None if vector is None else version
        if chance.random() < 0.05:
            indexes[side].compact()

        mine, theirs = versions
        missing = {
            id_
            for id_, version in theirs.items()
            if version is not None and (mine.get(id_) is None or mine[id_] < version)
        }
        assert set(indexes[0].missing(indexes[1])) == missing
    assert all(index.generation > 2 for index in indexes)


def test_an_empty_index_is_missing_everything_and_nothing_of_it_is_missing():
    full, empty = VectorIndex(DIM, "m"), VectorIndex(DIM, "n")
    full.apply([Change("0-0", id_, 1, "m", VECTORS[0]) for id_ in IDS])

    assert sorted(empty.missing(full)) == sorted(IDS)
    assert full.missing(empty) == full.missing(full) == empty.missing(empty) == []
