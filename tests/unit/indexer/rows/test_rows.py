"""Rows in arrays against a list and a dict, which they replace."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.filters.expression import OneOf
from indexer.rows.packed_fields import PackedFields
from indexer.rows.rows import Entries, Rows

ids = st.lists(st.text(max_size=3) | st.text("a\0", max_size=12), max_size=20)


def entries(names: list[str], first_version: int = 1) -> Entries:
    rows = len(names)
    versions = list(range(first_version, first_version + rows))
    fields = PackedFields({"version": float(version)} for version in versions)
    return Entries(names, versions, np.empty((rows, 2), dtype=np.float32), fields)


def check(rows: Rows, names: list[str]) -> None:
    assert len(rows) == len(names)
    assert rows.ids.at(np.arange(len(names), dtype=np.int64)[None, ::-1]) == [names[::-1]]
    newest = {name: row for row, name in enumerate(names)}
    assert {name: rows.newest(name) for name in names} == newest
    assert rows.newest("nobody") == -1
    for row, version in enumerate(rows.versions.tolist()):
        assert row in rows.columns.rows(OneOf("version", (float(version),)))


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


def test_ids_whose_hashes_collide_are_told_apart(monkeypatch):
    monkeypatch.setattr("indexer.rows.rows.hash64", len)
    names = ["a", "b", "cc", "a", "dd"]

    check(Rows.of(entries(names)), names)
