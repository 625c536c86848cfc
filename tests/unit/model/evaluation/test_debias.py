"""Popularity debias against lists that are built one by one."""

import numpy as np
import pytest

from model.data.cooccurrence import split_notes
from model.data.pairs import Pairs
from model.evaluation.baselines import Embeddings
from model.evaluation.debias import Debiased, evaluate_debias, fit_popularity_weight, format_debias, validation_notes
from model.note import Note


def favoring(size: int, strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose cosines rise with log(1 + exposure) by way of a direction that popular notes share."""
    rng = np.random.default_rng(seed)
    exposure = np.exp(rng.normal(4, 2, size=size)).astype(np.int64)
    return np.column_stack([rng.normal(size=(size, 12)), strength * np.log1p(exposure)]).astype(np.float32), exposure


def listed(emb: np.ndarray, exposure: np.ndarray, weight: float, depth: int) -> tuple[float, float]:
    """Mean log(1 + exposure) of all lists, built one by one, and of all that could have been listed."""
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    shown, could = [], []
    for target in range(len(emb)):
        score = unit @ unit[target] - weight * np.log1p(exposure)
        others = [note for note in np.argsort(-score).tolist() if note != target]
        shown += others[:depth]
        could += others
    return float(np.log1p(exposure[shown]).mean()), float(np.log1p(exposure[could]).mean())


def test_the_score_is_the_cosine_less_the_prior():
    ranker = Embeddings("mine", np.array([[1, 0], [1, 1], [0, 1]]))

    scores = Debiased(ranker, np.array([0, 9, 99]), 0.5 * 0.02).scores([0])

    assert Debiased(ranker, np.zeros(3, dtype=np.int64), 1.0).name == "mine"
    assert scores[0] == pytest.approx([1, 2**-0.5 - 0.01 * np.log(10), -0.01 * np.log(100)], abs=1e-6)


@pytest.mark.parametrize("depth", [5, 10])
def test_at_the_fitted_weight_lists_are_as_popular_as_the_pool_and_just_below_it_more_so(depth):
    emb, exposure = favoring(150, strength=0.6)

    weight = fit_popularity_weight(emb, exposure, depth)

    at_zero, fair = listed(emb, exposure, 0.0, depth)
    assert at_zero > fair + 0.1, "the lists favor popular notes"
    assert weight > 0
    assert listed(emb, exposure, weight * 1.001, depth)[0] <= fair + 1e-3
    assert listed(emb, exposure, weight * 0.98, depth)[0] > fair


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_any_model_gets_a_weight_after_which_its_lists_favor_nothing(strength):
    emb, exposure = favoring(80, strength, seed=7)

    weight = fit_popularity_weight(emb, exposure, depth=10)

    # At the very edge the last digit of a score decides.
    shown, fair = listed(emb, exposure, weight * 1.001, 10)

    assert shown <= fair + 1e-3


def test_without_differences_in_exposure_there_is_nothing_to_take_out():
    emb, _ = favoring(40, 0.5)

    assert fit_popularity_weight(emb, np.full(40, 7)) == 0


def test_lists_of_nearly_all_notes_are_refused():
    emb, exposure = favoring(19, 0.5)

    with pytest.raises(ValueError, match="19 notes are too few to fit the popularity weight on, 20 are needed"):
        fit_popularity_weight(emb, exposure, depth=10)


def test_validation_notes_are_training_notes_drawn_by_their_own_hash():
    notes = [Note(str(number)) for number in range(2000)]
    held_out = split_notes((note.id for note in notes), 0.3, 4)
    training = [note for note in notes if note.id not in held_out]

    validation = validation_notes(training, seed=4)

    assert not {note.id for note in validation} & held_out
    assert 0.15 < len(validation) / len(training) < 0.25
    assert set(validation_notes(training[::2], seed=4)) == set(validation) & set(training[::2])


def test_debias_is_reported_with_what_it_costs_and_where_it_helps():
    """Two truths of note 0: a popular one, which is nearest, and one that nobody saw, which is second."""
    pool = [Note("t"), Note("popular", exposure=10_000), Note("unseen", exposure=0), Note("filler", exposure=50)]
    emb = np.array([[1, 0], [0.99, 0.1], [0.97, 0.2], [0.5, 0.9]])
    gold = Pairs(("t", "t"), ("popular", "unseen"), np.ones(2), np.ones(2, dtype=np.int64))

    rows = evaluate_debias(Embeddings("mine", emb), 0.1, pool, gold, ks=(1,))

    assert [row.debias for row in rows] == [0, 0.5, 1]
    assert [row.ranker.ranks.tolist() for row in rows] == [[0, 1], [1, 0], [2, 0]]
    assert [row.lost[1].mean for row in rows] == [0, 0, 0]
    assert rows[0].ranker.buckets == {"low exposure": {1: 0}, "high exposure": {1: 1}}
    assert rows[1].ranker.buckets == {"low exposure": {1: 1}, "high exposure": {1: 0}}
    assert format_debias(rows).splitlines()[2:4] == [
        "| 0 | 0.0 | 100.0 | 50.0 (50.0 to 50.0) | 0.0 (0.0 to 0.0) |",
        "| 0.5 | 100.0 | 0.0 | 50.0 (50.0 to 50.0) | 0.0 (0.0 to 0.0) |",
    ]


def test_what_is_lost_is_the_difference_of_recalls():
    pool = [Note("t"), Note("popular", exposure=10_000), Note("near", exposure=0)]
    gold = Pairs(("t",), ("popular",), np.ones(1), np.ones(1, dtype=np.int64))

    rows = evaluate_debias(Embeddings("mine", np.array([[1, 0], [1, 0], [1, 1]])), 1.0, pool, gold, ks=(1, 2))

    assert [rows[-1].lost[k].mean for k in (1, 2)] == [1, 0]
