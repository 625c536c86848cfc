"""Files of related pairs."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.rows import jsonl

from model.data.files import DataError
from model.data.pairs import Pairs, load_pairs, write_pairs


def test_pairs_survive_the_file(tmp_path):
    pairs = Pairs(("a", "a", "b"), ("b", "c", "a"), np.array([0.5, 1 / 3, 2.0]), np.array([1, 2, 3]))

    write_pairs(tmp_path / "pairs.parquet", pairs)
    again = load_pairs(tmp_path)

    assert again.ends() == [("a", "b"), ("a", "c"), ("b", "a")]
    assert again.scores.tolist() == [0.5, 1 / 3, 2.0]
    assert again.users.tolist() == [1, 2, 3]
    assert pq.read_schema(tmp_path / "pairs.parquet").names == ["note_id", "related_id", "score", "users"]


def test_pairs_with_few_users_can_be_left_out():
    pairs = Pairs(("a", "a", "b"), ("b", "c", "a"), np.array([0.5, 0.4, 2.0]), np.array([1, 2, 3]), 4)

    kept = pairs.supported_by(2)

    assert kept.ends() == [("a", "c"), ("b", "a")]
    assert (kept.scores.tolist(), kept.users.tolist(), kept.skipped_users) == ([0.4, 2.0], [2, 3], 4)


def test_a_wrong_pair_is_named(tmp_path):
    row = {"note_id": "a", "related_id": "b", "score": "high", "users": 2}

    with pytest.raises(DataError, match=r"pairs\.jsonl line 1: score must be a number, got a string"):
        load_pairs(jsonl(tmp_path / "pairs.jsonl", [row]))
