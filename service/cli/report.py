"""The command about what readers did with the answers."""

from pathlib import Path

import click

from service.cli.common import FILE, FOLDER, TIME, echo, mistakes


@click.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with the events and answers; notes beside them help.")
@click.option("--from", "since", type=TIME, default=0.0, help="Only answers and events from this time on: 2026-01-31.")
@click.option("--plot", type=FILE, help="Draw it, too: an .svg file.")
@click.option("--memory", default="1GB", show_default=True, help="Memory of the joins; what does not fit goes to disk.")
def report(data: Path, since: float, plot: Path | None, memory: str) -> None:
    """Report what readers did with what was shown: clicks, accepted hashtags, and how far lists reach.

    DATA is the folder of `notellm events export`, or one that holds it as `events`, beside notes.parquet or
    notes.jsonl, of which note_id and created_at are read.

    Items are counted by the events that name their answer (`answer_id`): shown are those with an impression or a click,
    clicked those with a click, like or save. Rates are in percent, with 95% intervals that know that the items of one
    reader belong together. Accepted are hashtags that the note carries whose write named the answer (X-Answer-ID).

    \b
    Example:
      notellm events export --to ./data/events && notellm report --data ./data --from 2026-01-31 --plot ctr.svg
    """
    with mistakes():
        from model.evaluation.online.report import draw_online, format_online, online_report

        found = online_report(data, since, memory)
        echo(format_online(found))
        if plot is not None:
            plot.write_bytes(draw_online(found))
