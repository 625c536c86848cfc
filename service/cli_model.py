"""The commands that make and judge models: samples, pairs, adapt, train, evaluate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

Command = Callable[..., None]

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
SPLIT = "Keep it the same in `pairs` and `evaluate`, or a model is judged on notes that it was trained on."


def _holdout(command: Command) -> Command:
    """The two options of the split by note."""
    share = click.option(
        "--holdout", default=0.3, show_default=True, help=f"Share of the notes kept for evaluation. {SPLIT}"
    )
    draw = click.option("--split-seed", default=0, show_default=True, help="Which notes those are.")
    return share(draw(command))


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Folder to write notes.jsonl and events.jsonl to.")
@click.option("--sessions", default=24_000, show_default=True, help="Reading sessions to draw.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sessions.")
def samples(out: Path, sessions: int, seed: int) -> None:
    """Write the sample notes and a drawn click log, in the formats that the other commands read.

    \b
    Example:
      notellm samples --out samples && notellm pairs samples --out pairs.parquet
    """
    from model.samples.generate import write

    notes, events = write(out, sessions, seed)
    click.echo(f"{notes} notes and {events} clicks in {out}")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--out", type=FILE, required=True, help="The .parquet file to write.")
@click.option("--unordered", is_flag=True, help="Count A and B whichever came first; needs no ts.")
@click.option(
    "--min-users", default=1, show_default=True, help="Keep pairs with as many users; 2 helps where most have one."
)
@_holdout
def pairs(data: Path, out: Path, unordered: bool, min_users: int, holdout: float, split_seed: int) -> None:
    """Find related pairs in a click log (co-occurrence, eq. 1 of the paper), for training.

    DATA is a folder with notes and events, as .parquet or .jsonl:

    \b
      notes   note_id, title, content, hashtags, category, exposure
      events  user_id, note_id, ts, event (view, click, like or save)

    Held-out notes take part in no pair. Writes note_id, related_id, score and users.

    \b
    Example:
      notellm pairs ./data --out pairs.parquet
    """
    with mistakes():
        from model.cooccurrence import training_pairs
        from model.events import read_events
        from model.notes import read_notes
        from model.pairs import write_pairs

        found = training_pairs(
            read_notes(data), read_events(data), holdout=holdout, seed=split_seed, ordered=not unordered
        )
        found = found.supported_by(min_users)
        write_pairs(out, found)
    click.echo(f"{len(found)} pairs of {len(set(found.note_ids))} notes in {out}")


@click.command()
@click.argument("data", type=FOLDER)
@click.option(
    "--pairs", "pairs_file", type=FILE,
    help="What `notellm pairs` wrote. Without events there are none: then add --set contrastive=false.",
)  # fmt: skip
@click.option("--out", type=FOLDER, required=True, help="Folder of the new checkpoint.")
@click.option(
    "--recipe", type=click.Choice(["mini", "small", "paper"]), default="small", show_default=True,
    help="mini: the model of the demo. small: MiniLM as a decoder, minutes on a CPU. paper: LLaMA 2 7B.",
)  # fmt: skip
@click.option(
    "--categories", "categories_file", type=FILE,
    help="The closed set, one category a line. Without it, every category of the notes is in it.",
)  # fmt: skip
@click.option("--base-model", help="Another base model than the recipe's: a name or a folder.")
@click.option("--steps", type=click.IntRange(min=1), help="Another number of steps than the recipe's.")
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
@_holdout
def train(
    data: Path,
    pairs_file: Path | None,
    out: Path,
    recipe: str,
    categories_file: Path | None,
    base_model: str | None,
    steps: int | None,
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
    the checkpoint; the same recipe, data and number of threads give the same losses. A run that was
    killed goes on where its last saved state was when the same command is given again; OUT/run holds
    that state and a log for TensorBoard.

    \b
    Examples:
      notellm pairs ./data --out pairs.parquet
      notellm train ./data --pairs pairs.parquet --recipe small --out ./checkpoint
      NOTELLM_CHECKPOINT=./checkpoint notellm serve

    \b
    A 7B model on eight GPUs, with batches of any size in the memory of sixteen notes:
      torchrun --nproc-per-node 8 --no-python notellm train ./data --pairs pairs.parquet \\
        --recipe paper --strategy fsdp --set recompute=true --set gradient_checkpointing=true --out ./checkpoint
    """
    with mistakes():
        from model.cooccurrence import split_notes
        from model.notes import is_blank, read_categories, read_notes
        from model.pairs import read_pairs
        from model.recipes import RECIPES, changed
        from model.train import train as run

        given = {"base_model": base_model, "steps": steps, "seed": seed}
        shorthand = [f"{name}={value}" for name, value in given.items() if value is not None]
        chosen = changed(RECIPES[recipe](), [*shorthand, *settings])
        if pairs_file is None and chosen.contrastive:
            raise click.UsageError("--pairs is needed; only a run with --set contrastive=false learns from notes alone")
        found = read_notes(data)
        categories = read_categories(categories_file, found) if categories_file else None
        notes = [note for note in found if not is_blank(note)]
        if len(notes) < len(found):
            click.echo(f"{len(found) - len(notes)} notes without text and hashtags are left out", err=True)
        if pairs_file is None:
            # Pairs hold none of the held-out notes; without pairs that has to be seen to here.
            kept_out = split_notes((note.id for note in notes), holdout, split_seed)
            notes = [note for note in notes if note.id not in kept_out]
        related = read_pairs(pairs_file).ends() if pairs_file else []
        manifest, _ = run(chosen, notes, related, out, categories=categories, strategy=strategy, save_every=save_every)
    last = manifest.trained_on["last_losses"]
    click.echo(
        f"checkpoint {manifest.fingerprint} in {out}: {manifest.trained_on['steps']} steps, "
        f"contrastive loss {last['contrastive']}, generation loss {last['generation']}, "
        f"{len(manifest.categories)} categories"
    )


