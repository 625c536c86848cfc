"""`notellm embed --backend vllm`: the first load of a community, with the vectors that transformers gives."""

import subprocess
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from support.service import NOTELLM

from model.data.samples.generate import sample_notes
from model.inference.hf import HfBackend
from service.settings import MINI


@pytest.mark.timeout(600)
def test_the_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    notes = sample_notes()[:40]
    rows = [
        {"note_id": note.id, "title": note.title, "content": note.content, "hashtags": note.hashtags} for note in notes
    ]
    (tmp_path / "notes.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    command = ["embed", "--in", tmp_path / "notes.jsonl", "--out", tmp_path / "vectors", "--checkpoint", MINI]
    command += ["--backend", "vllm", "--serving-dir", tmp_path / "serving", "--notes-per-part", "25"]
    subprocess.run([*NOTELLM, *map(str, command)], check=True)

    found = pq.read_table(tmp_path / "vectors")
    assert found["note_id"].to_pylist() == [note.id for note in notes]
    backend = HfBackend.open(MINI)
    expected_ND = backend.embed(backend.tokenize(notes))
    cosines_N = (np.array(found["vector"].to_pylist()) * expected_ND).sum(axis=1)
    assert cosines_N.min() > 0.999
