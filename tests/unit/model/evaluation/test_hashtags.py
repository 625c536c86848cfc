"""Categories and hashtags, scored on answers that were written by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from model.backend import Prediction, Scored
from model.data.cooccurrence import split_notes
from model.evaluation.hashtags import (
    NEIGHBORS_ALONE,
    WITH_NEIGHBORS,
    JudgedHashtags,
    compare_hashtags,
    evaluate_categories,
    evaluate_tags,
    format_categories,
    format_hashtags,
    sample_notes,
)
from model.evaluation.retrieval import NOTELLM
from model.note import Note


def test_categories_are_scored_against_the_closed_set():
    row = evaluate_categories(["Food", "Flood", None], ["food", "Food", "Food"], ["Food", "Travel"])

    assert (row.notes, row.accuracy.mean, row.illegal.mean) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (row.accuracy.low, row.accuracy.high) == (0, 1), "three notes say next to nothing"


def test_hashtags_are_compared_as_the_service_cleans_them():
    row = JudgedHashtags("mine", [["city_walk", "咖啡"]], [["#City Walk", "咖啡"]]).row()

    means = [figure.mean for figure in (row.rouge1, row.rouge2, row.rouge_l, row.f1)]
    assert [row.bleu4, *means] == pytest.approx([1] * 5)


def test_texts_are_compared_at_the_true_number_of_hashtags_and_f1_at_five():
    row = JudgedHashtags("mine", [["a", "b", "c", "d"]], [["a"]]).row()

    assert row.rouge1.mean == 1
    assert row.f1.mean == pytest.approx(2 * 1 / (4 + 1))


def test_free_categories_are_scored_next_to_the_constrained_ones():
    row = evaluate_categories(["Food", "Travel"], ["Food", "Food"], ["Food", "Travel"], ["a recipe", "Food"])

    assert format_categories(row).splitlines()[2:] == [
        "| held to the closed set | 2 | 50.0 (0.0 to 100.0) | 0.0 (0.0 to 0.0) |",
        "| unconstrained | 2 | 50.0 (0.0 to 100.0) | 50.0 (0.0 to 100.0) |",
    ]


def test_categories_that_nobody_wrote_freely_have_no_such_line():
    row = evaluate_categories(["Food"], ["Food"], ["Food"])

    assert row.unconstrained_accuracy is None
    assert "unconstrained" not in format_categories(row)


def test_every_lead_is_the_difference_of_the_two_rows():
    truth = [["coffee", "city"], ["tea"]]
    right, half, wrong = truth, [["coffee", "walk"], ["tea"]], [["x"], ["y"]]

    report = compare_hashtags({"ours": right, "ours too": half}, {"theirs": wrong, "also theirs": half}, truth)

    by_name = {row.name: row for row in report.rows}
    assert list(by_name) == ["ours", "ours too", "theirs", "also theirs"]
    assert [(lead.name, lead.over, lead.metric) for lead in report.leads] == [
        (ours, theirs, metric)
        for ours in ("ours", "ours too")
        for theirs in ("theirs", "also theirs")
        for metric in ("ROUGE1", "F1@5")
    ]
    for lead in report.leads:
        figure = "rouge1" if lead.metric == "ROUGE1" else "f1"
        assert lead.lead.mean == pytest.approx(
            getattr(by_name[lead.name], figure).mean - getattr(by_name[lead.over], figure).mean
        )
    sure = report.leads[0].lead
    assert (sure.mean, sure.low, sure.high) == (1, 1, 1)


def test_a_sample_is_the_same_whatever_the_order_and_whoever_else_is_there():
    notes = [Note(str(number)) for number in range(200)]

    drawn = sample_notes(notes, 50)

    assert len(drawn) == 50
    assert drawn == [note for note in notes if note in drawn], "in order"
    assert set(sample_notes(notes[::-1], 50)) == set(drawn)
    assert sample_notes(drawn, 20) == sample_notes(notes, 20), "notes that were not drawn make no difference"
    assert sample_notes(notes, None) == sample_notes(notes, 1000) == notes


TOPICS = ("coffee", "hiking", "sewing", "chess")
NOTES = [
    Note(f"n{number}", f"about {TOPICS[number % 4]} day {number}", "", (TOPICS[number % 4], f"only{number}", "daily"))
    for number in range(120)
]


def topic_of(note: Note) -> int:
    return next(number for number, topic in enumerate(TOPICS) if topic in note.title)


class Predictor:
    """Knows each note's topic, and writes it as a hashtag."""

    def __init__(self) -> None:
        self.asked: list[Note] = []

    def __call__(self, notes: Sequence[Note]) -> list[Prediction]:
        self.asked.extend(notes)
        return [Prediction(embed([note])[0], (Scored(TOPICS[topic_of(note)], 0.9),), None) for note in notes]


