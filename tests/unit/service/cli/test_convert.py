"""The command `notellm convert`, as a person types it."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from model.data.events import load_events
from model.data.notes import load_notes
from model.data.readers import READERS
from service.cli.data import FORMATS, convert


@pytest.fixture
def mind(tmp_path: Path) -> Path:
    folder = tmp_path / "MINDsmall_train"
    folder.mkdir()
    (folder / "news.tsv").write_text("N1\tsports\trowing\tEights\tCalm.\thttps://a.example/1\t[]\t[]\n")
    (folder / "behaviors.tsv").write_text("1\tU1\t11/15/2019 8:00:00 AM\t\tN1-1 N2-0\n")
    return tmp_path


def test_every_reader_can_be_asked_for():
    assert sorted(READERS) == sorted(FORMATS)


def test_the_command_says_what_it_wrote_and_the_files_read_back(mind):
    answer = CliRunner().invoke(convert, ["mind", str(mind), "--out", str(mind / "data")])

    assert (answer.exit_code, answer.output) == (0, f"1 notes and 2 events in {mind / 'data'}\n")
    assert [note.title for note in load_notes(mind / "data")] == ["Eights"]
    assert len(load_events(mind / "data")) == 2


def test_views_are_left_out_when_asked(mind):
    CliRunner().invoke(convert, ["mind", str(mind), "--out", str(mind / "data"), "--clicks-only"])

    assert load_events(mind / "data").clicked.tolist() == [True]


def test_another_conversion_into_the_same_folder_takes_its_place(mind):
    for _ in range(2):
        answer = CliRunner().invoke(convert, ["mind", str(mind), "--out", str(mind / "data")])

    assert answer.exit_code == 0
    assert sorted(path.name for path in (mind / "data").iterdir()) == ["events.parquet", "notes.parquet"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["netflix", "{source}"], "'netflix' is not one of 'amazon-reviews', 'mind', 'qilin'"),
        (["mind", "{source}/nowhere"], "does not exist"),
        (["qilin", "{source}"], "no .parquet file in this folder"),
        (["amazon-reviews", "{source}"], "no .jsonl and no .jsonl.gz file"),
    ],
)
def test_a_mistake_is_one_line(mind, args, said):
    filled = [argument.format(source=mind) for argument in args]

    answer = CliRunner().invoke(convert, [*filled, "--out", str(mind / "data")])

    assert answer.exit_code != 0
    assert said in answer.output
    assert "Traceback" not in answer.output


def test_help_teaches_with_examples_and_names_every_format():
    answer = CliRunner().invoke(convert, ["--help"])

    assert "Examples:" in answer.output
    assert all(f"notellm convert {name} " in answer.output for name in FORMATS)


def test_help_imports_nothing_heavy():
    script = "import sys, service.cli.data; print([n for n in ('pyarrow', 'numpy', 'torch') if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"
