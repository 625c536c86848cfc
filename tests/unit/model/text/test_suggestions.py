"""What the model wrote and what neighbors carry become one list, whatever order they come in."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text.hashtags import clean_tag, fold, spelling
from model.text.suggestions import VOTERS, Candidate, Uncalibrated, candidates, spelled, usual_spellings, vote_weights

tags = st.text(max_size=12) | st.sampled_from(
    [
        "Street Food",
        "streetfoods",
        "#street-food",
        "news",
        "new",
        "京都",
        "हिन्दी",
        "c++",
        "<b>",
        "e\u0301t\u00e9",
        "Sea",
        "sea",
    ]
)
scores = st.floats(0, 1)
cosines = st.floats(-1, 1)
written = st.lists(st.tuples(tags, scores), max_size=10)
near = st.lists(st.tuples(cosines, st.lists(tags, max_size=4)), max_size=VOTERS)


@given(written, near)
def test_every_candidate_is_a_hashtag_and_no_two_are_one(generated, neighbors):
    found = candidates(generated, neighbors)

    assert len({candidate.key for candidate in found}) == len(found)
    for candidate in found:
        assert spelling(candidate.tag) == candidate.tag
        assert fold(candidate.tag) == candidate.key
        assert candidate.probability is not None or candidate.vote > 0
        assert 0 <= candidate.vote <= 1


@given(written, near, st.randoms(use_true_random=False))
def test_the_order_changes_nothing_but_the_order(generated, neighbors, rng: random.Random):
    def figures(found: list[Candidate]) -> dict[str, tuple[float | None, float]]:
        return {candidate.key: (candidate.probability, pytest.approx(candidate.vote)) for candidate in found}

    shuffled = [(cosine, rng.sample(hashtags, len(hashtags))) for cosine, hashtags in neighbors]
    mixed = candidates(rng.sample(generated, len(generated)), rng.sample(shuffled, len(shuffled)))

    assert {candidate.key: (candidate.probability, candidate.vote) for candidate in mixed} == figures(
        candidates(generated, neighbors)
    )


@given(written)
def test_of_two_spellings_the_model_wrote_the_likelier_counts(generated):
    best: dict[str, float] = {}
    for text, score in generated:
        if clean_tag(text):
            best[fold(text)] = max(score, best.get(fold(text), 0.0))

    assert {candidate.key: candidate.probability for candidate in candidates(generated)} == best


def test_spellings_of_one_hashtag_are_one_candidate_of_both_sources():
    found = candidates([("streetfood", 0.3), ("street_foods", 0.6)], [(0.8, ["Street Food", "STREETFOOD", "Noodles"])])

    assert [(candidate.tag, candidate.probability, candidate.vote) for candidate in found] == [
        ("street_foods", 0.6, pytest.approx(0.8 / VOTERS)),
        ("Noodles", None, pytest.approx(0.8 / VOTERS)),
    ]


def test_as_many_equal_neighbors_as_vote_share_one_vote():
    assert vote_weights([0.7] * VOTERS) == pytest.approx([0.7 / VOTERS] * VOTERS)


def test_a_neighbor_that_is_nearer_by_a_twentieth_weighs_e_times_as_much_for_each_cosine():
    weights = vote_weights([0.9, *[0.85] * (VOTERS - 1)])

    assert (weights[0] / 0.9) / (weights[1] / 0.85) == pytest.approx(math.e)
    assert weights[0] == pytest.approx(0.9 * math.e / (math.e + VOTERS - 1))


def test_one_neighbor_alone_says_little_and_one_that_points_away_nothing():
    assert vote_weights([0.9]) == pytest.approx([0.9 / VOTERS])
    assert candidates([], [(-0.1, ["sea"])]) == []
    assert vote_weights([]) == []


def test_missing_neighbors_count_as_near_as_the_farthest():
    farther = math.exp(-1)  # nearer by a twentieth: e times as much
    weights = vote_weights([0.9, 0.85])
    total = 1 + farther + (VOTERS - 2) * farther
    assert weights == pytest.approx([0.9 / total, 0.85 * farther / total])


@given(st.lists(cosines, min_size=1, max_size=VOTERS))
def test_votes_are_at_most_one_together_and_the_nearer_never_weighs_less(found):
    weights = vote_weights(sorted(found, reverse=True))

    assert sum(weights) <= 1 + 1e-9
    assert weights == sorted(weights, reverse=True)
    assert min(weights) >= 0


@given(scores, scores)
def test_without_calibration_the_sources_count_as_independent(probability, vote):
    score = Uncalibrated().suggestion(Candidate("sea", "sea", probability, vote))

    assert 1 - score == pytest.approx((1 - probability) * (1 - vote))
    assert Uncalibrated().suggestion(Candidate("sea", "sea", None, vote)) == pytest.approx(vote)
    assert Uncalibrated().alone(probability) == Uncalibrated().category(probability) == probability


def test_a_note_carries_a_hashtag_once_as_it_wrote_it_first():
    assert spelled(["#StreetFood", "street food", "c++", "京都", ""]) == {"streetfood": "StreetFood", "京都": "京都"}


def test_the_usual_spelling_is_that_of_most_notes_and_small_letters_win_a_tie():
    carried = [("Street Food", "street food"), ("StreetFoods",), ("street-food", "Kyoto"), ("Street_Food", "kyoto"), ()]

    assert usual_spellings(carried) == {"streetfood": "Street_Food", "kyoto": "kyoto"}
