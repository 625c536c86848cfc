"""Hashtags without generating, on notes whose neighbors can be counted."""

import numpy as np
import pytest

from model.evaluation.hashtag_baselines import MostFrequentTags, NeighborTags, nearest_notes, neighbor_votes
from model.note import Note
from model.text.suggestions import VOTERS


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


def test_the_nearest_notes_are_those_of_a_full_sort_in_blocks_of_any_size(monkeypatch):
    rng = np.random.default_rng(0)
    queries, training = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    carried = [[f"own{number}"] for number in range(50)]
    order = np.argsort(-(queries @ training.T), axis=1)[:, :VOTERS]
    monkeypatch.setattr("model.evaluation.hashtag_baselines._SCORES_PER_BLOCK", 120)

    found = nearest_notes(queries, training, carried)

    assert [[hashtags for _, hashtags in near] for near in found] == [[carried[row] for row in rows] for rows in order]
    cosines = [[cosine for cosine, _ in near] for near in found]
    assert cosines == [pytest.approx(np.sort(row)[::-1][:VOTERS], rel=1e-5) for row in queries @ training.T]


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
