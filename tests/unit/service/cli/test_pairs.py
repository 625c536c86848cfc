"""The command `notellm pairs`, as a person types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from model.data.notes import load_notes
from model.data.pairs import load_pairs
from service.cli.data import pairs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve notes, of which each reader clicks two that came one after the other."""
    folder = tmp_path / "data"
    folder.mkdir()
    notes = [{"note_id": f"n{number:02}", "title": "tea", "hashtags": ["tea"]} for number in range(12)]
    events = [
        {"user_id": f"u{first}", "note_id": f"n{first + step:02}", "ts": 10 * first + step, "event": "click"}
        for first in range(11)
        for step in (0, 1)
    ]
    for name, rows in (("notes", notes), ("events", events)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(data: Path, *options: str) -> tuple[int, str]:
    answer = CliRunner().invoke(pairs, [str(data), "--out", str(data / "pairs.parquet"), *options])
    return answer.exit_code, answer.output


def test_a_split_by_time_writes_what_training_and_evaluation_need(data):
    status, said = run(data, "--test-share", "0.5", "--test", str(data / "test"))

    assert status == 0, said
    assert said.startswith(f"5 pairs of 6 notes first seen from 51 on, in {data / 'test'}\n5 pairs of 5 notes in ")
    assert {note.id for note in load_notes(data / "test")} == {f"n{number:02}" for number in range(6, 12)}
    assert load_notes(data / "test")[0].hashtags == ("tea",)
    assert {name for pair in load_pairs(data / "test").ends() for name in pair} == {
        note.id for note in load_notes(data / "test")
    }
    assert max(max(pair) for pair in load_pairs(data / "pairs.parquet").ends()) == "n05"


def test_the_bounds_of_eq_1_are_options(data):
    assert run(data, "--holdout", "0")[1].startswith("11 pairs ")
    assert run(data, "--holdout", "0", "--lower", "0.6")[1].startswith("0 pairs ")
    assert run(data, "--holdout", "0", "--upper", "0.4")[1].startswith("0 pairs ")
    assert run(data, "--holdout", "0", "--since", "50", "--until", "71")[1].startswith("2 pairs ")
    assert run(data, "--holdout", "0", "--unordered", "--top", "1")[1].startswith("12 pairs ")
    assert run(data, "--holdout", "0", "--max-clicks", "1")[1] == (
        f"0 pairs of 0 notes in {data / 'pairs.parquet'}\n11 readers clicked more than 1 notes and count for nothing\n"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--test-share", "0.5"], "takes --test"),
        (["--test", "t"], "takes --test"),
        (["--test", "t", "--test-share", "0.5", "--test-from", "3"], "one of --test-from and --test-share"),
        (["--test", "t", "--test-from", "3", "--holdout", "0.1"], "leave them out with --test"),
        (["--test", "t", "--test-from", "999"], "no note was first seen from 999"),
        (["--memory", "much"], "no size such as 4GB"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(data, options, reason):
    status, said = run(data, *options)
    assert status != 0
    assert reason in said
    assert "Traceback" not in said
