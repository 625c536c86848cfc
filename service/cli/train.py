"""The commands that train: a base model from text alone, and a checkpoint from related pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from service.cli.common import FILE, FOLDER, echo, holdout_options, mistakes

if TYPE_CHECKING:
    from model.network.checkpoint import Manifest


@click.command()
@click.argument("data", type=FOLDER)
@click.option(
    "--pairs", "pairs_file", type=FILE,
    help="What `notellm pairs` wrote. Without events there are none: then add --set contrastive=false.",
)  # fmt: skip
@click.option("--out", type=FOLDER, required=True, help="Folder of the new checkpoint.")
@click.option(
    "--recipe", type=click.Choice(["mini", "small", "smollm2", "paper"]), default="small", show_default=True,
    help="mini: the small model of the demo. small: MiniLM as a decoder, minutes on a CPU. smollm2: a language model "
    "of 135 million weights, hours on a CPU. paper: LLaMA 2 7B.",
)  # fmt: skip
@click.option(
    "--categories", "categories_file", type=FILE,
    help="The closed set, one category a line. Without it, every category of the notes is in it.",
)  # fmt: skip
@click.option("--base-model", help="Another base model than the recipe's: a name, a folder or a .gguf file.")
@click.option("--steps", type=click.IntRange(min=1), help="Another number of steps than the recipe's.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the pairs, instead of a number of steps.")
@click.option(
    "--validate-every", type=click.IntRange(min=1), metavar="STEPS",
    help="Keep a twentieth of the notes apart, measure their Recall@10 that often, and save the best weights.",
)  # fmt: skip
@click.option(
    "--patience", type=click.IntRange(min=1), metavar="TIMES",
    help="End when so many measurements in a row were no better than the best before them.",
)  # fmt: skip
@click.option("--seed", type=int, help="Another seed than the recipe's.")
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE",
    help="Another value of any field of the recipe, e.g. lora_rank=16, recompute=true, alpha=0.01; repeatable.",
)  # fmt: skip
@click.option(
    "--strategy", type=click.Choice(["ddp", "fsdp"]), default="ddp", show_default=True,
    help="Under torchrun: a copy of the weights on every process, or a share of them (FSDP2).",
)  # fmt: skip
@click.option(
    "--save-every", type=click.IntRange(min=1), default=50, show_default=True,
    help="Steps after which the state of the run is saved: what a crash can cost at most.",
)  # fmt: skip
@holdout_options
def train(
    data: Path,
    pairs_file: Path | None,
    out: Path,
    recipe: str,
    categories_file: Path | None,
    base_model: str | None,
    steps: int | None,
    epochs: int | None,
    validate_every: int | None,
    patience: int | None,
    seed: int | None,
    settings: tuple[str, ...],
    strategy: Literal["ddp", "fsdp"],
    save_every: int,
    holdout: float,
    split_seed: int,
) -> None:
    """Train NoteLLM on related pairs and write a checkpoint that every other command can use.

    One network learns to compress a note into one vector (contrastive loss over the pairs, eq. 2) and to
    write its category or its hashtags (eq. 3). A recipe holds every scientific setting and is saved with
    the checkpoint; the same recipe, data and number of threads give the same losses. Given again after a
    kill, the same command resumes from the last saved state; OUT/run holds that state and a log for
    TensorBoard. It may then compute otherwise (chunk_notes, recompute, gradient_checkpointing, --strategy,
    the number of processes), but not learn otherwise.

    \b
    Examples:
      notellm pairs ./data --out pairs.parquet
      notellm train ./data --pairs pairs.parquet --recipe small --out ./checkpoint
      notellm train ./data --pairs pairs.parquet --epochs 20 --validate-every 50 --patience 5 --out ./checkpoint
      NOTELLM_CHECKPOINT=./checkpoint notellm serve

    \b
    A 7B model on eight GPUs of 80 GB (model/README.md says what fits where):
      torchrun --nproc-per-node 8 --no-python notellm train ./data --pairs pairs.parquet \\
        --recipe paper --strategy fsdp --set recompute=true --set gradient_checkpointing=true --out ./checkpoint
    """
    with mistakes():
        from model.data.cooccurrence import split_notes
        from model.data.notes import is_blank, load_categories, load_notes
        from model.data.pairs import load_pairs
        from model.recipes import RECIPES, changed
        from model.training.train import train as run

        if epochs is not None and steps is not None:
            raise click.UsageError("--steps and --epochs both say how long; give one of them")
        given = {
            "base_model": base_model,
            "steps": 0 if epochs is not None else steps,
            "epochs": epochs,
            "validate_every": validate_every,
            "patience": patience,
            "seed": seed,
        }
        shorthand = [f"{name}={value}" for name, value in given.items() if value is not None]
        chosen = changed(RECIPES[recipe](), [*shorthand, *settings])
        if pairs_file is None and chosen.contrastive:
            raise click.UsageError("--pairs is needed; only a run with --set contrastive=false learns from notes alone")
        loaded = load_notes(data)
        categories = load_categories(categories_file, loaded) if categories_file else None
        notes = [note for note in loaded if not is_blank(note)]
        if len(notes) < len(loaded):
            echo(f"{len(loaded) - len(notes)} notes without text and hashtags are left out", err=True)
        if pairs_file is None:
            # Pairs hold none of the held-out notes; without pairs the split is made here.
            kept_out = split_notes((note.id for note in notes), holdout, split_seed)
            notes = [note for note in notes if note.id not in kept_out]
        related = load_pairs(pairs_file).ends() if pairs_file else []
        manifest, _ = run(chosen, notes, related, out, categories=categories, strategy=strategy, save_every=save_every)
    if manifest is not None:
        echo(_summary(manifest, out))


def _summary(manifest: "Manifest", out: Path) -> str:
    trained_on = manifest.trained_on
    last, validation = trained_on["last_losses"], trained_on.get("validation")
    best = f"best recall@10 {validation['recall@10']} at step {validation['step']}, " if validation else ""
    return (
        f"checkpoint {manifest.fingerprint} in {out}: {trained_on['steps']} steps, "
        f"contrastive loss {last['contrastive']}, generation loss {last['generation']}, "
        f"{best}{len(manifest.categories)} categories"
    )


@click.command()
@click.argument("data", type=FOLDER, nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Folder of the new base model.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True, help="Batches of 64 notes.")
@holdout_options
def adapt(data: tuple[Path, ...], out: Path, steps: int, holdout: float, split_seed: int) -> None:
    """Make a causal decoder of MiniLM, from the notes' text alone: a base model for machines without a GPU.

    MiniLM attends in both directions and writes nothing. As a decoder it has to learn to give in one state
    the vector that it had in the mean of all, and to predict the next word. Uses no clicks, hashtags or
    categories, and no held-out notes. Takes up to an hour on two cores; the more text, the better.

    \b
    Example:
      notellm adapt ./data --out ./base
      notellm train ./data --pairs pairs.parquet --base-model ./base --out ./checkpoint
    """
    with mistakes():
        from model.data.cooccurrence import split_notes
        from model.data.notes import is_blank, load_notes
        from model.recipes import adapted
        from model.training.adapt import adapt as run

        notes = []
        for folder in data:
            loaded = [note for note in load_notes(folder) if not is_blank(note)]
            kept_out = split_notes((note.id for note in loaded), holdout, split_seed)
            notes += [note for note in loaded if note.id not in kept_out]
        history = run(adapted(steps), notes, out)
    echo(f"base model in {out}: {len(history)} steps, {1 - history[-1].teacher:.2f} cosine to MiniLM's vectors")


@click.command()
@click.argument("adapter", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Folder of the checkpoint.")
@click.option("--base-model", help="Where its base model is now: a name, a folder or a .gguf file.")
def merge(adapter: Path, out: Path, base_model: str | None) -> None:
    """Make a checkpoint of an adapter: what LoRA learned, folded into its base model.

    A training with lora_rank leaves the adapter in CHECKPOINT/adapter: a few megabytes, to be kept or sent around.
    Over another base model than its own it is refused. A checkpoint that is there already stays.

    \b
    Example:
      notellm merge ./checkpoint/adapter --out ./again
    """
    with mistakes():
        from model.network.adapter import merge as run

        manifest = run(adapter, out, base_model)
    echo(f"checkpoint {manifest.fingerprint} in {out}")
