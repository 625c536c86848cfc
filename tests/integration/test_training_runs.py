"""Training as it is started from a terminal: killed at any moment, and by torchrun on two processes."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.service import NOTELLM, until
from support.tiny import NOTES, tiny_base

from model.network.checkpoint import load_manifest, save_tokenizer, special_ids
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
        *["train", str(data), "--pairs", str(data / "pairs.parquet"), "--out", str(out)],
        *["--base-model", str(data / "base"), "--steps", str(STEPS), "--save-every", "4"],
        *[word for setting in settings for word in ("--set", setting)],
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([*NOTELLM, *command(data, out)], check=True, capture_output=True, timeout=LIMIT_S)
    return load_manifest(out)


def test_a_run_that_is_killed_at_random_ends_where_an_undisturbed_one_does(data, undisturbed, tmp_path):
    state = tmp_path / "run" / "training.safetensors"
    rng = random.Random(0)
    for _ in range(2):
        # The state of the run before may be there already: its change of time tells that this one saved.
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen([*NOTELLM, *command(data, tmp_path)], stderr=subprocess.DEVNULL)
        until(lambda before=before: state.exists() and state.stat().st_mtime_ns != before, LIMIT_S)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was killed before its end"
    subprocess.run([*NOTELLM, *command(data, tmp_path)], check=True, capture_output=True, timeout=LIMIT_S)
    found = load_manifest(tmp_path)
    assert found.trained_on == undisturbed.trained_on
    assert found.fingerprint == undisturbed.fingerprint


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_end_where_one_does(data, undisturbed, tmp_path, strategy):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    more = ("--strategy", strategy, "--set", "recompute=true", "--set", "chunk_notes=2")
    arguments = [*torchrun, "-m", "service.cli.main", *command(data, tmp_path, *more)]
    subprocess.run(arguments, check=True, capture_output=True, timeout=LIMIT_S)
    found = load_manifest(tmp_path).trained_on["last_losses"]
    assert found == pytest.approx(undisturbed.trained_on["last_losses"], abs=2e-3)
