"""The commands about the index."""

import click

from service.cli.common import echo, mistakes

GIB = 1024**3


@click.group()
def index() -> None:
    """Plan the index before building it.

    \b
    Example:
      notellm index plan --notes 100000000 --memory-gib 32
    """


@index.command()
@click.option("--notes", type=click.IntRange(min=1), required=True, help="Notes in the community.")
@click.option("--dim", type=click.IntRange(min=2), default=128, show_default=True, help="Numbers in a vector.")
@click.option(
    "--memory-gib", type=click.FloatRange(min=0, min_open=True), default=16.0, show_default=True,
    help="Memory of one indexer.",
)  # fmt: skip
def plan(notes: int, dim: int, memory_gib: float) -> None:
    """Print how many shards a community needs, and the memory, disk and time of each.

    Memory holds codes and ids; the vectors themselves are mapped from disk. Times are for one core, scaled from
    a million vectors of 128 numbers (make bench-index).

    \b
    Example:
      notellm index plan --notes 100000000
    """
    with mistakes():
        from indexer.plan import plan as make

        try:
            made = make(notes, dim, int(memory_gib * GIB))
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    for name, value in {
        "shards": f"{made.shards} of {made.rows:,} notes each",
        "recipe": f"{made.recipe.name}, nprobe {made.recipe.nprobe}" if made.recipe.nlist else made.recipe.name,
        "memory of a shard": f"{_gib(made.resident_bytes)}, {_gib(made.building_bytes)} while it is built anew",
        "vectors on disk": f"{_gib(made.mapped_bytes)} a shard, three times with the snapshots of older bases",
        "training": f"{made.training_s:,.0f} s, then {made.filling_s:,.0f} s to fill it",
        "memory of all": f"{_gib(made.shards * made.building_bytes)} for one replica of each shard",
    }.items():
        echo(f"{name + ':':20}{value}")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:,.2f} GiB"
