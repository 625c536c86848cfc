"""The command `notellm embed`, as a person types it and as it may end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support.checkpoint import tiny_checkpoint

from model.data.notes import load_notes
from model.inference.hf import HfBackend
from model.inference.many import embed_all
from service.cli.embed import embed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


def write_notes(path: Path, count: int) -> Path:
    rows = [{"note_id": f"n{number}", "title": f"Day {number}", "content": "by the sea"} for number in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def notellm(*args: object) -> subprocess.Popen[str]:
    """The real command, in an environment without settings."""
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli.main", "embed", *map(str, args)],
        env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_and_given_again_it_finishes_the_rest(checkpoint: Path, tmp_path: Path):
    source = write_notes(tmp_path / "notes.jsonl", 400)
    out = tmp_path / "vectors"
    args = ("--in", source, "--out", out, "--checkpoint", checkpoint, "--notes-per-part", 2)
    first = notellm(*args)
    while first.poll() is None and not (out / "part-00002.parquet").exists():
        time.sleep(0.001)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert first.returncode == -signal.SIGKILL
    assert 3 <= len(before) < 200

    second = notellm(*args)
    said, _ = second.communicate()

    assert second.returncode == 0
    assert f"in 200 parts, {len(before)} of them finished before, in {out}" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = pq.read_table(out)
    notes = load_notes(source)
    assert table.column("note_id").to_pylist() == [note.id for note in notes]
    vectors = np.stack(table.column("vector").to_numpy())
    assert np.allclose(vectors, embed_all(HfBackend.open(checkpoint), notes), atol=1e-5)
    assert not list(out.glob(".*"))


def test_a_folder_of_notes_is_read_and_a_load_that_is_done_says_so(checkpoint: Path, tmp_path: Path):
    write_notes(tmp_path / "notes.jsonl", 6)
    args = ["--in", str(tmp_path), "--out", str(tmp_path / "vectors"), "--checkpoint", str(checkpoint)]
    first = CliRunner().invoke(embed, args)
    second = CliRunner().invoke(embed, args)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "6 vectors of model" in first.output
    assert "in 1 parts, in" in first.output
    assert "in 1 parts, 1 of them finished before" in second.output


def test_shards_share_a_folder_and_say_what_is_missing(checkpoint: Path, tmp_path: Path):
    source = write_notes(tmp_path / "notes.jsonl", 50)
    args = ["--in", source, "--out", tmp_path / "vectors", "--checkpoint", checkpoint, "--notes-per-part", 10]

    first = CliRunner().invoke(embed, list(map(str, [*args, "--shard", "1/2"])))
    second = CliRunner().invoke(embed, list(map(str, [*args, "--shard", "0/2"])))

    assert "20 vectors of model" in first.output
    assert "in 2 parts, in" in first.output
    assert "3 of the 5 parts are those of other shards, and missing yet" in first.output
    assert "30 vectors of model" in second.output
    assert "missing" not in second.output
    assert pq.read_table(tmp_path / "vectors").column("note_id").to_pylist() == [f"n{number}" for number in range(50)]


@pytest.fixture(scope="module")
def begun(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with notes, their vectors, and other things that a person may name by mistake."""
    folder = tmp_path_factory.mktemp("begun")
    write_notes(folder / "notes.jsonl", 6)
    write_notes(folder / "other.jsonl", 7)
    (folder / "bad.jsonl").write_text('{"title": "no id"}')
    tiny_checkpoint(folder / "second", seed=1)
    args = ["--in", folder / "notes.jsonl", "--out", folder / "vectors", "--checkpoint", checkpoint]
    assert CliRunner().invoke(embed, list(map(str, args))).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--in": "{begun}/nowhere.jsonl"}, "no such file"),
        ({"--in": "{begun}/bad.jsonl", "--out": "{begun}/new"}, "bad.jsonl line 1: note_id is missing"),
        ({"--in": "{begun}/other.jsonl"}, "holds vectors of another input than other.jsonl is now: choose another"),
        ({"--checkpoint": "{begun}"}, "no checkpoint in"),
        ({"--checkpoint": "{begun}/second"}, "holds vectors of model"),
        ({"--notes-per-part": "7"}, "parts of 10000 notes, not of 7"),
        ({"--notes-per-part": "0"}, "0 is not in the range"),
        ({"--shard": "4/4"}, "give I/N with 0 <= I < N"),
        ({"--shard": "1"}, "give I/N with 0 <= I < N"),
        ({"--backend": "onnx"}, "'onnx' is not one of 'auto', 'hf', 'openvino', 'vllm'"),
    ],
)
def test_a_mistake_is_one_line(checkpoint: Path, begun: Path, changed: dict[str, str], said: str):
    given = {"--in": "{begun}/notes.jsonl", "--out": "{begun}/vectors", "--checkpoint": str(checkpoint), **changed}
    args = [word.format(begun=begun) for option in given.items() for word in option]

    answer = CliRunner().invoke(embed, args)

    assert answer.exit_code != 0
    [line] = [line for line in answer.output.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert "Traceback" not in answer.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "ray", "--shard", "0/2"], "--shard is of --engine local"),
        (["--actors", "2"], "--actors is of --engine ray"),
    ],
)
def test_an_option_of_the_other_engine_is_refused(options: list[str], said: str):
    answer = CliRunner().invoke(embed, ["--in", "notes.jsonl", "--out", "vectors", "--checkpoint", "m", *options])

    assert answer.exit_code == 2
    assert said in answer.output


def test_choices_and_defaults_are_the_models():
    """They are repeated in the command, because importing them would load numpy for `--help`."""
    from model.inference.bulk.load import NOTES_PER_PART
    from model.inference.open import BACKENDS, Runtime

    options = {found.name: found for found in embed.params}
    runtime = Runtime()
    assert tuple(options["backend"].type.choices) == BACKENDS
    assert options["notes_per_part"].default == NOTES_PER_PART
    for name in ("dtype", "tensor_parallel", "serving_dir"):
        assert options[name].default == getattr(runtime, name)


def test_help_teaches_with_examples():
    answer = CliRunner().invoke(embed, ["--help"])

    assert "notellm embed --in notes.parquet --out vectors" in answer.output
    assert "goes on where it was" in answer.output
