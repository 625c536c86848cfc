"""Hashtags without generating, on notes whose neighbors can be counted."""

import numpy as np
import pytest

from model.backends.base import Scored
from model.note import Note
from model.tag_baselines import MostFrequentTags, NeighborTags, embedding_votes, merged, neighbor_votes


def test_the_most_frequent_hashtags_are_counted_once_a_note_and_cleaned():
    training = [
        Note("a", hashtags=("Tea", "#tea", "city walk")),
        Note("b", hashtags=("city_walk",)),
        Note("c", hashtags=("bread", "!!")),
    ]

    assert MostFrequentTags(training).tags([Note("x"), Note("y")]) == [["city_walk", "bread", "tea"]] * 2


def test_votes_are_sums_of_cosines_of_the_nearest_over_their_number():
    """Two nearest of four: 0.8 and 0.5. The third would vote for ``c``, and is not asked."""
    cosines = np.array([[0.5, -0.2, 0.8, 0.4], [-0.1, -0.2, -0.3, 0.6]], dtype=np.float32)
    carried = [["a", "b"], ["d"], ["b"], ["c"]]

    first, second = neighbor_votes(cosines, carried, neighbors=2)

    assert first == {"b": pytest.approx((0.8 + 0.5) / 2), "a": pytest.approx(0.25)}
    assert list(first) == ["b", "a"], "closest first"
    assert second == {"c": pytest.approx(0.3)}, "who points away says nothing"


def test_fewer_notes_than_neighbors_vote_all():
    assert neighbor_votes(np.array([[1.0]], dtype=np.float32), [["a"]], neighbors=10) == [{"a": pytest.approx(0.1)}]


def test_votes_by_embedding_are_the_same_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    queries, training = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    carried = [[f"t{number % 3}", f"own{number}"] for number in range(9)]
    whole = neighbor_votes(queries @ training.T, carried, 3)
    monkeypatch.setattr("model.tag_baselines._SCORES_PER_BLOCK", 20)

    found = embedding_votes(queries, training, carried, 3)

    assert [list(votes) for votes in found] == [list(votes) for votes in whole]
    for votes, expected in zip(found, whole, strict=True):
        assert votes == pytest.approx(expected, rel=1e-5)


def test_neighbors_by_words_bring_their_hashtags_and_shared_ones_come_first():
    training = [
        Note("a", "night train to the sea", "", ("trains", "sea")),
        Note("b", "a train in the night", "", ("trains",)),
        Note("c", "bread with seeds", "", ("baking",)),
        Note("d", "trains trains", "", ()),
    ]

    [tags, none] = NeighborTags(training, neighbors=3).tags([Note("x", "the night train"), Note("y", "quarterly tax")])

    assert tags == ["trains", "sea"]
    assert none == []


def test_the_hashtags_of_the_note_asked_about_are_not_read():
    training = [Note("a", "bread", "", ("baking",)), Note("b", "train", "", ("trains",))]

    [tags] = NeighborTags(training).tags([Note("x", "bread", "", ("train",))])

    assert tags == ["baking"]


def test_merging_is_one_minus_the_product_of_the_doubts():
    """walk: 0.8; tea: 1 - 0.5 * 0.5 = 0.75; city: 0.6; bread: 0.5, as sea, and the model goes first."""
    generated = [Scored("walk", 0.8), Scored("tea", 0.5), Scored("bread", 0.5)]

    assert merged(generated, {"city": 0.6, "tea": 0.5, "sea": 0.5}) == ["walk", "tea", "city", "bread", "sea"]
    assert merged([], {}) == []