@click.command()
@click.argument("data", type=FOLDER, nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Folder of the new base model.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True, help="Batches of 64 notes.")
@_holdout
def adapt(data: tuple[Path, ...], out: Path, steps: int, holdout: float, split_seed: int) -> None:
    """Make a causal decoder of MiniLM, from the notes' text alone: a base model for machines without a GPU.

    MiniLM reads a text in both directions and writes nothing. As a decoder it has to learn to say in one
    state what it said in the mean of all, and to predict the next word. Uses no clicks, hashtags or
    categories, and no held-out notes. Takes up to an hour on two cores; the more text, the better.

    \b
    Example:
      notellm adapt ./data --out ./base
      notellm train ./data --pairs pairs.parquet --base-model ./base --out ./checkpoint
    """
    with mistakes():
        from model.adapt import adapt as run
        from model.cooccurrence import split_notes
        from model.notes import is_blank, read_notes
        from model.recipes import adapted

        notes = []
        for folder in data:
            found = [note for note in read_notes(folder) if not is_blank(note)]
            kept_out = split_notes((note.id for note in found), holdout, split_seed)
            notes += [note for note in found if note.id not in kept_out]
        history = run(adapted(steps), notes, out)
    click.echo(f"base model in {out}: {len(history)} steps, {1 - history[-1].teacher:.2f} cosine to MiniLM's vectors")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--checkpoint", type=FOLDER, help="A checkpoint; without it the baselines alone are compared.")
@click.option("--min-users", default=2, show_default=True, help="Users behind a gold pair at least.")
@click.option("--no-generation", is_flag=True, help="Leave out categories and hashtags, which take longest.")
@click.option("--limit", type=click.IntRange(min=1), help="Read this many notes at most for categories and hashtags.")
@_holdout
def evaluate(
    data: Path,
    checkpoint: Path | None,
    min_users: int,
    no_generation: bool,
    limit: int | None,
    holdout: float,
    split_seed: int,
) -> None:
    """Compare a checkpoint with popularity, TF-IDF, BM25 and MiniLM on the held-out notes of DATA.

    Prints Markdown, for pairs of --min-users users and for all pairs: Recall@10, 100 and 1,000 with 95%
    intervals, recall by exposure, and the checkpoint's lead over each baseline by a paired bootstrap. Then
    what taking popularity out of its scores costs; accuracy and Ill. of its categories, held to the closed
    set and not; BLEU, ROUGE and F1 of its hashtags beside those of neighbors and the most frequent ones.

    Notes without events can be judged by their hashtags alone.

    \b
    Example:
      notellm evaluate ./data --checkpoint ./checkpoint
    """
    with mistakes():
        from model.answers import evaluate_tags, format_hashtags
        from model.backends.hf import HfBackend
        from model.calibration import scores_of
        from model.checkpoint import read_manifest
        from model.evaluate import evaluate as run
        from model.evaluate import format_report
        from model.events import has_events
        from model.reading import embed_all, read_all
        from model.reliability import format_calibration

        backend = HfBackend.open(checkpoint) if checkpoint else None
        manifest = read_manifest(checkpoint) if checkpoint else None
        scores = scores_of(manifest) if manifest else None
        calibration = format_calibration(checkpoint, manifest) if checkpoint and manifest else ""
        if backend is not None and not has_events(data):
            tags = evaluate_tags(
                data,
                lambda notes: read_all(backend, notes),
                lambda notes: embed_all(backend, notes),
                holdout=holdout,
                seed=split_seed,
                limit=limit,
                scores=scores,
            )
            found = format_hashtags(tags) if tags else f"{data}: no held-out note has both text and hashtags"
            click.echo("\n\n".join(filter(None, [found, calibration])))
            return
        report = run(
            data,
            None if backend is None else lambda notes: embed_all(backend, notes),
            None if backend is None or no_generation else lambda notes: read_all(backend, notes),
            None
            if backend is None or no_generation
            else lambda notes: backend.write_categories(backend.tokenize(notes)),
            categories=manifest.categories if manifest else None,
            holdout=holdout,
            seed=split_seed,
            min_users=min_users,
            limit=limit,
            scores=scores,
        )
    click.echo("\n\n".join(filter(None, [format_report(report), calibration])))


COMMANDS = (samples, pairs, adapt, train, evaluate)


@contextmanager
def mistakes() -> Iterator[None]:
    """What a person can mend becomes one line: wrong files, a wrong checkpoint, a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed; this command needs: pip install 'notellm[train]'"
        ) from error
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
