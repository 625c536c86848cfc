"""Ranks and recalls on pools where every rank can be counted by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.pairs import Pairs
from model.evaluation.baselines import Embeddings
from model.evaluation.retrieval import (
    NOTELLM,
    click_buckets,
    evaluate_rankers,
    exposure_buckets,
    fitting,
    format_clicks,
    format_leads,
    format_table,
    leads,
    ranker_rows,
    truth_ranks,
)
from model.note import Note


class Given:
    """A ranker that answers from a matrix of scores, and notes what it was asked for at once."""

    def __init__(self, scores_NN: np.ndarray, name: str = "given") -> None:
        self.name = name
        self.asked: list[list[int]] = []
        self._scores_NN = scores_NN.astype(np.float32)

    def scores(self, targets: Sequence[int]) -> np.ndarray:
        self.asked.append(list(targets))
        return self._scores_NN[list(targets)]


def pairs(*ends: tuple[str, str]) -> Pairs:
    notes, related = zip(*ends, strict=True)
    return Pairs(notes, related, np.ones(len(ends)), np.full(len(ends), 2))


@given(st.data())
def test_a_rank_counts_the_higher_scores_and_half_of_the_equal_ones_without_the_target(data):
    size = data.draw(st.integers(2, 8))
    scores = np.array([[data.draw(st.integers(0, 3)) for _ in range(size)] for _ in range(size)])
    ends = data.draw(
        st.lists(
            st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda e: e[0] != e[1]),
            min_size=1,
        )
    )

    ranks = truth_ranks(Given(scores), *np.array(ends).T, size)

    for rank, (target, truth) in zip(ranks, ends, strict=True):
        others = [scores[target][other] for other in range(size) if other not in (target, truth)]
        higher = sum(score > scores[target][truth] for score in others)
        equal = sum(score == scores[target][truth] for score in others)
        assert rank == higher + equal // 2


def test_a_ranker_that_cannot_tell_gets_the_recall_of_chance():
    size = 101
    targets, truths = np.arange(100), np.arange(1, 101)

    ranks = truth_ranks(Given(np.zeros((size, size))), targets, truths, size)

    assert set(ranks.tolist()) == {49}


def test_blocks_bound_the_memory_and_change_no_rank():
    """Nine bytes a pair and note: 360 bytes are two pairs of a pool of twenty at a time."""
    scores = np.random.default_rng(0).normal(size=(20, 20))
    targets = np.array([3, 1, 3, 9, 15, 1, 0])
    truths = np.array([4, 0, 5, 1, 2, 2, 19])
    whole = truth_ranks(Given(scores), targets, truths, 20)
    ranker = Given(scores)

    ranks = truth_ranks(ranker, targets, truths, 20, block_bytes=360)

    assert ranks.tolist() == whole.tolist()
    assert ranker.asked == [[0, 1], [1, 3], [3, 9], [15]], "pairs of one target side by side"


@pytest.mark.parametrize("block_bytes", [1, 9 * 60 * 7, 2**28])
def test_embeddings_are_searched_exactly_in_blocks_of_any_size(block_bytes):
    """Against every cosine of the pool, one by one; the last ten notes are copies of the first ten, and tie."""
    rng = np.random.default_rng(1)
    emb = rng.integers(-3, 4, size=(50, 6)).astype(np.float32)
    emb = np.concatenate([emb, emb[:10]])
    ends = [(int(target), int(truth)) for target, truth in rng.integers(0, 60, size=(80, 2)) if target != truth]

    ranks = truth_ranks(Embeddings("mine", emb * 5), *np.array(ends).T, 60, block_bytes=block_bytes)

    def cosine(one: int, other: int) -> float:
        a, b = emb[one].astype(int), emb[other].astype(int)
        return round(float(a @ b) / math.sqrt(max(1, int(a @ a) * int(b @ b))), 6)

    for rank, (target, truth) in zip(ranks, ends, strict=True):
        others = [cosine(target, other) for other in range(60) if other not in (target, truth)]
        higher = sum(score > cosine(target, truth) for score in others)
        equal = sum(score == cosine(target, truth) for score in others)
        assert higher <= rank <= higher + equal, "float32 may part what is equal"
        if equal == sum((emb[other] == emb[truth]).all() for other in range(60) if other not in (target, truth)):
            assert rank == higher + equal // 2, "exact copies of the truth tie with it"


def test_scores_that_are_not_finite_are_refused():
    scores = np.zeros((3, 3))
    scores[0, 2] = np.nan

    with pytest.raises(ValueError, match="given gave a score that is not finite"):
        truth_ranks(Given(scores), np.array([0]), np.array([1]), 3)


def test_recall_and_buckets_are_those_of_the_ranks():
    """Note 0 ranks the others by number; the truths 1, 2 and 9 stand at places 0, 1 and 8."""
    pool = [Note(str(number), "x", exposure=100 * number) for number in range(10)]
    scores = np.tile(-np.arange(10), (10, 1))

    [row] = evaluate_rankers([Given(scores)], pool, pairs(("0", "1"), ("0", "2"), ("0", "9")), ks=(1, 2, 9))

    assert row.ranks.tolist() == [0, 1, 8]
    assert {k: interval.mean for k, interval in row.recall.items()} == pytest.approx({1: 1 / 3, 2: 2 / 3, 9: 1})
    assert row.buckets == {"low exposure": {1: 0.5, 2: 1, 9: 1}, "high exposure": {1: 0, 2: 0, 9: 1}}


def test_the_average_and_recall_by_clicks_are_those_of_the_ranks():
    """Truths at places 0, 1 and 8, clicked by 1, 2 and 30 users."""
    pool = [Note(str(number), "x") for number in range(10)]
    scores = np.tile(-np.arange(10), (10, 1))
    clicks = np.array([0, 1, 2, 5, 0, 0, 0, 0, 0, 30])

    [row] = evaluate_rankers([Given(scores)], pool, pairs(("0", "1"), ("0", "2"), ("0", "9")), (1, 2), clicks)

    assert row.average.mean == pytest.approx((1 / 3 + 2 / 3) / 2)
    means = {bucket: [recall[k].mean for k in (1, 2)] for bucket, recall in row.by_clicks.items()}
    assert means == {"1 or 2 clicks": [0.5, 1], "10 clicks or more": [0, 0]}
    assert format_clicks([row], {"1 or 2 clicks": 2, "10 clicks or more": 1}).splitlines()[2:] == [
        "| 1 or 2 clicks | 2 | given | 50.0 (50.0 to 50.0) | 100.0 (100.0 to 100.0) |",
        "| 10 clicks or more | 1 | given | 0.0 (0.0 to 0.0) | 0.0 (0.0 to 0.0) |",
    ]


def test_every_note_is_in_one_bucket_of_clicks():
    buckets = click_buckets(np.array([0, 1, 2, 3, 9, 10, 5000]))

    assert {name: np.flatnonzero(inside).tolist() for name, inside in buckets.items()} == {
        "no clicks": [0],
        "1 or 2 clicks": [1, 2],
        "3 to 9 clicks": [3, 4],
        "10 clicks or more": [5, 6],
    }


def test_a_k_that_takes_in_the_whole_pool_is_left_out():
    """Of 101 notes 100 are ranked: Recall@100 is 1 for everybody, Recall@99 is not."""
    assert fitting((10, 99, 100, 1000), 101) == (10, 99)
    with pytest.raises(ValueError, match="the pool has 11 notes, so that Recall@10 is 1 whatever their order"):
        fitting((100, 10), 11)


def test_gold_pairs_outside_the_pool_are_refused():
    with pytest.raises(ValueError, match="1 notes of the gold pairs are not in the pool, 'z' for one"):
        evaluate_rankers([Given(np.zeros((2, 2)))], [Note("a"), Note("b")], pairs(("a", "z")))


def test_buckets_hold_the_least_and_the_most_shown():
    buckets = exposure_buckets(np.arange(100))

    assert np.flatnonzero(buckets["low exposure"]).tolist() == list(range(30))
    assert np.flatnonzero(buckets["high exposure"]).tolist() == list(range(90, 100))
    assert exposure_buckets(np.full(5, 3)) == {}


def test_a_lead_is_the_difference_of_recalls_and_certain_where_every_target_agrees():
    pool = [Note(str(number), "x") for number in range(10)]
    gold = pairs(*((str(number), str((number + 1) % 10)) for number in range(10)))
    right = np.roll(np.eye(10), 1, axis=1)

    rows = evaluate_rankers([Given(-right, "worst"), Given(right, NOTELLM)], pool, gold, ks=(1,))
    [lead] = leads(rows, gold)

    assert (lead.over, lead.k) == ("worst", 1)
    assert (lead.lead.mean, lead.lead.low, lead.lead.high) == (1, 1, 1)
    assert leads(rows[:1], gold) == []


def test_two_rankers_of_one_name_are_refused():
    twice = [Given(np.zeros((2, 2)), "same"), Given(np.ones((2, 2)), "same")]

    with pytest.raises(ValueError, match="two rankers are called 'same'"):
        evaluate_rankers(twice, [Note("a"), Note("b")], pairs(("a", "b")))


def test_rows_of_some_pairs_are_those_of_ranking_them_alone():
    pool = [Note(str(number), "x", exposure=number) for number in range(12)]
    some = pairs(("0", "3"), ("5", "11"), ("7", "2"))
    ranker = Given(np.random.default_rng(3).normal(size=(12, 12)))

    [alone] = evaluate_rankers([ranker], pool, some, ks=(1, 5))
    [row] = ranker_rows({"given": alone.ranks}, pool, some, ks=(1, 5))

    assert (row.recall, row.buckets) == (alone.recall, alone.buckets)


def test_tables_show_percent_and_the_bounds_of_the_interval():
    pool = [Note(str(number), "x") for number in range(4)]
    gold = pairs(("0", "1"), ("0", "2"))
    first, second = np.zeros((2, 4, 4))
    first[0], second[0] = [0, 3, 2, 1], [0, 1, 2, 3]

    rows = evaluate_rankers([Given(second, "other"), Given(first, NOTELLM)], pool, gold, ks=(2,))

    assert format_table(rows).splitlines() == [
        "| ranker | R@2 (95% interval) |",
        "| --- | ---: |",
        "| other | 50.0 (50.0 to 50.0) |",
        "| NoteLLM | 100.0 (100.0 to 100.0) |",
    ]
    several = evaluate_rankers([Given(second, "other")], pool, gold, ks=(1, 2))
    assert format_table(several).splitlines()[::2] == [
        "| ranker | R@1 (95% interval) | R@2 (95% interval) | Avg. (95% interval) |",
        "| other | 0.0 (0.0 to 0.0) | 50.0 (50.0 to 50.0) | 25.0 (25.0 to 25.0) |",
    ]
    assert format_leads(leads(rows, gold)).splitlines()[2:] == ["| other | R@2 | 50.0 (50.0 to 50.0) |"]


def test_embeddings_of_a_real_pool_go_through_the_same_door():
    emb = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    pool = [Note(name, "x") for name in "abc"]

    [row] = evaluate_rankers([Embeddings("mine", emb)], pool, pairs(("a", "b"), ("c", "b")), ks=(1,))

    assert row.recall[1].mean == 1
