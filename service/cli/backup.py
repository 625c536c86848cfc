"""`notellm backup` and `notellm restore`."""

from pathlib import Path

import click

from service.cli.common import FILE, FOLDER, echo, store_cells


@click.command()
@click.option("--to", "folder", type=FOLDER, required=True, help="The folder to make.")
@click.option("--with-model", "checkpoint", type=FOLDER, help="Put this checkpoint in, too: the active model's.")
def backup(folder: Path, checkpoint: Path | None) -> None:
    """Write notes, deletes, versions, vectors, suggestions and events into a new folder.

    The service may run during a backup. Each note, with its predictions, is as of one moment of the run. Every write
    and delete acknowledged before the run is in it, later ones may be. The folder gets its name when all of it is on
    disk, and holds SHA-256 sums of every file. Indexes are not in it: they are built again. Nor are API keys: copy
    NOTELLM_KEYS_FILE.

    Redis is the one of NOTELLM_REDIS_URL; without it, the one of `notellm serve` in NOTELLM_STATE_DIR, whether it
    runs or not.

    \b
    Example:
      notellm backup --to /backups/2026-01-31 --with-model ./checkpoint
    """
    with store_cells() as cells:
        from service.backup.backup import back_up

        made = back_up(cells, folder, checkpoint)
    if made.malformed:
        echo(f"notellm: {made.malformed} damaged records are not in it", err=True)
    echo(f"{made.live} notes and {made.deleted} tombstones in {folder}; models: {', '.join(made.models) or 'none'}")


@click.command()
@click.option("--from", "folder", type=FOLDER, required=True, help="The backup.")
@click.option(
    "--deletes", type=FILE,
    help="An audit log: its deletes and erasures after the backup are repeated.",
)  # fmt: skip
def restore(folder: Path, deletes: Path | None) -> None:
    """Put a backup into an empty Redis.

    Stop the service first. Every file is checked before anything is written. A store that holds anything is refused,
    so that no note goes back to an earlier version and no delete is undone. If this ends early, the same command
    finishes it; until then the store takes no writes. After the next start, indexers build their indexes from the
    vectors, and workers predict for the notes without a prediction.

    Writes and deletes after the backup are lost: name the audit log (NOTELLM_AUDIT_FILE) with --deletes, and the
    deleted notes stay deleted, and the erased readers erased.

    Redis is the one of NOTELLM_REDIS_URL; without it, that of NOTELLM_STATE_DIR, for `notellm serve`.

    \b
    Example:
      NOTELLM_STATE_DIR=/var/lib/notellm notellm restore --from /backups/2026-01-31 --deletes audit.jsonl
    """
    with store_cells(make=True) as cells:
        from service.backup.restore import restore as put_back

        done = put_back(cells, folder, deletes)
    later = f", {done.deleted_later} of them deleted after the backup" if deletes else ""
    later += f", without {done.erased_later} readers who were erased" if done.erased_later else ""
    echo(f"{done.live} notes and {done.deleted} tombstones are back{later}; start the service")
