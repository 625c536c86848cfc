"""Every id has one shard, the same everywhere and for ever."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.shards import shard_of

IDS = [f"note-{number}" for number in range(5000)]


def test_the_shard_of_an_id_never_changes_between_releases():
    """Written down once: a change of the hash would need every index to be rebuilt."""
    assert [shard_of(id_, 8) for id_ in ("a", "b", "n1", "n2", "note:7~x")] == [6, 0, 3, 3, 6]


def test_another_process_with_another_hash_seed_agrees():
    code = "from indexer.shards import shard_of; print([shard_of(f'note-{n}', 7) for n in range(50)])"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."}, capture_output=True, check=True
    ).stdout.decode()

    assert printed.strip() == str([shard_of(id_, 7) for id_ in IDS[:50]])


@pytest.mark.parametrize("shards", [2, 3, 8, 30])
def test_shards_are_of_about_the_same_size(shards):
    counts = [0] * shards
    for id_ in IDS:
        counts[shard_of(id_, shards)] += 1

    expected = len(IDS) / shards
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts)


@given(st.text("abc019._~:-", min_size=1, max_size=20), st.integers(1, 64))
def test_a_new_shard_takes_ids_but_none_moves_between_the_old_ones(id_, shards):
    before, after = shard_of(id_, shards), shard_of(id_, shards + 1)

    assert 0 <= before < shards
    assert after in (before, shards)


def test_growing_from_four_to_five_shards_moves_about_a_fifth():
    moved = sum(shard_of(id_, 4) != shard_of(id_, 5) for id_ in IDS)

    assert 0.17 < moved / len(IDS) < 0.23


def test_no_shards_is_a_mistake():
    with pytest.raises(ValueError, match="at least one"):
        shard_of("a", 0)
