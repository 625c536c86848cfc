"""The plan of an index: it fits, with as few shards as can be."""

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from indexer.plan import FIELDS_BYTES, plan
from indexer.recipes import recipe_for
from service.cli.main import cli

GIB = 1024**3


@given(st.integers(1, 10**10), st.sampled_from([64, 128, 768]), st.integers(GIB, 64 * GIB))
def test_every_shard_fits_and_one_less_would_not_do(notes, dim, memory_bytes):
    made = plan(notes, dim, memory_bytes)

    assert made.building_bytes <= memory_bytes
    assert made.shards * made.rows >= notes
    assert made.recipe == recipe_for(made.rows, dim)
    if made.shards > 1:
        rows = -(-notes // (made.shards - 1))
        assert plan(rows, dim, 10**15).building_bytes > memory_bytes


def test_a_million_notes_take_the_measured_memory():
    """Ids were 26 letters shorter in `make bench-index`, and no note had fields but category and author."""
    made = plan(1_000_000, 128, 16 * GIB)

    assert made.shards == 1
    assert made.resident_bytes / 1_000_000 - 26 - FIELDS_BYTES == pytest.approx(86, abs=3)
    assert made.mapped_bytes == 256_000_000


@pytest.mark.parametrize(("notes", "dim", "expected"), [(1_000_000, 128, (16, 20)), (500_000, 256, (32, 20))])
def test_times_and_peak_memory_are_those_of_the_measured_million_scaled(notes, dim, expected):
    made = plan(notes, dim, 10**12)

    assert made.recipe.nlist == 2048
    assert (made.training_s, made.filling_s) == expected
    assert made.building_bytes == 2 * made.resident_bytes + 2 * dim * notes + 4 * dim * 64 * 2048


def test_a_small_community_is_searched_exactly_and_trains_nothing():
    made = plan(5_000, 128, GIB)

    assert (made.recipe.name, made.training_s, made.mapped_bytes) == ("flat", 0.0, 0)


@pytest.mark.parametrize(("notes", "memory_bytes"), [(0, GIB), (1, 100)])
def test_an_impossible_plan_is_refused(notes, memory_bytes):
    with pytest.raises(ValueError, match="note"):
        plan(notes, 128, memory_bytes)


def test_the_command_prints_shards_recipe_memory_and_times():
    result = CliRunner().invoke(cli, ["index", "plan", "--notes", "100000000"])

    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "shards:             4 of 25,000,000 notes each"
    assert "IVF16384,PQ64x4fsr" in lines[1]
    assert {line.split(":")[0] for line in lines} >= {"memory of a shard", "training", "memory of all"}


def test_an_odd_dimension_is_a_mistake_in_one_line():
    result = CliRunner().invoke(cli, ["index", "plan", "--notes", "5", "--dim", "7"], standalone_mode=False)

    assert "even" in str(result.exception)
