"""Ranking by hand-made numbers, and diversity against its definition written out."""

import math

import numpy as np
import pytest

from service.recommend.rerank import diverse, in_common, popularity


def test_popularity_is_the_weighted_logarithm_of_exposure():
    assert popularity(0, 1.0, 0.5) == 0
    assert popularity(99, 0.5, 0.2) == pytest.approx(0.5 * 0.2 * math.log(100))


def test_without_diversity_the_best_scores_are_taken():
    vectors = np.eye(5, dtype=np.float32)

    assert diverse([0.9, 0.8, 0.7, 0.6, 0.5], vectors, 3, 0.0) == [0, 1, 2]


def test_two_that_say_the_same_do_not_both_stand_when_another_is_nearly_as_good():
    same, other = [1.0, 0.0], [0.0, 1.0]

    assert diverse([0.9, 0.89, 0.8], np.array([same, same, other], np.float32), 2, 0.5) == [0, 2]


def test_fewer_than_asked_for_are_all_taken():
    assert diverse([0.9, 0.8], np.eye(2, dtype=np.float32), 10, 0.7) == [0, 1]


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9, 1.0])
def test_each_choice_maximizes_the_marginal_relevance_of_the_definition(diversity):
    draw = np.random.default_rng(3)
    vectors = draw.normal(size=(30, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = sorted(draw.uniform(size=30).tolist(), reverse=True)

    taken = [0]
    while len(taken) < 8:

        def marginal(note: int) -> float:
            likeness = max(float(vectors[note] @ vectors[one]) for one in taken)
            return (1 - diversity) * scores[note] - diversity * likeness

        taken.append(max((note for note in range(30) if note not in taken), key=marginal))

    assert diverse(scores, vectors, 8, diversity) == sorted(taken)


def test_hashtags_in_common_are_compared_clean_and_keep_the_order_of_the_first():
    assert in_common(["#Street Food", "sea", "日本"], ["日本", "street-food", "SEAS"]) == ["street_food", "日本"]
