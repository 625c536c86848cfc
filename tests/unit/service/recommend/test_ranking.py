"""Ranking by hand-made numbers, and diversity against its definition written out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from indexer.filters.expression import Value
from indexer.filters.parser import parse
from service.recommend.near_copies import Fingerprint
from service.recommend.note_cache import NoteSummary
from service.recommend.query import Boost, RelatedQuery
from service.recommend.ranking import RelatedNote, diverse, half_life, in_common, popularity, ranked


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


def note(number: int, cosine: float, content: str = "", **summary: object) -> RelatedNote:
    fields: dict[str, Value] = {"category": "a", **summary.pop("fields", {})}  # type: ignore[dict-item]
    if (created_at := summary.pop("created_at", None)) is not None:
        fields["created_at"] = created_at  # type: ignore[assignment]
    text = content or f"words of note number {number} alone w{number} x{number} y{number}"
    fingerprint = Fingerprint.of("", text)
    options: dict[str, Any] = {"author": None, "exposure": 0, "fields": fields, "fingerprint": fingerprint, **summary}
    return RelatedNote(f"n{number}", cosine, NoteSummary(f"n{number}", 1, "", None, (), **options))


def order(notes: list[RelatedNote], query: RelatedQuery, origins: Sequence[NoteSummary] = ()) -> list[str]:
    return [one.note_id for one in ranked(notes, query, origins, 0.1, NOW).notes]


NOW = 1_800_000_000.0
DAY = 86_400.0


def test_a_score_is_the_cosine_less_popularity_by_half_life_by_boosts():
    old = note(1, 0.9, exposure=99, created_at=NOW - 2 * DAY, fields={"sale": True})
    boosts = (Boost(parse("sale = true"), 2.0), Boost(parse('category = "a"'), 1.5), Boost(parse("sale = false"), 9.0))
    query = RelatedQuery(debias=0.5, half_life_days=2.0, boosts=boosts)

    [scored] = ranked([old], query, (), 0.1, NOW).notes

    assert (scored.popularity, scored.half_life, scored.boosts) == (0.05 * math.log(100), 0.5, 3.0)
    assert scored.score == pytest.approx((0.9 - 0.05 * math.log(100)) * 0.5 * 3.0)


def test_a_negative_score_is_divided_by_a_boost():
    query = RelatedQuery(boosts=(Boost(parse('category = "a"'), 2.0),))

    [scored] = ranked([note(1, -0.4)], query, (), 0.1, NOW).notes

    assert scored.score == pytest.approx(-0.2)


@pytest.mark.parametrize(("created_at", "share"), [(None, 1.0), (NOW + DAY, 1.0), (NOW, 1.0), (NOW - 3 * DAY, 0.125)])
def test_no_time_and_one_in_the_future_take_nothing_off(created_at, share):
    assert half_life(created_at, 1.0, NOW) == pytest.approx(share)


def test_a_boosted_note_passes_a_nearer_one_and_an_old_one_falls_behind():
    notes = [note(1, 0.9, created_at=NOW - 10 * DAY), note(2, 0.8), note(3, 0.7, fields={"sale": True})]

    assert order(notes, RelatedQuery(half_life_days=10.0)) == ["n2", "n3", "n1"]
    assert order(notes, RelatedQuery(boosts=(Boost(parse("sale = true"), 1.5),))) == ["n3", "n1", "n2"]


def test_the_least_score_is_one_of_scores_and_not_of_cosines():
    notes = [note(1, 0.9, created_at=NOW - 10 * DAY), note(2, 0.5), note(3, 0.2)]

    assert order(notes, RelatedQuery(min_score=0.5)) == ["n1", "n2"]
    assert order(notes, RelatedQuery(min_score=0.5, half_life_days=10.0)) == ["n2"]


def test_a_score_as_it_is_shown_may_be_the_least_one():
    assert order([note(1, 0.9941386)], RelatedQuery(min_score=0.994139)) == ["n1"]
    assert order([note(1, 0.9941394)], RelatedQuery(min_score=0.9941392)) == []


def test_near_copies_of_an_origin_and_of_notes_above_are_left_out_and_named():
    text = "three days in kyoto with rain and tea"
    notes = [note(1, 0.9, text), note(2, 0.8, "other words that nobody else has"), note(3, 0.7, text.upper())]
    origin = note(0, 1.0, "other words that nobody else HAS!").summary
    assert origin

    assert order(notes, RelatedQuery()) == ["n1", "n2"]
    assert order(notes, RelatedQuery(), [origin]) == ["n1"]
    assert order(notes, RelatedQuery(collapse=False), [origin]) == ["n1", "n2", "n3"]
    assert [one.note_id for one in ranked(notes, RelatedQuery(), [origin], 0.1, NOW).copies] == ["n2", "n3"]


def test_without_the_store_there_is_nothing_to_rank_by():
    bare = [RelatedNote("n1", 0.9, None), RelatedNote("n2", 0.8, None)]
    query = RelatedQuery(half_life_days=1.0, debias=1.0, group_by="author")

    assert ranked(bare, query, (), 0.1, NOW).notes == bare


def test_of_each_group_the_best_stay_and_a_note_without_one_is_a_group_of_its_own():
    values: list[Value | None] = ["x", "x", None, None, ("x", "y"), 1.0, True, "x"]
    notes = [
        note(number, 1 - number / 10, fields={} if value is None else {"city": value})
        for number, value in enumerate(values)
    ]

    assert order(notes, RelatedQuery(group_by="city")) == ["n0", "n2", "n3", "n5", "n6"]
    assert order(notes, RelatedQuery(group_by="city", per_group=2)) == ["n0", "n1", "n2", "n3", "n5", "n6"]


@pytest.mark.parametrize("cosine", [0.5, 0.0, -0.5])
def test_no_score_is_better_than_the_best_of_its_cosine(cosine):
    boosts = (Boost(parse('category = "a"'), 2.0), Boost(parse('category = "b"'), 0.5))
    query = RelatedQuery(boosts=boosts, half_life_days=1.0)
    for fields in ({"category": "a"}, {"category": "b"}, {"category": "c"}):
        for created_at in (None, NOW - DAY):
            [scored] = ranked([note(1, cosine, fields=fields, created_at=created_at)], query, (), 0.1, NOW).notes
            assert scored.score <= query.best_score(cosine)


def test_the_more_comparisons_a_note_costs_the_fewer_are_looked_at():
    many = parse(" OR ".join(f"a{number} < {number}" for number in range(64)))

    assert RelatedQuery().most_candidates == RelatedQuery(filter=parse("a = 1 AND b = 2")).most_candidates == 8192
    assert 200 < RelatedQuery(filter=many, boosts=(Boost(many, 2.0),) * 8).most_candidates < 300
    assert RelatedQuery(offset=900, k=100, boosts=(Boost(many, 2.0),) * 8).most_candidates == 4000
