"""The command `notellm reproduce`: from raw data to the paper's tables."""

from pathlib import Path

import click

from model.recipes import RECIPES, changed
from service.cli.common import FOLDER, NUMBERS, mistakes

DATA = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command()
@click.option("--data", type=DATA, help="Folder with notes and events, as .parquet or .jsonl; see `notellm pairs`.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the report and of everything it is made from.")
@click.option(
    "--recipe", type=click.Choice(list(RECIPES)), default="small", show_default=True,
    help="NoteLLM's recipe; its rivals and ablations differ from it in one thing each.",
)  # fmt: skip
@click.option("--base-model", help="Another base model than the recipe's: a name or a folder.")
@click.option("--steps", type=click.IntRange(min=1), help="Another number of steps than the recipe's.")
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE",
    help="Another value of any field of the recipe, for every method that is trained; repeatable.",
)  # fmt: skip
@click.option(
    "--tables", type=NUMBERS, default="2,3,4,5,6", show_default=True,
    help="2 methods, 3 exposure, 4 ablations, 5 share of hashtags, 6 weight of generation.",
)  # fmt: skip
@click.option(
    "--seeds", type=NUMBERS, default="0", show_default=True,
    help="Train everything once with each; the report then shows mean and spread.",
)  # fmt: skip
@click.option(
    "--pairs-min-users", type=click.IntRange(min=1), default=2, show_default=True,
    help="Users behind a training pair at least.",
)  # fmt: skip
@click.option("--holdout", default=0.3, show_default=True, help="Share of the notes that no training sees.")
@click.option("--split-seed", default=0, show_default=True, help="Which notes those are.")
@click.option(
    "--tag-notes", type=click.IntRange(min=1), default=1000, show_default=True,
    help="Held-out notes to predict for the figures of categories and hashtags; the same for all.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the runs and their progress; train nothing.")
@click.option("--report-only", is_flag=True, help="Build the report of the finished runs; needs no data and no models.")
def reproduce(
    data: Path | None,
    out: Path,
    recipe: str,
    base_model: str | None,
    steps: int | None,
    settings: tuple[str, ...],
    tables: tuple[int, ...],
    seeds: tuple[int, ...],
    pairs_min_users: int,
    holdout: float,
    split_seed: int,
    tag_notes: int,
    dry_run: bool,
    report_only: bool,
) -> None:
    """Train and measure everything in the paper's Tables 2 to 6 on the notes and events of a folder.

    Splits the notes (held-out ones are in no training pair), finds related pairs on both sides, trains NoteLLM,
    its rivals and its ablations on the same pairs, ranks the same held-out notes with each, and writes
    report.md, report.json and plots to OUT, with 95% intervals, and popularity in every table.

    Interrupted, the same command resumes: runs that are done are kept, and the one in training continues from its
    last saved state. Rows of two tables with the same recipe are trained once. Changed data,
    another split or another recipe start runs of their own. Checkpoints below OUT/runs may be deleted.

    \b
    Examples:
      notellm reproduce --data ./data --out report --dry-run
      notellm reproduce --data ./data --out report --tables 2,4 --seeds 0,1,2
      notellm reproduce --out report --report-only
      torchrun --nproc-per-node 8 -m service.cli.main reproduce --data ./data --out report --recipe paper
    """
    if not report_only and data is None:
        raise click.UsageError("--data is needed, unless the report alone is to be built (--report-only)")
    with mistakes():
        from model.reproduction import reproduce as reproduction
        from model.reproduction.grid import Request
        from model.reproduction.report import MARKDOWN, write_report

        if data is not None and not report_only:
            given = {"base_model": base_model, "steps": steps}
            shorthand = [f"{name}={value}" for name, value in given.items() if value is not None]
            chosen = changed(RECIPES[recipe](), [*shorthand, *settings])
            request = Request(
                recipe=chosen,
                tables=tables,
                seeds=seeds,
                holdout=holdout,
                split_seed=split_seed,
                pairs_min_users=pairs_min_users,
                tag_notes=tag_notes,
            )
            if dry_run:
                click.echo(reproduction.preview(data, request, out))
                return
            reproduction.reproduce(data, request, out)
        if not reproduction.is_first_process():
            return
        report = write_report(out)
    for line in report.missing:
        click.echo(f"not done: {line}", err=True)
    click.echo(f"{len(report.rows)} rows of {len({row.table for row in report.rows})} tables in {out / MARKDOWN}")
