"""A file of notes becomes a folder of vectors on Ray, whoever is killed in between."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from model.data.notes import load_notes
from model.inference.bulk.load import BulkError, begin
from model.inference.bulk.ray_engine import Embedder, embed_on_ray
from model.inference.hashing import HashingBackend
from model.inference.many import embed_all
from model.note import Note

NOTES, A_PART = 200, 2
CLUSTER = """
import ray, sys
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
# Two actors. The first that comes to its fifth part dies, as if by the kernel, and once: its successor finds the mark.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from model.inference.bulk.load import begin
from model.inference.bulk.ray_engine import embed_on_ray
from model.inference.hashing import HashingBackend

source, out, mark, notes_per_part = sys.argv[1:]

class Mortal(HashingBackend):
    parts = 0
    def tokenize(self, notes):
        time.sleep(0.02)
        self.parts += 1
        if self.parts == 5 and not os.path.exists(mark):
            open(mark, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().tokenize(notes)

embed_on_ray(begin(Path(source), Path(out), "hashing-a", int(notes_per_part)), Mortal, actors=2)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """That of a driver, with the address of a cluster. The path of a socket is short, and pytest's folders are not."""
    home = tmp_path_factory.mktemp("home")
    paths = os.pathsep.join(filter(None, sys.path))
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    own["RAY_AUTH_MODE"] = "token"  # as has the local cluster that Ray would start for a driver
    own["RAY_worker_niceness"] = "0"  # 15 without it
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-c", CLUSTER, folder]
        with subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
            assert cluster.stdout is not None
            yield {**own, "RAY_ADDRESS": cluster.stdout.readline().strip()}
            cluster.communicate()


def test_whoever_is_killed_every_note_has_one_vector_in_its_place(tmp_path: Path, environment: dict[str, str]):
    source, out, mark = tmp_path / "notes.jsonl", tmp_path / "vectors", tmp_path / "mark"
    source.write_bytes(b"\n".join(orjson.dumps({"note_id": f"n{n}", "title": f"Day {n}"}) for n in range(NOTES)))
    load = begin(source, out, "hashing-a", A_PART)
    command = [sys.executable, "-c", DRIVER, source, out, mark, str(A_PART)]

    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while first.poll() is None and not (mark.exists() and len(load.finished()) > load.parts // 3):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert load.parts // 3 < len(before) < load.parts

    mark.unlink()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert second.returncode == 0, second.stderr
    assert mark.exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    notes, table = load_notes(source), pq.read_table(out)
    assert table["note_id"].to_pylist() == [note.id for note in notes]
    assert np.array_equal(np.stack(table["vector"].to_numpy()), embed_all(HashingBackend(), notes))
    assert not list(out.glob(".*"))


def test_a_machine_with_another_model_is_told_apart():
    actor = Embedder(lambda: HashingBackend("hashing-b"), "hashing-a")

    with pytest.raises(ValueError, match="has model hashing-b, and this machine another"):
        actor.embed([Note("n1", "a quiet bakery")])


def test_an_actor_opens_its_backend_once():
    opened: list[HashingBackend] = []
    actor = Embedder(lambda: opened.append(HashingBackend()) or opened[0], "hashing-a")
    notes = [Note("n1", "a quiet bakery"), Note("n2", "a night train")]

    assert np.array_equal(np.vstack([actor.embed(notes), actor.embed(notes[:1])])[::2], [actor.embed(notes)[0]] * 2)
    assert len(opened) == 1


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_is_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str):
    (tmp_path / "notes.jsonl").write_text('{"note_id": "n1", "title": "a quiet bakery"}')
    monkeypatch.setenv("RAY_ADDRESS", address)

    with pytest.raises(BulkError, match="no cluster of Ray answers where RAY_ADDRESS says"):
        embed_on_ray(begin(tmp_path / "notes.jsonl", tmp_path / "vectors", "hashing-a"), HashingBackend)
