"""The commands that make and judge models: samples, pairs, train, evaluate, embed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
        from model.data import read_events, read_notes, write_pairs

        found = training_pairs(
            read_notes(data), read_events(data), holdout=holdout, seed=split_seed, ordered=not unordered
        )
        found = found.supported_by(min_users)
        write_pairs(out, found)
    click.echo(f"{len(found)} pairs of {len(set(found.note_ids))} notes in {out}")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--pairs", "pairs_file", type=FILE, required=True, help="What `notellm pairs` wrote.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the new checkpoint.")
@click.option(
    "--recipe", type=click.Choice(["mini", "small", "paper"]), default="small", show_default=True,
    help="mini: the model of the demo. small: MiniLM as a decoder, minutes on a CPU. paper: LLaMA 2 7B.",
)  # fmt: skip
@click.option("--base-model", help="Another base model than the recipe's: a name or a folder.")
@click.option("--steps", type=click.IntRange(min=1), help="Another number of steps than the recipe's.")
@click.option("--seed", type=int, help="Another seed than the recipe's.")
def train(
    data: Path,
    pairs_file: Path,
    out: Path,
    recipe: str,
    base_model: str | None,
    steps: int | None,
    seed: int | None,
) -> None:
    """Train NoteLLM on related pairs and write a checkpoint that every other command can use.

    One network learns to compress a note into one vector (contrastive loss over the pairs, eq. 2) and to
    write its category or its hashtags (eq. 3). A recipe holds every scientific setting and is saved with
    the checkpoint; the same recipe, data and number of threads give the same losses.

    \b
    Example:
      notellm pairs ./data --out pairs.parquet
      notellm train ./data --pairs pairs.parquet --recipe small --out ./checkpoint
      NOTELLM_CHECKPOINT=./checkpoint notellm serve
    """
    with mistakes():
        from dataclasses import replace

        from model.data import is_blank, read_notes, read_pairs
        from model.recipes import RECIPES
        from model.train import train as run

        changes = {"base_model": base_model, "steps": steps, "seed": seed}
        chosen = replace(RECIPES[recipe](), **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]
        notes = [note for note in read_notes(data) if not is_blank(note)]
        manifest, _ = run(chosen, notes, read_pairs(pairs_file).ends(), out)
    last = manifest.trained_on["last_losses"]
    click.echo(
        f"checkpoint {manifest.fingerprint} in {out}: {manifest.trained_on['steps']} steps, "
        f"contrastive loss {last['contrastive']}, generation loss {last['generation']}, "
        f"{len(manifest.categories)} categories"
    )


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--checkpoint", type=FOLDER, help="A checkpoint; without it the baselines alone are compared.")
@click.option("--min-users", default=2, show_default=True, help="Users behind a gold pair at least.")
@click.option("--no-generation", is_flag=True, help="Leave out categories and hashtags, which take longest.")
@_holdout
def evaluate(
    data: Path, checkpoint: Path | None, min_users: int, no_generation: bool, holdout: float, split_seed: int
) -> None:
    """Compare a checkpoint with popularity, TF-IDF and MiniLM on the held-out notes of DATA.

    Prints Markdown: Recall@10, 100 and 1,000 with 95% intervals, the checkpoint's lead over each baseline by
    a paired bootstrap, recall by exposure, accuracy and Ill. of categories, BLEU, ROUGE and F1 of hashtags.

    \b
    Example:
      notellm evaluate ./data --checkpoint ./checkpoint
    """
    with mistakes():
        from model.backends import open_backend
        from model.checkpoint import read_manifest
        from model.evaluate import evaluate as run
        from model.evaluate import format_report
        from model.reading import embed_all, read_all

        backend = open_backend("hf", checkpoint) if checkpoint else None
        report = run(
            data,
            None if backend is None else lambda notes: embed_all(backend, notes),
            None if backend is None or no_generation else lambda notes: read_all(backend, notes),
            categories=read_manifest(checkpoint).categories if checkpoint else None,
            holdout=holdout,
            seed=split_seed,
            min_users=min_users,
        )
    click.echo(format_report(report))


@click.command()
@click.argument("notes", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=FOLDER, required=True, help="The model to embed with.")
@click.option("--out", type=FILE, required=True, help="The .parquet file to write: note_id and vector.")
def embed(notes: Path, checkpoint: Path, out: Path) -> None:
    """Embed the notes of a file without a running service.

    Writes one unit vector (128 numbers, float32) a note; the model's fingerprint stands in the file's metadata.

    \b
    Example:
      notellm embed ./data --checkpoint ./checkpoint --out vectors.parquet
    """
    with mistakes():
        from model.backends import open_backend
        from model.data import read_notes, write_vectors
        from model.reading import embed_all

        backend = open_backend("hf", checkpoint)
        found = read_notes(notes)
        write_vectors(out, [note.id for note in found], embed_all(backend, found), backend.fingerprint)
    click.echo(f"{len(found)} vectors of model {backend.fingerprint} in {out}")


COMMANDS = (samples, pairs, train, evaluate, embed)


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
