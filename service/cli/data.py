"""The commands that make data to train on: samples, published sets, and pairs of any."""

from pathlib import Path

import click

from service.cli.common import FILE, FOLDER, holdout_options, mistakes

FORMATS = ("amazon-reviews", "mind", "qilin")


@click.command()
@click.argument("layout", metavar="FORMAT", type=click.Choice(FORMATS))
@click.argument("source", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--out", type=FOLDER, required=True, help="Folder to write notes.parquet and events.parquet to.")
@click.option(
    "--clicks-only", is_flag=True,
    help="Leave out the views of notes that nobody opened: smaller files, and pairs of what was read alone.",
)  # fmt: skip
def convert(layout: str, source: Path, out: Path, clicks_only: bool) -> None:
    """Turn a published data set into notes and events that the other commands read.

    SOURCE is the folder of the unpacked download; model/data/readers/README.md says where to get each set, under
    which license, and which of its fields becomes which of ours. FORMAT is one of:

    \b
      mind            MIND, news of Microsoft: folders with news.tsv and behaviors.tsv
      amazon-reviews  Amazon Reviews 2023: C.jsonl and meta_C.jsonl of any categories C, packed (.gz) or not
      qilin           Qilin, notes of Xiaohongshu: notes/, recommendation_train/, recommendation_test/

    A note that was shown and not opened is a view; --clicks-only leaves those out, and keeps them in the notes'
    exposure. The files are read row by row, so they may be larger than memory.

    \b
    Examples:
      notellm convert mind ./MINDsmall --clicks-only --out ./data
      notellm convert amazon-reviews ./All_Beauty --out ./data
      notellm convert qilin ./Qilin --out ./data && notellm pairs ./data --out pairs.parquet
    """
    with mistakes():
        from model.data.readers import convert as run

        written = run(layout, source, out, clicks_only=clicks_only)
    click.echo(f"{written.notes} notes and {written.events} events in {out}")


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
    from model.data.samples.generate import write

    notes, events = write(out, sessions, seed)
    click.echo(f"{notes} notes and {events} clicks in {out}")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--out", type=FILE, required=True, help="The .parquet file to write.")
@click.option("--unordered", is_flag=True, help="Count A and B whichever came first; needs no ts.")
@click.option(
    "--min-users", default=1, show_default=True, help="Keep pairs with as many users; 2 helps where most have one."
)
@holdout_options
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
        from model.data.cooccurrence import training_pairs
        from model.data.events import load_events
        from model.data.notes import load_notes
        from model.data.pairs import write_pairs

        related = training_pairs(
            load_notes(data), load_events(data), holdout=holdout, seed=split_seed, ordered=not unordered
        )
        related = related.supported_by(min_users)
        write_pairs(out, related)
    click.echo(f"{len(related)} pairs of {len(set(related.note_ids))} notes in {out}")
