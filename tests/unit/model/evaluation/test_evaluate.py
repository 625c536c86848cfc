"""The whole evaluation of a small folder whose answers are known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.backend import Prediction, Scored
from model.data.cooccurrence import related_pairs, split_notes, training_pairs
from model.data.events import load_events
from model.data.files import DataError
from model.data.notes import load_notes
from model.evaluation import evaluate as evaluation
from model.evaluation.baselines import Embeddings
from model.evaluation.hashtags import Predict, Write
from model.evaluation.held_out import load_held_out
from model.evaluation.report import Report, format_report
from model.evaluation.retrieval import NOTELLM, Embed, evaluate_rankers, format_table
from model.note import Note

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


def evaluate(
    folder: Path,
    embed: Embed | None = None,
    predict: Predict | None = None,
    write: Write | None = None,
    *,
    ks: Sequence[int] = (10,),
    limit: int | None = None,
    categories: Sequence[str] | None = None,
    encoders: Mapping[str, Embed] | None = None,
    **split: Any,
) -> Report:
    held_out = load_held_out(folder, **split)
    return evaluation.evaluate(
        held_out, embed, predict, write, encoders=encoders, categories=categories, ks=ks, limit=limit
    )


def topics(notes: Sequence[Note]) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[[topic_of(note) for note in notes]]


def test_every_ranker_is_compared_on_the_held_out_notes(folder, capsys):
    shown: list[list[str]] = []

    def embed(notes: Sequence[Note]) -> np.ndarray:
        shown.append([note.id for note in notes])
        return topics(notes)

    report = evaluate(folder, embed, holdout=0.5, seed=5, ks=(10, 50))

    held_out = split_notes((f"n{number}" for number in range(200)), 0.5, 5)
    assert set(shown[0]) == held_out - {"n0"}
    assert report.pool + report.blank == len(held_out)
    [supported, everything] = report.gold
    assert (supported.name, everything.name) == ("pairs of 2 users or more", "all pairs")
    for result in (supported, everything):
        by_name = {row.name: row for row in result.rankers}
        assert list(by_name) == ["popularity", "same category, by popularity", "TF-IDF", "BM25", NOTELLM]
        assert by_name[NOTELLM].recall[50].mean == 1, "about 25 notes share the topic, and every truth is one of them"
        assert by_name["popularity"].recall[10].mean < 0.5
        assert {lead.over for lead in result.leads} == {*by_name} - {NOTELLM}
    assert capsys.readouterr().out == ""


def test_both_sets_of_gold_pairs_are_those_of_ranking_them_alone(folder):
    """Eq. 1 counts the users behind a pair; the log is counted here by hand."""
    report = evaluate(folder, topics, holdout=0.5, ks=(10,))

    notes = load_notes(folder)
    held_out = split_notes((note.id for note in notes), 0.5, 0)
    pool = [note for note in notes if note.id in held_out and note.title]
    gold = related_pairs(load_events(folder), within=frozenset(note.id for note in pool))
    clicked: dict[str, list[str]] = {}
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        clicked.setdefault(event["user_id"], []).append(event["note_id"])
    orders = [{note_id: place for place, note_id in enumerate(ids)} for ids in clicked.values()]
    users = [sum(a in order and b in order and order[a] < order[b] for order in orders) for a, b in gold.ends()]
    assert [result.pairs for result in report.gold] == [sum(count >= 2 for count in users), len(users)]
    for result, pairs in zip(report.gold, (gold.supported_by(2), gold), strict=True):
        [alone] = evaluate_rankers([Embeddings(NOTELLM, topics(pool))], pool, pairs, (10,))
        assert result.targets == len(set(pairs.note_ids))
        assert result.rankers[-1].ranks.tolist() == alone.ranks.tolist()
        assert result.rankers[-1].recall == alone.recall


def test_pairs_of_one_user_or_more_are_all_pairs(folder):
    assert [result.name for result in evaluate(folder, min_users=1).gold] == ["all pairs"]


def test_the_popularity_weight_is_fitted_on_training_notes_alone(folder):
    """Exposure is the note's number here; the model lets later notes of a topic come nearer."""
    shown: list[set[str]] = []

    def embed(notes: Sequence[Note]) -> np.ndarray:
        shown.append({note.id for note in notes})
        return np.column_stack([topics(notes), [0.004 * note.exposure for note in notes]])

    report = evaluate(folder, embed, holdout=0.3, ks=(10,))

    held_out = split_notes((f"n{number}" for number in range(200)), 0.3, 0)
    assert shown[1].isdisjoint(held_out)
    assert report.debias is not None
    assert report.debias.notes == len(shown[1])
    assert report.debias.weight > 0
    assert [row.debias for row in report.debias.rows] == [0, 0.5, 1]
    assert report.debias.rows[0].ranker.recall == report.gold[0].rankers[-1].recall


