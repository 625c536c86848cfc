"""The command that brings published data sets into the layout of the others."""

from pathlib import Path

import click

from service.cli_model import FOLDER, mistakes

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

    SOURCE is the folder of the unpacked download; model/readers/README.md says where to get each set, under
    which licence, and which of its fields becomes which of ours. FORMAT is one of:

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
        from model.readers import convert as run

        written = run(layout, source, out, clicks_only=clicks_only)
    click.echo(f"{written.notes} notes and {written.events} events in {out}")
