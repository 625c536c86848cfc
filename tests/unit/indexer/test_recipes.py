"""The table of recipes."""

import pytest

from indexer.recipes import FLAT_BELOW, TRAINING_POINTS_PER_LIST, IndexRecipe, recipe_for


@pytest.mark.parametrize(
    ("notes", "name"),
    [
        (0, "flat"),
        (FLAT_BELOW - 1, "flat"),
        (FLAT_BELOW, "IVF256,PQ64x4fsr"),
        (100_000, "IVF1024,PQ64x4fsr"),
        (1_000_000, "IVF2048,PQ64x4fsr"),
    ],
)
def test_the_size_decides_the_recipe(notes, name):
    assert recipe_for(notes, 128).name == name


@pytest.mark.parametrize("notes", [FLAT_BELOW, 12_345, 50_000, 777_777, 20_000_000])
def test_every_list_gets_enough_points_to_train_on(notes):
    assert recipe_for(notes, 128).nlist * TRAINING_POINTS_PER_LIST <= notes


def test_an_ivf_base_probes_16_lists_and_re_ranks_4k_candidates_or_100():
    assert recipe_for(1_000_000, 128) == IndexRecipe("IVF2048,PQ64x4fsr", 1_000_000, 2048, 16, 4, 100)
