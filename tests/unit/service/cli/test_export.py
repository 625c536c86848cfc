"""The command `notellm export`, as a person types it."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer
from support.checkpoint import tiny_checkpoint

from model.exports.note_text import NoteText
from model.inference.hf import HfBackend
from model.note import Note
from service.cli.export import FORMATS, export


def test_an_export_answers_as_the_checkpoint_does(tmp_path: Path):
    manifest = tiny_checkpoint(tmp_path / "checkpoint")
    out = tmp_path / "export"
    answer = CliRunner().invoke(
        export, [str(tmp_path / "checkpoint"), "--format", "sentence-transformers", "--out", str(out)]
    )

    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith(f"model {manifest.fingerprint} in {out}")
    backend = HfBackend.open(tmp_path / "checkpoint")
    ours = backend.embed(backend.tokenize([Note("n", "Night train", "Bring socks.", ("travel",))]))
    theirs = SentenceTransformer(str(out)).encode([NoteText(out)("Night train", "Bring socks.", ["travel"])])
    assert np.allclose(ours, theirs, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and one whose head is gone."""
    found = tmp_path_factory.mktemp("checkpoints")
    tiny_checkpoint(found / "good")
    shutil.copytree(found / "good", found / "broken")
    (found / "broken" / "head.safetensors").unlink()
    return found


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["{folder}/nowhere", "--format", "sentence-transformers", "--out", "{folder}/out"], "no checkpoint in"),
        (["{folder}/good", "--format", "sentence-transformers", "--out", "{folder}/good"], "choose another folder"),
        (
            ["{folder}/broken", "--format", "sentence-transformers", "--out", "{folder}/out"],
            "head.safetensors is missing",
        ),
        (["{folder}/good", "--format", "onnx", "--out", "{folder}/out"], "'onnx' is not"),
        (["{folder}/good", "--out", "{folder}/out"], "Missing option '--format'"),
        (["--out", "{folder}/out", "--format", "vllm", "{folder}/nowhere"], "no checkpoint in"),
        (["related"], "Missing option '--out'"),
        (["related", "--out", "{folder}/lists.parquet", "--k", "101"], "101 is not in the range 1<=x<=100"),
        (["related", "--out", "{folder}/lists.parquet"], "NOTELLM_REDIS_URL is not set, and no `notellm serve` runs"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, args: list[str], said: str):
    answer = CliRunner().invoke(export, [argument.format(folder=folder) for argument in args])

    assert answer.exit_code != 0
    assert said in answer.output
    assert "Traceback" not in answer.output
    assert not (folder / "out" / "modules.json").exists()


def test_help_teaches_with_examples_and_names_every_format():
    answer = CliRunner().invoke(export, ["checkpoint", "--help"])

    assert "Example:" in answer.output
    assert all(f"  {name}  " in answer.output for name in FORMATS)


def test_help_imports_nothing_heavy():
    heavy = ("pyarrow", "numpy", "torch", "transformers", "sentence_transformers")
    script = f"import sys, service.cli.export, service.cli.embed; print([n for n in {heavy} if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"
