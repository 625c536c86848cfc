"""The command `notellm embed`: vectors of many notes, without a running service."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.common import FOLDER, echo, mistakes, open_model, runtime_options, was_given

if TYPE_CHECKING:
    from model.backend import Backend


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
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="What embeds: this process, or actors of Ray, on the cluster that RAY_ADDRESS names or on this machine.",
)  # fmt: skip
@click.option(
    "--actors", type=click.IntRange(min=1),
    help="Actors of Ray, each with the model; by default one for every GPU (every --tensor-parallel GPUs), or one.",
)  # fmt: skip
@click.option(
    "--notes-per-part", type=click.IntRange(min=1), default=10_000, show_default=True,
    help="Notes in memory at once, and what a crash can cost at most.",
)  # fmt: skip
def embed(
    source: Path,
    out: Path,
    checkpoint: Path,
    shard: tuple[int, int],
    engine: str,
    actors: int | None,
    notes_per_part: int,
    **runtime: Any,
) -> None:
    """Embed the notes of a file without a running service: the first load of millions of notes.

    Writes OUT/part-00000.parquet and so on, in the order of the notes: note_id and one unit vector (128 numbers,
    float32) a note; the model's fingerprint stands in every file's metadata. Whatever ends a run, kill -9
    included, the same command goes on where it was: parts that are finished are not done again. A folder
    that was begun with another checkpoint or another input is refused. With --shard, several processes write
    into one folder; `notellm load --vectors` refuses it until all parts are there. With --engine ray, this process
    reads the notes and writes the parts, and actors embed them: each machine of the cluster needs the checkpoint at the
    same place and the same version of notellm. An actor that dies is replaced, and its part is done again.

    \b
    Examples:
      notellm embed --in notes.parquet --out vectors --checkpoint ./checkpoint
      notellm embed --in ./data --out vectors --checkpoint ./checkpoint --backend vllm
      notellm embed --in ./data --out vectors --checkpoint ./checkpoint --shard 3/8
      RAY_ADDRESS=auto notellm embed --in ./data --out vectors --checkpoint /models/checkpoint --engine ray

    \b
    Read them back as one table:
      python -c 'import pyarrow.parquet as pq; print(pq.read_table("vectors").num_rows)'
    """
    if engine == "ray" and was_given("shard"):
        raise click.UsageError("--shard is of --engine local; --actors says how many share the work on Ray")
    if engine == "local" and actors is not None:
        raise click.UsageError("--actors is of --engine ray")
    with mistakes():
        from model.inference.bulk.load import begin, embed_missing
        from model.network.checkpoint import load_manifest

        load = begin(source, out, load_manifest(checkpoint).fingerprint, notes_per_part)
        parts = load.shard(*shard)
        finished = len(load.finished().intersection(parts))
        if finished < len(parts):
            open_backend = partial(_open, checkpoint.absolute(), runtime)
            if engine == "ray":
                from model.inference.bulk.ray_engine import embed_on_ray

                embed_on_ray(load, open_backend, actors=actors, gpus=runtime["tensor_parallel"])
            else:
                embed_missing(load, open_backend(), parts)
    before = f", {finished} of them finished before" if finished else ""
    vectors = sum(map(load.size, parts))
    echo(f"{vectors} vectors of model {load.fingerprint} in {len(parts)} parts{before}, in {out}")
    missing = load.parts - len(load.finished())
    if missing:
        echo(f"{missing} of the {load.parts} parts are those of other shards, and missing yet")


def _open(checkpoint: Path, runtime: Mapping[str, Any]) -> "Backend":
    """The model, which gave its golden answers. Actors of Ray call it, too."""
    from model.inference import golden
    from model.inference.abstention import AbstainingBackend
    from model.network.checkpoint import load_manifest, prompt_builder

    manifest = load_manifest(checkpoint)
    backend = open_model(checkpoint, runtime)
    if manifest.golden is not None:
        golden.check(backend, manifest)
    return AbstainingBackend(backend, prompt_builder(checkpoint, manifest).reads)
