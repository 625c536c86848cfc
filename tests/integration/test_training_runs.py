"""Training as it is started from a terminal: killed at any moment, and by torchrun on two processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.service import NOTELLM, until
from support.tiny import NOTES, tiny_base

from model.network.base_models import special_ids
from model.network.checkpoint import load_manifest, save_tokenizer
from model.network.notellm import add_embedding_token

STEPS = 30
LIMIT_S = 240
PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6"), ("n3", "n6")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Notes, pairs and a tiny base model, as files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "note_id": note.id,
            "title": note.title,
            "content": note.content,
            "hashtags": list(note.hashtags),
            "category": note.category,
            "exposure": note.exposure,
        }
        for note in NOTES
    ]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"note_id": [a for a, _ in PAIRS], "related_id": [b for _, b in PAIRS]}
    table = pa.table({**columns, "score": [1.0] * len(PAIRS), "users": [2] * len(PAIRS)})
    pq.write_table(table, folder / "pairs.parquet")
    base = tiny_base("llama")
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    base.backbone.save_pretrained(folder / "base")
    save_tokenizer(folder / "base", base.tokenizer, special)
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    settings = ("pairs_per_batch=4", "dim=16", "learning_rate=0.0005", "compute_dtype=float32", "saved_dtype=float32")
    return [
        *["train", str(data), "--pairs", str(data / "pairs.parquet"), "--out", str(out), "--recipe", "paper"],
        *["--base-model", str(data / "base"), "--steps", str(STEPS), "--save-every", "4"],
        *[word for setting in settings for word in ("--set", setting)],
        *more,
    ]


def kill_when_saved(arguments: list[str], run: Path, wait_s: float = 0.0) -> None:
    """Start a run and kill it some time after it has saved a state that was not there before."""
    before = set(run.glob("state-*"))
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    until(lambda: bool(set(run.glob("state-*")) - before), LIMIT_S)
    time.sleep(wait_s)
    # Torchrun would start its workers again, and they outlive it.
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed before its end"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([*NOTELLM, *command(data, out)], check=True, capture_output=True, timeout=LIMIT_S)
    return out


def test_a_run_that_is_killed_at_random_ends_where_an_undisturbed_one_does(data, undisturbed, tmp_path):
    rng = random.Random(0)
    for _ in range(2):
        kill_when_saved([*NOTELLM, *command(data, tmp_path)], tmp_path / "run", rng.random() * 0.3)
    subprocess.run([*NOTELLM, *command(data, tmp_path)], check=True, capture_output=True, timeout=LIMIT_S)
    found, expected = load_manifest(tmp_path), load_manifest(undisturbed)
    assert found.trained_on == expected.trained_on
    assert found.fingerprint == expected.fingerprint


def test_two_processes_that_were_killed_end_where_one_process_does(data, undisturbed, tmp_path):
    """FSDP2 with the paper's recipe; what was saved by two processes of FSDP2, two of DDP go on with."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    arguments = [*torchrun, "-m", "service.cli.main", *command(data, tmp_path)]
    kill_when_saved([*arguments, "--strategy", "fsdp"], tmp_path / "run")
    more = ["--strategy", "ddp", "--set", "recompute=true", "--set", "chunk_notes=2"]
    subprocess.run([*arguments, *more], check=True, capture_output=True, timeout=LIMIT_S)

    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path, undisturbed))
    base = load_file(data / "base" / "model.safetensors")
    moved = sum(float(((expected[name] - base[name]) ** 2).sum()) for name in base)
    missed = sum(float(((expected[name] - found[name]) ** 2).sum()) for name in base)
    assert missed**0.5 < 0.01 * moved**0.5
    assert not list((tmp_path / "run").glob("*state-*"))
