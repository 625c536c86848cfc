"""What happens to processes and disks while snapshots are written and lie there.

INDEX_KILLS=200 and INDEX_DAMAGES=2000 try as many as a release should.
"""

import json
import logging
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.index import neighbors

from indexer.index import VectorIndex
from indexer.snapshot import Snapshots
from indexer.types import Change

KILLS = int(os.environ.get("INDEX_KILLS", "30"))
DAMAGES = int(os.environ.get("INDEX_DAMAGES", "200"))
DIM = 8
ROWS = 12_000
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)

# One process loads FAISS once, and forks for every life: a child saves until it is killed, its parent then loads.
# Neither searches: a fork after a search with OpenMP would hang.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from indexer.snapshot import Snapshots

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)
newest, unloadable, backwards = 0, 0, 0
for _ in range(kills):
    child = os.fork()
    if not child:
        snapshots = Snapshots(folder, "m")
        index, cursor = snapshots.load()
        number = int(cursor)
        base = index.contents()
        while True:
            number += 1
            # Every other one writes its base anew, the others link it.
            if number % 2:
                snapshots = Snapshots(folder, "m")
            snapshots.save(base, str(number))
    time.sleep(random.uniform(0.01, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = Snapshots(folder, "m").load()
    if loaded is None or len(loaded[0]) != 12000:
        unloadable += 1
    elif int(loaded[1]) < newest:
        backwards += 1
    else:
        newest = int(loaded[1])
print(json.dumps({"newest": newest, "unloadable": unloadable, "backwards": backwards}))
"""


@pytest.fixture(scope="module")
def index() -> VectorIndex:
    """On an IVF base, with a delta and a tombstone; tests must not change it."""
    index = VectorIndex(DIM, "m")
    rows = [Change("0-0", str(row), 1, "m", vector) for row, vector in enumerate(VECTORS)]
    index.apply(rows[:-10])
    index.compact()
    index.apply([*rows[-10:], Change("0-1", "gone", 1, "m", None)])
    return index


def test_kill_9_while_snapshots_are_written_leaves_one_that_loads_and_none_older_than_before(index, tmp_path):
    Snapshots(tmp_path, "m").save(index.contents(), "1")

    command = [sys.executable, "-c", KILLER, str(tmp_path), str(KILLS)]
    root = str(Path(__file__).parents[3])
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    ).stdout

    result = json.loads(output.splitlines()[-1])
    assert (result["unloadable"], result["backwards"]) == (0, 0)
    assert result["newest"] > 1


def damaged(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 2:  # a page of zeros, as a file system gives back what it lost; or, where it was zero, of ones
            page = data[place : place + 512]
            return data[:place] + (b"\xff" if not any(page) else b"\0") * len(page) + data[place + 512 :]
        case _:
            return data[:place] + rng.randbytes(min(16, len(data) - place) or 1) + data[place:]


def test_every_damaged_file_is_noticed_before_anything_is_served_from_it(index, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    Snapshots(tmp_path, "m").save(index.contents(), "1")
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    files = sorted(path for path in folder.iterdir())
    rng = random.Random(0)

    noticed = 0
    for number in range(DAMAGES):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        noticed += Snapshots(tmp_path, "m").load() is None
        path.write_bytes(whole)

    assert noticed == DAMAGES
    assert len(files) == 6
    assert Snapshots(tmp_path, "m").load()[1] == "1"


@pytest.mark.parametrize("room", [0, 1000, 50_000, 200_000])
def test_on_a_full_disk_the_older_snapshot_stays_and_the_next_save_works(index, tmp_path, room):
    """The limit on the size of a file stands for the disk: writing fails at some file, in the midst of it."""
    snapshots = Snapshots(tmp_path, "m")
    snapshots.save(VectorIndex(DIM, "m").contents(), "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            snapshots.save(index.contents(), "2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert Snapshots(tmp_path, "m").load()[1] == "1"
    snapshots.save(index.contents(), "3")
    loaded, cursor = Snapshots(tmp_path, "m").load()
    assert cursor == "3"
    assert neighbors(loaded, VECTORS[:3], 5) == neighbors(index, VECTORS[:3], 5)
