"""Rows in arrays against a list and a dict, which they replace."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.rows.rows import Entries, Labels, Rows

ids = st.lists(st.text(max_size=3) | st.text("a\0", max_size=12), max_size=20)


def entries(names: list[str], first_version: int = 1) -> Entries:
    rows = len(names)
    codes = np.array([[len(name), 2**63 + row % 3] for row, name in enumerate(names)], dtype=np.uint64)
    versions = list(range(first_version, first_version + rows))
    return Entries(names, versions, np.empty((rows, 2), dtype=np.float32), codes.reshape(-1, 2))


def check(rows: Rows, names: list[str]) -> None:
    assert len(rows) == len(names)
    assert rows.ids.at(np.arange(len(names), dtype=np.int64)[None, ::-1]) == [names[::-1]]
    newest = {name: row for row, name in enumerate(names)}
    assert {name: rows.newest(name) for name in names} == newest
    assert rows.newest("nobody") == -1


@given(ids)
def test_the_last_row_of_an_id_is_found_and_every_row_knows_its_id(names):
    check(Rows.of(entries(names)), names)


@given(ids, ids)
def test_more_rows_stand_behind_the_first(names, more):
    rows = Rows.of(entries(names)).extended(entries(more, 100))

    check(rows, names + more)
    assert rows.versions.tolist() == [*range(1, 1 + len(names)), *range(100, 100 + len(more))]


@given(ids, st.randoms())
def test_some_rows_can_be_taken_in_any_order(names, random):
    kept = [row for row in range(len(names)) if random.random() < 0.5]
    random.shuffle(kept)

    rows = Rows.of(entries(names)).taken(np.array(kept, dtype=np.int64))

    check(rows, [names[row] for row in kept])
    assert rows.versions.tolist() == [row + 1 for row in kept]
    assert rows.author.each().tolist() == [2**63 + row % 3 for row in kept]


@given(st.lists(st.sampled_from([0, 1, 7, 2**64 - 1])))
def test_labels_give_the_rows_of_a_code_and_the_code_of_each_row(codes):
    labels = Labels.of(np.array(codes, dtype=np.uint64))

    assert labels.each().tolist() == codes
    for code in (0, 1, 2, 7, 2**64 - 1):
        assert labels.rows(code).tolist() == [row for row, own in enumerate(codes) if own == code]


def test_ids_whose_hashes_collide_are_told_apart(monkeypatch):
    monkeypatch.setattr("indexer.rows.rows.hash64", len)
    names = ["a", "b", "cc", "a", "dd"]

    check(Rows.of(entries(names)), names)
