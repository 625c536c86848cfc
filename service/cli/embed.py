"""The command `notellm embed`: vectors of many notes, without a running service."""

from pathlib import Path
from typing import Any

import click

from service.cli.common import FOLDER, echo, mistakes, open_model, runtime_options


def _shard(_context: click.Context, _option: click.Parameter, given: str) -> tuple[int, int]:
    """Number and count of the shards of I/N."""
    number, _, shards = given.partition("/")
    if not (number.isdecimal() and shards.isdecimal() and int(number) < int(shards)):
        raise click.BadParameter("give I/N with 0 <= I < N, such as 0/4, 1/4, 2/4 and 3/4 for four processes")
    return int(number), int(shards)


@click.command()
@click.option(
    "--in", "source", type=click.Path(path_type=Path), required=True,
    help="A .parquet or .jsonl file of notes, or a folder with notes.parquet or notes.jsonl.",
)  # fmt: skip
@click.option("--out", type=FOLDER, required=True, help="Folder of the vectors.")
@click.option("--checkpoint", type=FOLDER, required=True, help="The model to embed with.")
@runtime_options
@click.option(
    "--shard",
    metavar="I/N",
    callback=_shard,
    default="0/1",
    show_default=True,
    help="Embed the I-th of N shards, counted from 0: N processes share the work, on one machine or many.",
)
@click.option(
    "--notes-per-part", type=click.IntRange(min=1), default=10_000, show_default=True,
    help="Notes in memory at once, and what a crash can cost at most.",
)  # fmt: skip
def embed(
    source: Path,
    out: Path,
    checkpoint: Path,
    shard: tuple[int, int],
    notes_per_part: int,
    **runtime: Any,
) -> None:
    """Embed the notes of a file without a running service: the first load of millions of notes.

    Writes OUT/part-00000.parquet and so on, in the order of the notes: note_id and one unit vector (128 numbers,
    float32) a note; the model's fingerprint stands in every file's metadata. Whatever ends a run, kill -9
    included, the same command goes on where it was: parts that are finished are not done again. A folder
    that was begun with another checkpoint or another input is refused. With --shard, several processes write
    into one folder; `notellm load --vectors` refuses it until all parts are there.

    \b
    Examples:
      notellm embed --in notes.parquet --out vectors --checkpoint ./checkpoint
      notellm embed --in ./data --out vectors --checkpoint ./checkpoint --backend vllm
      notellm embed --in ./data --out vectors --checkpoint ./checkpoint --shard 3/8

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
        parts = load.shard(*shard)
        finished = len(load.finished().intersection(parts))
        if finished < len(parts):
            backend = open_model(checkpoint, runtime)
            if manifest.golden is not None:
                golden.check(backend, manifest)
            embed_missing(load, AbstainingBackend(backend, prompt_builder(checkpoint, manifest).reads), parts)
    before = f", {finished} of them finished before" if finished else ""
    vectors = sum(map(load.size, parts))
    echo(f"{vectors} vectors of model {load.fingerprint} in {len(parts)} parts{before}, in {out}")
    missing = load.parts - len(load.finished())
    if missing:
        echo(f"{missing} of the {load.parts} parts are those of other shards, and missing yet")
