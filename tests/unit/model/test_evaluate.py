"""The evaluation of section 5 on pools where every rank can be counted by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.backends.base import Reading, Scored
from model.baselines import Embeddings
from model.cooccurrence import split_notes, training_pairs
from model.data import DataError, Pairs, read_events, read_notes
from model.evaluate import (
    NOTELLM,
    evaluate,
    evaluate_categories,
    evaluate_hashtags,
    evaluate_rankers,
    exposure_buckets,
    format_report,
    format_table,
    leads,
    truth_ranks,
)
from model.note import Note


class Given:
    """A ranker that answers from a matrix of scores, and notes how much it was asked for at once."""

    def __init__(self, scores_NN: np.ndarray, name: str = "given") -> None:
        self.name = name
        self.asked: list[int] = []
        self._scores_NN = scores_NN.astype(np.float32)

    def scores(self, targets: Sequence[int]) -> np.ndarray:
        self.asked.append(len(targets))
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


def test_blocks_bound_the_memory_and_change_no_rank(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(20, 20))
    targets = np.array([3, 1, 3, 9, 15, 1, 0])
    truths = np.array([4, 0, 5, 1, 2, 2, 19])
    whole = truth_ranks(Given(scores), targets, truths, 20)
    monkeypatch.setattr("model.evaluate._SCORES_PER_BLOCK", 45)
    ranker = Given(scores)

    ranks = truth_ranks(ranker, targets, truths, 20)

    assert ranks.tolist() == whole.tolist()
    assert ranker.asked == [2, 2, 1]


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


def test_categories_are_scored_against_the_closed_set():
    row = evaluate_categories(["Food", "Flood", None], ["food", "Food", "Food"], ["Food", "Travel"])

    assert (row.notes, row.accuracy, row.illegal) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_hashtags_are_compared_as_the_service_cleans_them():
    row = evaluate_hashtags([["city_walk", "咖啡"]], [["#City Walk", "咖啡"]])

    assert [row.bleu4, row.rouge1, row.rouge2, row.rouge_l, row.f1] == pytest.approx([1] * 5)


def test_texts_are_compared_at_the_true_number_of_hashtags_and_f1_at_five():
    row = evaluate_hashtags([["a", "b", "c", "d"]], [["a"]])

    assert row.rouge1 == 1
    assert row.f1 == pytest.approx(2 * 1 / (4 + 1))


TOPICS = ("coffee", "hiking", "sewing", "chess")


def topic_of(note: Note) -> int:
    return next(number for number, topic in enumerate(TOPICS) if topic in note.title)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 notes on four topics; every user clicks notes of one topic, in order, and one note is blank."""
    rng = np.random.default_rng(0)
    notes = [
        {
            "note_id": f"n{number}",
            "title": f"{TOPICS[number % 4]} story {number}" if number else "",
            "hashtags": [TOPICS[number % 4], "daily"] if number else [],
            "category": TOPICS[number % 4].title(),
            "exposure": number,
        }
        for number in range(200)
    ]
    events = [
        {"user_id": f"u{user}", "note_id": f"n{4 * number + user % 4}", "event": "click", "ts": time}
        for user in range(120)
        for time, number in enumerate(rng.permutation(50)[:15].tolist())
    ]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return tmp_path


@pytest.fixture(autouse=True)
def _without_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniLM has tests of its own; here it would only take time."""
    monkeypatch.setattr("model.evaluate.minilm_folder", lambda: None)


def test_every_ranker_is_compared_on_the_held_out_notes(folder, capsys):
    shown: list[Note] = []

    def embed(notes: Sequence[Note]) -> np.ndarray:
        shown.extend(notes)
        return np.eye(4, dtype=np.float32)[[topic_of(note) for note in notes]]

    report = evaluate(folder, embed, holdout=0.5, seed=5, ks=(10, 50))

    held_out = split_notes((f"n{number}" for number in range(200)), 0.5, 5)
    assert {note.id for note in shown} == held_out - {"n0"}
    assert report.pool + report.blank == len(held_out)
    assert [row.name for row in report.rankers] == [
        "popularity",
        "same category, by popularity",
        "TF-IDF",
        NOTELLM,
    ]
    by_name = {row.name: row for row in report.rankers}
    assert by_name[NOTELLM].recall[50].mean == 1, "about 25 notes share the topic, and every truth is one of them"
    assert by_name["popularity"].recall[10].mean < 0.5
    assert {lead.over for lead in report.leads} == {"popularity", "same category, by popularity", "TF-IDF"}
    assert capsys.readouterr().out == ""


def test_no_note_of_a_training_pair_is_in_the_pool(folder):
    pool: list[str] = []

    def embed(notes: Sequence[Note]) -> np.ndarray:
        pool.extend(note.id for note in notes)
        return np.ones((len(notes), 2), dtype=np.float32)

    evaluate(folder, embed)
    trained = training_pairs(read_notes(folder), read_events(folder)).ends()

    assert trained
    assert not {note_id for pair in trained for note_id in pair} & set(pool)


def test_the_model_never_sees_what_it_is_asked_for(folder):
    asked: list[list[Note]] = []

    def read(notes: Sequence[Note]) -> list[Reading]:
        asked.append(list(notes))
        return [
            Reading(
                np.ones(2, dtype=np.float32),
                (Scored(TOPICS[topic_of(note)], 0.9), Scored("daily", 0.8)),
                Scored(TOPICS[topic_of(note)].title(), 0.9),
            )
            for note in notes
        ]

    report = evaluate(folder, read=read)

    for_categories, for_hashtags = asked
    assert all(note.category is None for note in [*for_categories, *for_hashtags])
    assert all(note.hashtags == () for note in for_hashtags)
    assert report.categories is not None
    assert report.hashtags is not None
    assert (report.categories.accuracy, report.categories.illegal) == (1, 0)
    assert (report.hashtags.f1, report.hashtags.rouge1) == (1, 1)


def test_events_without_times_are_evaluated_on_unordered_pairs(folder):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (folder / "events.jsonl").write_text("".join(json.dumps(event | {"ts": None}) + "\n" for event in lines))

    assert not evaluate(folder, holdout=0.5).ordered


def test_a_folder_without_a_gold_pair_says_what_is_needed(folder):
    with pytest.raises(DataError, match=r"no pair of the .* held-out notes has 1000 users behind it; more events"):
        evaluate(folder, min_users=1000)


def test_the_report_is_markdown_with_every_ranker_and_figure(folder):
    report = evaluate(folder, lambda notes: np.ones((len(notes), 2), dtype=np.float32), ks=(10,))

    text = format_report(report)
    tables = [block for block in text.split("\n\n") if block.startswith("|")]

    assert len(tables) == 3, "recall, recall by exposure, NoteLLM's lead"
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for row in report.rankers:
        assert f"| {row.name} | {100 * row.recall[10].mean:.1f} (" in format_table(report.rankers)


def test_embeddings_of_a_real_pool_go_through_the_same_door():
    emb = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    pool = [Note(name, "x") for name in "abc"]

    [row] = evaluate_rankers([Embeddings("mine", emb)], pool, pairs(("a", "b"), ("c", "b")), ks=(1,))

    assert row.recall[1].mean == 1
