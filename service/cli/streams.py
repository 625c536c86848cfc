"""The commands about streams of Redis: events with their report, and dead letters."""

import heapq
from itertools import islice
from pathlib import Path

import click

from service.cli.common import FILE, FOLDER, TIME, echo, mistakes, on_one_line, store, store_cells


@click.group()
def events() -> None:
    """Export events and answers, to train on them and for reports.

    \b
    Example:
      notellm events export --to ./data/events
    """


@events.command()
@click.option("--to", "folder", type=FOLDER, required=True, help="The folder; a later run goes on in it.")
@click.option("--remove", is_flag=True, help="Remove what is exported from Redis. Then export to one folder only.")
@click.option("--keep-days", type=click.IntRange(min=1), help="Remove older days from the folder.")
@click.option("--reports", is_flag=True, help="Make the reports of running experiments anew, for the console.")
def export(folder: Path, remove: bool, keep_days: int | None, reports: bool) -> None:
    """Write the events and answers since the last run into Parquet files by day, for `notellm pairs` and `report`.

    Writes TO/dt=YYYY-MM-DD/part-*.parquet with user_id, note_id, event, ts, source_note_id, event_id, value, answer_id
    and position; the day is that on which an event arrived (UTC), ts is in microseconds since 1970. No event comes
    twice and none is lost, even if a run is killed. TO/_answers has the same of what was answered: answer_id, ts,
    scenario, model, ids, parameters, reader, experiment, arm, note_id and category.

    user_id and reader are names that a key in Redis makes of the readers' ids: the same in all runs, and no way back.
    Readers who were erased since the last run are removed from the files. The service may run during an export.

    With --reports, gateways show what running experiments say by these files (`GET /experiments/NAME`), as `notellm
    experiment report` does.

    `notellm pairs`, `evaluate` and `reproduce` take a folder with notes.jsonl or notes.parquet and this one as
    `events`.

    Redis is the one of NOTELLM_REDIS_URL; without it, the one of `notellm serve` in NOTELLM_STATE_DIR.

    \b
    Example:
      notellm events export --to ./data/events && notellm pairs ./data --out pairs.parquet
    """
    with mistakes(), store() as redis:
        from service.backup import events

        exported = events.export(redis, folder, remove=remove, keep_days=keep_days)
    if exported.malformed:
        echo(f"notellm: {exported.malformed} damaged events were passed over", err=True)
    answers = f" and {exported.answers} answers" if exported.answers else ""
    erased = f", {exported.erased} of erased readers removed" if exported.erased else ""
    echo(f"{exported.events} new events{answers} in {folder}{erased}")
    if reports:
        from service.cli.rollout.checks import run
        from service.cli.rollout.experiments import tell_reports

        with mistakes():
            run(lambda service: tell_reports(service, folder))


@click.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with the events and answers; notes beside them help.")
@click.option("--from", "since", type=TIME, default=0.0, help="Only answers and events from this time on: 2026-01-31.")
@click.option(
    "--checkpoint", type=FOLDER,
    help="The model to which the newest notes are compared; without it, that is the older notes.",
)  # fmt: skip
@click.option("--plot", type=FILE, help="Draw it, too: an .svg file.")
@click.option("--memory", default="1GB", show_default=True, help="Memory of the joins; what does not fit goes to disk.")
def report(data: Path, since: float, checkpoint: Path | None, plot: Path | None, memory: str) -> None:
    """Report what readers did with what was shown: clicks, accepted hashtags, and how far lists reach.

    DATA is the folder of `notellm events export`, or one that holds it as `events`, beside notes.parquet or
    notes.jsonl: then rates are by age of the note, too (created_at), and hashtags and categories of the newest notes
    are named that no older note has; with --checkpoint, those that this model was not trained on, as `notellm learn
    status` does.

    Items are counted by the events that name their answer (`answer_id`): shown are those with an impression or a click,
    clicked those with a click, like or save. Rates are in percent, with 95% intervals that know that the items of one
    reader belong together. Accepted are hashtags that the note carries whose write named the answer (X-Answer-ID).

    \b
    Example:
      notellm events export --to ./data/events && notellm report --data ./data --from 2026-01-31 --plot ctr.svg
    """
    with mistakes():
        from model.evaluation.online.report import draw_online, format_online, online_report

        found = online_report(data, since, memory, checkpoint)
        echo(format_online(found))
        if plot is not None:
            plot.write_bytes(draw_online(found))


@click.group()
def deadletters() -> None:
    """List the notes that no worker could read or no index take, and have them read again.

    A note whose author writes it anew needs nothing: every new version is read. `retry` is for after a mended model
    or machine.

    Redis is the one of NOTELLM_REDIS_URL; without it, the one of `notellm serve` in NOTELLM_STATE_DIR.

    \b
    Example:
      notellm deadletters list
      notellm deadletters retry
    """


@deadletters.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), help="Print so many at most.")
def list_letters(limit: int | None) -> None:
    """Print the dead letters, oldest first: id, version and model of the note, and the reason.

    \b
    Example:
      notellm deadletters list --limit 20
    """
    with store_cells() as cells:
        from service.backup.dead_letters import dead_letters
        from service.store.records import parse_entry_id

        letters = heapq.merge(*map(dead_letters, cells), key=lambda letter: parse_entry_id(letter.entry))
        for letter in islice(letters, limit):
            echo(f"{letter.note_id}\t{letter.version}\t{letter.fingerprint}\t{on_one_line(letter.reason)}")


@deadletters.command()
@click.argument("note_ids", nargs=-1)
def retry(note_ids: tuple[str, ...]) -> None:
    """Have the notes NOTE_IDS read again, or all that failed; their dead letters are removed.

    A note that was written again or deleted since, and one of a retired model, only loses its dead letter. A note that
    fails again gets a new one.

    \b
    Example:
      notellm deadletters retry travel-01
    """
    with store_cells() as cells:
        from service.backup.dead_letters import DeadLetter, dead_letters
        from service.backup.dead_letters import retry as queue_again

        letters: list[DeadLetter] = []
        queued = 0
        for redis in cells:
            own = [letter for letter in dead_letters(redis) if not note_ids or letter.note_id in note_ids]
            queued += queue_again(redis, own)
            letters += own
    if unknown := sorted(set(note_ids) - {letter.note_id for letter in letters}):
        raise click.ClickException(f"no dead letter of {', '.join(map(repr, unknown))}; {queued} notes are read again")
    echo(f"{queued} notes are read again, {len(letters) - queued} dead letters were out of date")
