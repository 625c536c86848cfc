"""A turn without a service: up to the gate, killed at every step, refused, and abandoned."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.checkpoint import tiny_checkpoint
from support.topics import topic_events, topic_notes, write_topics

from model.data.cooccurrence import split_notes
from model.data.events import load_events
from model.data.notes import load_notes
from model.data.pairs import Pairs, load_pairs
from model.evaluation import reliability
from model.evaluation.metrics import calibration_error, chance_calibration_error
from model.inference.calibration import Calibration, LogitMap, SuggestionMap, scores_of
from model.inference.many import embed_all, predict_all
from model.inference.open import open_backend
from model.network.checkpoint import add_calibration, load_manifest
from service.cli.learn import lessons, trial
from service.cli.learn.summary import summary
from service.cli.learn.turn import Turn
from service.cli.main import cli

FIELDS = ("steps=6", "learning_rate=0.01", "pairs_per_batch=16", "seed=1")
SETTINGS = ("--recall-at", "10", *(word for field in FIELDS for word in ("--set", field)))
OFFLINE = ["data", "train", "calibrate", "gate"]


class Killed(BaseException):
    """No handler of errors stops it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_topics(tmp_path_factory.mktemp("topics"))


@pytest.fixture(scope="module")
def serving(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    tiny_checkpoint(folder)
    return folder


@pytest.fixture
def learn(data: Path, serving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, where no service runs, in the folder of the test."""
    monkeypatch.setenv("NOTELLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NOTELLM_CHECKPOINT", str(serving))
    # How long a note takes on a busy machine is no part of these tests.
    monkeypatch.setattr("model.evaluation.gate.verdict._SLOWER", 100.0)
    monkeypatch.setattr("model.evaluation.gate.measured._ROUNDS", 2)
    monkeypatch.setattr(lessons, "_LIMIT", 10)

    def run(*words: str) -> Result:
        given = words if words and words[0] in ("status", "abandon") else ("--data", str(data), *SETTINGS, *words)
        return CliRunner().invoke(cli, ["learn", *given, "--turns", str(tmp_path / "turns")])

    return run


def last(folder: Path) -> Turn:
    turn = Turn.last(folder / "turns")
    assert turn
    return turn


def test_a_turn_that_is_killed_behind_every_step_goes_on_with_it_and_ends_as_one_that_was_not(
    learn, data, serving, tmp_path, monkeypatch
):
    record = Turn.record
    for number, killed in enumerate(OFFLINE):

        def dies(turn: Turn, step: str, *more: Any, killed: str = killed) -> None:
            if step == killed:  # all is done, and nothing says so
                raise Killed
            record(turn, step, *more)

        monkeypatch.setattr(Turn, "record", dies)
        with pytest.raises(Killed):
            learn()
        assert list(last(tmp_path).steps) == OFFLINE[:number]
    monkeypatch.setattr(Turn, "record", record)
    stopped = learn()

    assert "no `notellm serve` runs" in stopped.output  # the next step needs a service
    turn = last(tmp_path)
    assert list(turn.steps) == OFFLINE
    assert turn.outcome is None
    rows = {row["name"]: row for row in turn.found("gate")["rows"]}
    assert rows["Recall@10"]["says"] == "better"
    # The newest notes are in no pair of the training, and the model is the one that is made without a kill.
    newest = {note.id for note in load_notes(turn.data / "test")}
    trained = {end for pair in load_pairs(turn.data / "pairs.parquet").ends() for end in pair}
    kept_out = split_notes((note.id for note in load_notes(turn.data)), lessons.HOLDOUT, lessons.SEED)
    assert kept_out  # for calibration
    assert not trained & (newest | kept_out)
    again = Turn.begin(tmp_path / "again", turn.asked, None)
    lessons.gather(again, load_notes(data), load_events(data))
    assert lessons.train(again).found["fingerprint"] == turn.found("train")["fingerprint"]
    recipe = load_manifest(turn.checkpoint).recipe
    assert (recipe.base_model, recipe.steps) == (str(serving), 6)

    states = [step.state for step in summary(turn).steps]
    assert states == ["done"] * 4 + ["next", "open", "open"]
    assert [step.state for step in summary(turn, runs="index").steps][4] == "runs"
    [row] = [row for row in summary(turn).gate if row.name == "Recall@10"]
    assert (row.serving, row.low > 0, row.says) == (rows["Recall@10"]["serving"], True, "better")
    shown = learn("status").output
    assert "next              the new model's index lacks nothing" in shown
    assert "| Recall@10, % |" in shown
    assert "299 pairs (of two readers or more) of" in shown
    assert "103 pairs (also of single readers) of 47 newest notes held out" in shown
    assert (
        "was begun with another --share: give the same, or `notellm learn abandon` it" in learn("--share", "0.5").output
    )
    assert "no `notellm serve` runs" in learn("abandon").output  # it knows whether the model is registered


def test_it_learns_from_pairs_of_two_readers_where_they_are_enough_for_its_steps(serving):
    recipe = replace(load_manifest(serving).recipe, pairs_per_batch=10, steps=40, epochs=1)
    names = tuple(f"n{number}" for number in range(200))
    pairs = Pairs(names, names[1:] + names[:1], np.ones(200), np.repeat([2, 1], 100))

    assert lessons.training_pairs(pairs, recipe).ends() == pairs.ends()[:100]  # in four passes
    assert len(lessons.training_pairs(pairs, replace(recipe, steps=41))) == 200
    assert len(lessons.training_pairs(pairs, replace(recipe, steps=0))) == 100
    few = replace(pairs, users=np.repeat([2, 1], [99, 101]))
    assert len(lessons.training_pairs(few, replace(recipe, steps=0))) == 200


def test_a_sabotaged_model_is_refused_and_the_turn_ends_and_leaves_nothing_when_it_is_abandoned(
    learn, serving, tmp_path, monkeypatch
):
    def untrained(turn: Turn, *_: object) -> lessons.Done:
        manifest = tiny_checkpoint(turn.checkpoint, seed=7)
        return lessons.Done({}, {"fingerprint": manifest.fingerprint, "steps": 0, "new_categories": []})

    monkeypatch.setattr(lessons, "train", untrained)
    refused = learn()

    assert refused.exit_code == 0
    assert "turn-0001 is over, refused: Recall@10 is not surely better" in refused.output
    assert "| Recall@10, % |" in refused.output
    assert "over, refused" in learn("status").output
    assert not (tmp_path / "turns" / "candidate").exists()
    assert "the next turn begins in 7.0 days" in learn("--every", "7").output

    assert learn("abandon").exit_code == 0
    assert list((tmp_path / "turns").iterdir()) == []
    assert "holds no turn" in learn("status").output


def write(folder: Path, **rows: list[dict[str, Any]]) -> Path:
    for name, of_name in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_name))
    return folder


@pytest.mark.parametrize(
    ("options", "change", "said"),
    [
        ((), {"events": []}, "events.jsonl is empty"),
        (
            ("--recall-at", "3"),
            {"events": topic_events(topic_notes())[:40]},
            "related ones and 30 are needed to judge a model by",
        ),
        (("--from", "2033-01-01"), {}, "an earlier --from is needed"),
        (("--from", "2023-12-31"), {}, "no related pairs to train on"),
        (("--recall-at", "100"), {}, "the pool has 47 notes, so that Recall@100 is 1"),
        (("--set", "stpes=3"), {}, "'stpes=3' is no setting"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line_and_binds_to_nothing(
    learn, data, tmp_path, monkeypatch, options, change, said
):
    told = []
    monkeypatch.setattr(trial, "tell", lambda turn, **how: told.append(summary(turn, **how).steps[0]))
    shutil.copytree(data, tmp_path / "own")
    answer = learn("--data", str(write(tmp_path / "own", **change)), *options)

    assert answer.exit_code == 1
    assert said in answer.output.splitlines()[-1]
    assert not last(tmp_path).steps  # so that other options may be given
    assert [step.state for step in told] == ["runs", "failed"]
    assert said in told[1].says


def test_a_checkpoint_that_is_not_there_is_one_line(learn, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTELLM_CHECKPOINT", str(tmp_path))

    assert "no checkpoint in" in learn().output
    assert list((tmp_path / "turns").iterdir()) == []


MAPS = Calibration(SuggestionMap(-1.0, 0.5, 0.6, 2.0, 1.5), LogitMap(0.3, 0.8), LogitMap(-0.4, 0.5), {"notes": 9})


@pytest.mark.parametrize(
    ("tagged", "sorted_in", "notes", "said", "tags", "categories"),
    [
        (0, 720, 720, "; left out: hashtags, of too few notes; the serving", "not measured", "holds"),
        (10, 0, 240, "left out: 1 held-out notes have text and hashtags, and 0 a category; 50", *["not measured"] * 2),
        (240, 0, 240, "50 of either are needed to calibrate; the serving model's maps stay", "holds", "not measured"),
    ],
)
def test_a_community_learns_with_what_it_has(
    learn, serving, tmp_path, monkeypatch, tagged, sorted_in, notes, said, tags, categories
):
    """Without hashtags, with ten notes that have some, without categories; what cannot be fitted stays as it was."""
    monkeypatch.setattr(lessons, "_LIMIT", 100)
    own = tmp_path / "serving"
    shutil.copytree(serving, own)
    add_calibration(own, MAPS.encode())
    monkeypatch.setenv("NOTELLM_CHECKPOINT", str(own))
    rows = topic_notes(notes)
    for place, row in enumerate(rows):
        row["hashtags"] = row["hashtags"] if place < tagged else []
        row["category"] = row["category"] if place < sorted_in else None
    folder = tmp_path / "own"
    folder.mkdir()
    answer = learn("--data", str(write(folder, notes=rows, events=topic_events(rows, readers=notes * 2 // 3))))

    turn = last(tmp_path)
    assert list(turn.steps) == OFFLINE, answer.output
    shown = learn("status").output
    assert said in shown
    rows = {row["name"]: row for row in turn.found("gate")["rows"]}
    assert (rows["F1 of hashtags"]["says"], rows["right categories"]["says"]) == (tags, categories)
    kept, fitted = scores_of(load_manifest(turn.checkpoint)), turn.found("calibrate").get("errors", {})
    assert kept.suggestions == MAPS.suggestions
    assert (kept.by_category == MAPS.by_category) == ("category" not in fitted)


def test_a_new_category_joins_the_closed_set_and_the_scores_of_the_others_mean_what_they_did(serving, tmp_path):
    rows = topic_notes(640)
    for row in rows[500:]:
        row["category"] = "Gardening" if row["category"] == "Baking" else row["category"]
    for row in rows[600:]:
        row["hashtags"] = [*row["hashtags"], "brandnew"]
    folder = write(tmp_path, notes=rows, events=topic_events(rows, readers=400))
    asked = {"serving": str(serving), "fingerprint": "", "from": None, "test_share": 0.1, "recall_at": 10}
    turn = Turn.begin(tmp_path / "turns", asked | {"set": ["steps=2", "pairs_per_batch=8"]}, None)
    for name, step in {
        "data": lambda: lessons.gather(turn, load_notes(folder), load_events(folder)),
        "train": lambda: lessons.train(turn),
        "calibrate": lambda: lessons.calibrate(turn),
    }.items():
        done = step()
        turn.record(name, 0.0, done.inputs, done.found)

    assert turn.found("train")["new_categories"] == ["Gardening"]
    unseen = turn.found("data")["unseen"]
    assert (unseen["categories"]["most"], unseen["hashtags"]["most"]) == (["Gardening"], ["brandnew"])
    assert 0.1 < unseen["hashtags"]["share"] < 0.33  # some of the newest carry it beside two others
    assert turn.found("calibrate")["calibrated"]
    manifest, backend = load_manifest(turn.checkpoint), open_backend("hf", turn.checkpoint)
    old = [note for note in load_notes(turn.data) if note.category != "Gardening"]
    drafts = partial(predict_all, backend), partial(embed_all, backend)
    evidence = reliability.gather(old, *drafts, holdout=lessons.HOLDOUT, seed=lessons.SEED)
    scores = np.array([scores_of(manifest).category(score) for score in evidence.category_Q])
    assert calibration_error(scores, evidence.named_Q) < 2 * chance_calibration_error(scores)