def embed(notes: Sequence[Note]) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[[topic_of(note) for note in notes]]


def split(notes: Sequence[Note]) -> tuple[list[Note], list[Note]]:
    """Training and held-out notes."""
    held_out = split_notes(note.id for note in notes)
    return [note for note in notes if note.id not in held_out], [note for note in notes if note.id in held_out]


def test_hashtags_are_compared_with_neighbors_and_the_most_frequent_ones_without_any_events():
    """True: topic, one of its own, ``daily``. The predictor names the topic; its neighbors add ``daily``."""
    training, held_out = split(NOTES)
    report = evaluate_tags(training, held_out, Predictor(), embed)

    assert report is not None
    by_name = {row.name: row for row in report.rows}
    assert list(by_name) == [
        NOTELLM, WITH_NEIGHBORS, NEIGHBORS_ALONE, "hashtags of TF-IDF neighbors", "most frequent hashtags",
    ]  # fmt: skip
    assert {row.notes for row in report.rows} == {len(held_out)}
    f1 = {name: row.f1.mean for name, row in by_name.items()}
    assert f1[NOTELLM] == pytest.approx(2 * 1 / (1 + 3))
    assert f1[WITH_NEIGHBORS] == pytest.approx(2 * 2 / (5 + 3)), "five said, two of them true"
    assert f1[NEIGHBORS_ALONE] == pytest.approx(2 * 2 / (5 + 3)), "all neighbors carry topic and daily"
    rouge1 = {name: row.rouge1.mean for name, row in by_name.items()}
    assert rouge1[WITH_NEIGHBORS] > rouge1[NOTELLM]
    assert rouge1["hashtags of TF-IDF neighbors"] > rouge1["most frequent hashtags"]
    assert len(report.leads) == 2 * 3 * 2
    tables = format_hashtags(report).split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [2 + 5, 2 + 12], "English needs no word about its words"


def test_it_is_said_how_chinese_was_cut():
    report = compare_hashtags({"ours": [["旅行"]]}, {}, [["旅行", "咖啡"]])

    assert format_hashtags(report).split("\n\n")[1] == "Words: jieba cuts Chinese."
    assert report.rows[0].rouge1.mean == pytest.approx(2 / 3), "one of two words; of four characters two"


def test_drafts_show_title_and_content_alone_and_no_held_out_hashtag_reaches_an_opponent():
    """Every note carries a hashtag of its own: whoever names that of a held-out note has seen it."""
    predictor = Predictor()

    training, held_out = split(NOTES)
    report = evaluate_tags(training, held_out, predictor, embed)

    assert [note.id for note in predictor.asked] == [note.id for note in held_out]
    assert all(note.hashtags == () and note.category is None for note in predictor.asked)
    assert report is not None
    assert all(row.f1.mean < 1 and row.rouge1.mean < 1 for row in report.rows)


def test_a_limit_asks_about_the_same_notes_each_time():
    predictors = [Predictor(), Predictor()]

    for predictor, notes in zip(predictors, (NOTES, NOTES[::-1]), strict=True):
        evaluate_tags([], notes, predictor, limit=7)

    first, second = ({note.id for note in predictor.asked} for predictor in predictors)
    assert first == second
    assert len(first) == 7


def test_without_training_hashtags_the_model_stands_alone_and_without_any_nothing_does():
    report = evaluate_tags([Note("t", "no hashtags")], NOTES, Predictor(), embed)

    assert report is not None
    assert [row.name for row in report.rows] == [NOTELLM]
    assert evaluate_tags([], [Note("a", "text")], Predictor()) is None
    assert evaluate_tags([], [Note("a", " ", "", ("tag",))], Predictor()) is None
