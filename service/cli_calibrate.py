"""The command `notellm calibrate`."""

from pathlib import Path

import click

from service.cli_model import FOLDER, SPLIT, mistakes


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="Folder with the notes that it was trained on, and others.")
@click.option("--out", type=FOLDER, help="Folder of the report. Default: the checkpoint's.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Ask about this many notes at most."
)
@click.option(
    "--holdout", default=0.3, show_default=True, help=f"Share of the notes that training did not see. {SPLIT}"
)
@click.option("--split-seed", default=0, show_default=True, help="Which notes those are.")
def calibrate(checkpoint: Path, data: Path, out: Path | None, limit: int, holdout: float, split_seed: int) -> None:
    """Make the scores of suggestions mean what they say: of those with 0.8, four in five are right.

    Asks the checkpoint about held-out notes of DATA as if they were drafts in a community of the others, fits how
    likely a hashtag and a category are to be right by what model and neighbors say, and writes that into the
    checkpoint's manifest. Its fingerprint stays, so no note is read again; restart the gateways. Writes
    reliability.md and reliability.svg: how scores and truth agree, on notes that were not fitted on.

    Needs 50 held-out notes with hashtags at least, and embeds all that are not held out.

    \b
    Example:
      notellm calibrate ./checkpoint --data ./data
    """
    with mistakes():
        from model.backends.hf import HfBackend
        from model.notes import read_notes
        from model.reading import embed_all, read_all
        from model.reliability import MARKDOWN
        from model.reliability import calibrate as run

        notes = read_notes(data)
        backend = HfBackend.open(checkpoint)
        folder = out or checkpoint
        manifest, panels = run(
            checkpoint,
            folder,
            notes,
            lambda asked: read_all(backend, asked),
            lambda community: embed_all(backend, community),
            holdout=holdout,
            seed=split_seed,
            limit=limit,
        )
    errors = "; ".join(f"{one.name} {one.error_before:.3f}, now {one.error_after:.3f}" for one in panels)
    click.echo(f"calibrated model {manifest.fingerprint}: expected calibration error of {errors}; {folder / MARKDOWN}")
