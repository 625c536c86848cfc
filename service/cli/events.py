"""The commands about events."""

from pathlib import Path

import click

from service.cli.common import FOLDER, echo, mistakes, store


@click.group()
def events() -> None:
    """Export events, to train on them.

    \b
    Example:
      notellm events export --to ./data/events
    """


@events.command()
@click.option("--to", "folder", type=FOLDER, required=True, help="The folder; a later run goes on in it.")
@click.option("--remove", is_flag=True, help="Remove exported events from Redis. Then export to one folder only.")
def export(folder: Path, remove: bool) -> None:
    """Write the events since the last run into Parquet files by day, for `notellm pairs`.

    Writes TO/dt=YYYY-MM-DD/part-*.parquet with user_id, note_id, event, ts, source_note_id and event_id; the day is
    that on which an event arrived (UTC), ts is in microseconds since 1970. No event comes twice and none is lost, even
    if a run is killed. The service may run during an export.

    `notellm pairs`, `evaluate` and `reproduce` take a folder with notes.jsonl or notes.parquet and this one as
    `events`.

    Redis is the one of NOTELLM_REDIS_URL; without it, the one of `notellm serve` in NOTELLM_STATE_DIR.

    \b
    Example:
      notellm events export --to ./data/events && notellm pairs ./data --out pairs.parquet
    """
    with mistakes(), store() as redis:
        from service.backup import events

        exported = events.export(redis, folder, remove=remove)
    if exported.malformed:
        echo(f"notellm: {exported.malformed} damaged events were passed over", err=True)
    echo(f"{exported.events} new events in {folder}")
