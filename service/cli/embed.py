"""The command `notellm embed`: vectors of many notes, without a running service."""

from pathlib import Path
from typing import Any

import click

from service.cli.common import FOLDER, echo, mistakes, open_model, runtime_options


@click.command()
@click.option(
    "--in", "source", type=click.Path(path_type=Path), required=True,
    help="A .parquet or .jsonl file of notes, or a folder with notes.parquet or notes.jsonl.",
)  # fmt: skip
@click.option("--out", type=FOLDER, required=True, help="Folder of the vectors.")
@click.option("--checkpoint", type=FOLDER, required=True, help="The model to embed with.")
@runtime_options
@click.option(
    "--notes-per-part", type=click.IntRange(min=1), default=10_000, show_default=True,
    help="Notes in memory at once, and what a crash can cost at most.",
)  # fmt: skip
def embed(
    source: Path,
    out: Path,
    checkpoint: Path,
    notes_per_part: int,
    **runtime: Any,
) -> None:
    """Embed the notes of a file without a running service: the first load of millions of notes.

    Writes OUT/part-00000.parquet and so on, in the order of the notes: note_id and one unit vector (128 numbers,
    float32) a note; the model's fingerprint stands in every file's metadata. Whatever ends a run, kill -9
    included, the same command goes on where it was: parts that are finished are not done again. A folder
    that was begun with another checkpoint or another input is refused.

    \b
    Examples:
      notellm embed --in notes.parquet --out vectors --checkpoint ./checkpoint
      notellm embed --in ./data --out vectors --checkpoint ./checkpoint --backend vllm

    \b
    Read them back as one table:
      python -c 'import pyarrow.parquet as pq; print(pq.read_table("vectors").num_rows)'
    """
    with mistakes():
        from model.inference import golden
        from model.inference.abstention import AbstainingBackend
        from model.inference.bulk import begin, embed_missing
        from model.network.checkpoint import load_manifest, prompt_builder

        manifest = load_manifest(checkpoint)
        load = begin(source, out, manifest.fingerprint, notes_per_part)
        finished = len(load.finished())
        if finished < load.parts:
            backend = open_model(checkpoint, runtime)
            if manifest.golden is not None:
                golden.check(backend, manifest)
            embed_missing(load, AbstainingBackend(backend, prompt_builder(checkpoint, manifest).reads))
    before = f", {finished} of them finished before" if finished else ""
    echo(f"{load.notes} vectors of model {load.fingerprint} in {load.parts} parts{before}, in {out}")
