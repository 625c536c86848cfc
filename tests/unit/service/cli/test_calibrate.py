"""The command `notellm calibrate`, as a person types it."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.checkpoint import tiny_checkpoint

from model.inference.calibration import scores_of
from model.network.checkpoint import load_manifest
from model.text.suggestions import Candidate
from service.cli.main import cli

PLACES = ["harbor", "castle", "market", "museum"]


def calibrate(checkpoint: Path, data: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["calibrate", str(checkpoint), "--data", str(data), "--holdout", "0.5", *more])


def written(folder: Path, count: int) -> Path:
    folder.mkdir()
    notes = [
        {"note_id": f"n{number}", "title": PLACES[number % 4], "hashtags": [PLACES[number % 4]], "category": "Travel"}
        for number in range(count)
    ]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


def test_it_calibrates_and_says_by_how_much(checkpoint, tmp_path):
    """The model's weights are random; but notes of one place have one vector, so that neighbors know the hashtag."""
    before = load_manifest(checkpoint)

    answer = calibrate(checkpoint, written(tmp_path / "data", 160))

    assert answer.exit_code == 0, answer.output
    found = re.search(r"calibrated model (\w+): .* hashtags (\S+), now (\S+); .*; (\S+)\n", answer.output)
    assert found is not None
    assert found[1] == before.fingerprint
    assert float(found[3]) < float(found[2])
    assert found[4] == str(checkpoint / "reliability.md")
    assert (checkpoint / "reliability.svg").is_file()
    scores = scores_of(load_manifest(checkpoint))
    assert scores.suggestion(Candidate("harbor", "harbor", None, 1.0)) > 0.8
    assert scores.suggestion(Candidate("harbor", "harbor", None, 0.0)) < 0.2


def test_the_report_can_be_written_elsewhere(checkpoint, tmp_path):
    answer = calibrate(checkpoint, written(tmp_path / "data", 160), "--out", str(tmp_path / "report"), "--limit", "60")

    assert answer.exit_code == 0, answer.output
    assert " 60 held-out notes" in (tmp_path / "report" / "reliability.md").read_text()


@pytest.mark.parametrize(
    ("notes", "name", "more", "message"),
    [
        (
            20,
            "",
            (),
            r"Error: \d+ held-out notes have text and .*; 50 of either are needed to calibrate: .*\n",
        ),
        (160, "", ("--holdout", "1"), r"Error: every note is held out: .*\n"),
        (160, "elsewhere", (), r"Error: no checkpoint in .*elsewhere: notellm.json is missing\n"),
    ],
)
def test_a_mistake_is_one_line(checkpoint, tmp_path, notes, name, more, message):
    answer = calibrate(tmp_path / name if name else checkpoint, written(tmp_path / "data", notes), *more)

    assert answer.exit_code == 1
    assert re.fullmatch(message, answer.output), answer.output


def test_evaluate_says_that_scores_are_calibrated(checkpoint, tmp_path):
    data = written(tmp_path / "data", 160)
    calibrate(checkpoint, data)

    answer = CliRunner().invoke(cli, ["evaluate", str(data), "--checkpoint", str(checkpoint), "--holdout", "0.5"])

    assert answer.exit_code == 0, answer.output
    assert "NoteLLM + neighbors" in answer.output
    last = answer.output.strip().split("\n")[-1]
    assert re.match(r"Scores are calibrated on \d+ held-out notes, .* hashtags \S+ \(\S+ before\)", last)
    assert f"({checkpoint / 'reliability.md'})" in last