def test_no_note_of_a_training_pair_is_in_the_pool(folder):
    shown: list[list[str]] = []

    def embed(notes: Sequence[Note]) -> np.ndarray:
        shown.append([note.id for note in notes])
        return np.ones((len(notes), 2), dtype=np.float32)

    evaluate(folder, embed)
    pool = shown[0]
    trained = training_pairs(load_notes(folder), load_events(folder)).ends()

    assert trained
    assert not {note_id for pair in trained for note_id in pair} & set(pool)


def test_the_model_never_sees_what_it_is_asked_for(folder):
    asked: list[list[Note]] = []

    def predict(notes: Sequence[Note]) -> list[Prediction]:
        asked.append(list(notes))
        return [
            Prediction(
                np.ones(2, dtype=np.float32),
                (Scored(TOPICS[topic_of(note)], 0.9), Scored("daily", 0.8)),
                Scored(TOPICS[topic_of(note)].title(), 0.9),
            )
            for note in notes
        ]

    def write(notes: Sequence[Note]) -> list[str]:
        asked.append(list(notes))
        return ["no category"] * len(notes)

    report = evaluate(folder, predict=predict, write=write)

    for_categories, written, for_hashtags = asked
    assert written == for_categories
    assert all(note.category is None for note in [*for_categories, *for_hashtags])
    assert all(note.hashtags == () for note in for_hashtags)
    assert report.categories is not None
    assert report.hashtags is not None
    assert (report.categories.accuracy.mean, report.categories.illegal.mean) == (1, 0)
    assert report.categories.unconstrained_accuracy is not None
    assert report.categories.unconstrained_accuracy.mean == 0
    assert (report.hashtags.rows[0].f1.mean, report.hashtags.rows[0].rouge1.mean) == (1, 1)


def test_a_limit_bounds_what_is_predicted_for_categories_and_for_hashtags(folder):
    asked: list[int] = []

    def predict(notes: Sequence[Note]) -> list[Prediction]:
        asked.append(len(notes))
        return [Prediction(np.ones(2, dtype=np.float32), (), None) for _ in notes]

    report = evaluate(folder, predict=predict, limit=9)

    assert asked == [9, 9]
    assert report.categories is not None
    assert report.categories.notes == 9


def test_events_without_times_are_evaluated_on_unordered_pairs(folder):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (folder / "events.jsonl").write_text("".join(json.dumps(event | {"ts": None}) + "\n" for event in lines))

    assert "unordered pairs" in evaluate(folder, holdout=0.5).origin


def test_a_folder_without_a_gold_pair_says_what_is_needed(folder):
    with pytest.raises(DataError, match=r"no pair of the .* notes of the pool has 1000 users behind it; more events"):
        evaluate(folder, min_users=1000)


def test_the_report_is_markdown_with_every_ranker_and_figure(folder):
    def predict(notes: Sequence[Note]) -> list[Prediction]:
        return [Prediction(topics([note])[0], (Scored("daily", 0.5),), Scored("Coffee", 0.5)) for note in notes]

    report = evaluate(folder, topics, predict, lambda notes: ["Coffee"] * len(notes), ks=(10,))

    text = format_report(report)
    tables = [block for block in text.split("\n\n") if block.startswith("|")]

    assert len(tables) == 2 * 4 + 1 + 1 + 2, (
        "recall, by exposure, by clicks, leads; debias; categories; hashtags and their leads"
    )
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for result in report.gold:
        assert f"Gold: {result.pairs:,} {result.name}, of {result.targets:,} targets." in text
        assert format_table(result.rankers) in tables
    assert "b = " in text
    assert "BLEU4 of the public code" in text


def test_recall_by_clicks_is_that_of_the_pairs_whose_truth_has_so_many(folder):
    report = evaluate(folder, topics, holdout=0.5, ks=(10,))

    clicks: dict[str, set[str]] = {}
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        clicks.setdefault(event["note_id"], set()).add(event["user_id"])
    everything = report.gold[-1]
    [notes, gold] = [load_held_out(folder, holdout=0.5).pool, load_held_out(folder, holdout=0.5).gold]
    assert notes
    assert gold is not None
    expected = [len(clicks[truth]) >= 10 for truth in gold.related_ids]
    assert everything.by_clicks == {
        name: count
        for name, count in {"3 to 9 clicks": expected.count(False), "10 clicks or more": expected.count(True)}.items()
        if count
    }
    ours = everything.rankers[-1]
    hits = (ours.ranks < 10)[np.array(expected)]
    assert ours.by_clicks["10 clicks or more"][10].mean == pytest.approx(hits.mean())


def test_encoders_stand_between_the_words_and_the_model_and_a_k_beyond_the_pool_is_told(folder):
    report = evaluate(folder, topics, encoders={"other": topics}, holdout=0.5, ks=(10, 5000))

    assert [row.name for row in report.gold[0].rankers][-3:] == ["BM25", "other", NOTELLM]
    assert report.remarks == [f"Recall@5,000 is left out: the pool has {report.pool} notes."]
    assert report.remarks[0] in format_report(report)


def test_categories_that_the_model_does_not_know_are_told_and_without_any_known_there_is_no_row(folder):
    def predict(notes: Sequence[Note]) -> list[Prediction]:
        return [Prediction(topics([note])[0], (), Scored("Coffee", 0.5)) for note in notes]

    some = evaluate(folder, predict=predict, categories=["Coffee", "Chess"])
    none = evaluate(folder, predict=predict, categories=["Politics"])

    assert some.remarks == ["2 of 4 categories are not in the model's closed set, 'Hiking' for one."]
    assert some.categories is not None
    assert some.categories.illegal.mean == 0
    assert none.remarks == ["4 of 4 categories are not in the model's closed set, 'Chess' for one."]
    assert none.categories is None


def test_notes_without_events_are_judged_by_categories_and_hashtags(folder):
    (folder / "events.jsonl").unlink()

    def predict(notes: Sequence[Note]) -> list[Prediction]:
        names = [TOPICS[topic_of(note)] for note in notes]
        return [
            Prediction(vector, (Scored(name, 0.5),), Scored(name.title(), 0.5))
            for vector, name in zip(topics(notes), names, strict=True)
        ]

    report = evaluate(folder, topics, predict)

    assert (report.gold, report.debias) == ([], None)
    assert report.categories is not None
    assert report.categories.accuracy.mean == 1
    assert report.hashtags is not None
    assert report.hashtags.rows[0].rouge1.mean == pytest.approx(2 / 3), "one of the two, and nothing else"
    with pytest.raises(DataError, match="nothing says which notes are related, and no model"):
        evaluate(folder)


def test_the_figures_are_json_without_the_ranks(folder):
    report = evaluate(folder, topics, holdout=0.5, ks=(5, 10))

    figures = json.loads(json.dumps(report.as_json()))

    ours = figures["gold"][0]["rankers"][-1]
    assert ours["recall"]["10"]["mean"] == report.gold[0].rankers[-1].recall[10].mean
    assert ours["average"]["mean"] == pytest.approx((ours["recall"]["5"]["mean"] + ours["recall"]["10"]["mean"]) / 2)
    assert "ranks" not in ours
