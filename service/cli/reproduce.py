"""The command `notellm reproduce`: from raw data to the paper's tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from model.recipes import RECIPES, changed
from service.cli.common import FOLDER, NUMBERS, TIME, echo, mistakes, runtime_options, was_given
from service.cli.data import rules_options

if TYPE_CHECKING:
    from model.reproduction.grid import Request

DATA = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command()
@click.option("--data", type=DATA, help="Folder with notes and events, as .parquet or .jsonl; see `notellm pairs`.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the report and of everything it is made from.")
@click.option(
    "--recipe", type=click.Choice(list(RECIPES)), default="small", show_default=True,
    help="NoteLLM's recipe; its rivals and ablations differ from it in one thing each.",
)  # fmt: skip
@click.option("--base-model", help="Another base model than the recipe's: a name, a folder or a .gguf file.")
@click.option("--steps", type=click.IntRange(min=1), help="Another number of steps than the recipe's.")
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE",
    help="Another value of any field of the recipe, for every method that is trained; repeatable.",
)  # fmt: skip
@click.option(
    "--tables", default="2,3,4,5,6", show_default=True,
    help="2 methods, 3 exposure, 4 ablations, 5 share of hashtags, 6 weight of generation; cold-start: by clicks of "
    "the related note; prompts: the template `paper` against `shared`.",
)  # fmt: skip
@click.option(
    "--also-test", type=DATA,
    help="Folder of another community's notes and events, never trained on: adds the table cross-platform.",
)  # fmt: skip
@click.option(
    "--seeds", type=NUMBERS, default="0", show_default=True,
    help="Train everything once with each; the report then shows mean and spread.",
)  # fmt: skip
@click.option(
    "--sentence-bert", default="minilm", show_default=True,
    help="The encoder of every SentenceBERT row: minilm (English), or another one's name or folder.",
)  # fmt: skip
@rules_options
@click.option(
    "--pairs-min-users", type=click.IntRange(min=1), default=2, show_default=True,
    help="Users behind a training pair at least.",
)  # fmt: skip
@click.option("--holdout", default=0.3, show_default=True, help="Share of the notes that no training sees.")
@click.option("--split-seed", default=0, show_default=True, help="Which notes those are.")
@click.option("--test-from", type=TIME, help="Split by time instead: test on notes first seen from this ts on.")
@click.option("--test-share", type=float, help="The same, from the ts on from which this share is first seen.")
@click.option(
    "--pool", type=click.Choice(["test", "all"]), default="test", show_default=True,
    help="Rank the test notes, or all notes, as a service does. Gold pairs are of test notes either way.",
)  # fmt: skip
@click.option(
    "--recall-at", type=NUMBERS, default="10,100,1000", show_default=True,
    help="The k of Recall@k; the paper has 100,1000,10000,100000. As large as the pool, they are left out.",
)  # fmt: skip
@click.option(
    "--tag-notes", type=click.IntRange(min=1), default=1000, show_default=True,
    help="Held-out notes to predict for the figures of categories and hashtags; the same for all.",
)  # fmt: skip
@click.option("--only", type=click.Choice(["train", "measure"]), help="Train alone, or measure what is trained.")
@click.option(
    "--strategy", type=click.Choice(["ddp", "fsdp"]), default="ddp", show_default=True,
    help="Under torchrun: a copy of the weights on every process, or a share of them (FSDP2).",
)  # fmt: skip
@runtime_options
@click.option("--dry-run", is_flag=True, help="Print the runs and their progress; train nothing.")
@click.option("--report-only", is_flag=True, help="Build the report of the finished runs; needs no data and no models.")
def reproduce(
    data: Path | None,
    out: Path,
    recall_at: tuple[int, ...],
    only: Literal["train", "measure"] | None,
    strategy: Literal["ddp", "fsdp"],
    backend: str,
    dtype: str,
    tensor_parallel: int,
    serving_dir: Path,
    dry_run: bool,
    report_only: bool,
    **options: Any,
) -> None:
    """Train and measure everything in the paper's Tables 2 to 6 on the notes and events of a folder.

    Splits the notes (held-out ones are in no training pair), finds related pairs on both sides, trains NoteLLM,
    its rivals and its ablations on the same pairs, ranks the same held-out notes with each, and writes
    report.md, report.json and plots to OUT, with 95% intervals, and popularity in every table.

    Interrupted, the same command resumes: runs that are done are kept, and the one in training continues from its
    last saved state. Rows of two tables with the same recipe are trained once. Changed data,
    another split or another recipe start runs of their own. Checkpoints below OUT/runs may be deleted.

    Training and measuring can be two calls, on two machines: --only train, then --only measure. With the default
    --dtype, matrix products are in bfloat16 while measuring, as in training.

    \b
    Examples:
      notellm reproduce --data ./data --out report --dry-run
      notellm reproduce --data ./data --out report --tables 2,4 --seeds 0,1,2
      notellm reproduce --data ./data --out report --test-share 0.2 --tables 2,cold-start,prompts --also-test ./other
      notellm reproduce --out report --report-only --recall-at 100,1000,10000
      torchrun --nproc-per-node 8 -m service.cli.main reproduce --data ./data --out report --recipe paper \\
        --strategy fsdp --only train
    """
    if not report_only and data is None:
        raise click.UsageError("--data is needed, unless the report alone is to be built (--report-only)")
    with mistakes():
        from model.inference.open import Runtime
        from model.reproduction import reproduce as reproduction
        from model.reproduction.report import MARKDOWN, write_report
        from model.reproduction.run import Runners

        if data is not None and not report_only:
            request = _request(**options)
            if dry_run:
                echo(reproduction.preview(data, request, out))
                return
            runtime = Runtime(dtype, serving_dir=serving_dir, tensor_parallel=tensor_parallel)
            runners = Runners(backend, runtime, strategy)
            reproduction.reproduce(data, request, out, runners, only)
        if only == "train" or not reproduction.is_first_process():
            return
        report = write_report(out, recall_at)
    for line in report.missing:
        echo(f"not done: {line}", err=True)
    echo(f"{len(report.rows)} rows of {len({row.table for row in report.rows})} tables in {out / MARKDOWN}")


def _request(
    *,
    recipe: str,
    base_model: str | None,
    steps: int | None,
    settings: tuple[str, ...],
    tables: str,
    also_test: Path | None,
    seeds: tuple[int, ...],
    sentence_bert: str,
    pairs_min_users: int,
    holdout: float,
    split_seed: int,
    test_from: float | None,
    test_share: float | None,
    pool: Literal["test", "all"],
    tag_notes: int,
    unordered: bool,
    **rules: Any,
) -> "Request":
    if test_from is not None and test_share is not None:
        raise click.UsageError("a split by time takes one of --test-from and --test-share")
    if (test_from is not None or test_share is not None) and was_given("holdout"):
        raise click.UsageError("--holdout is of the split by note; leave it out with --test-from and --test-share")
    from model.data.cooccurrence import PairRules
    from model.reproduction.grid import CROSS_PLATFORM, Request
    from model.reproduction.split import SplitRules

    given = {"base_model": base_model, "steps": steps}
    shorthand = [f"{name}={value}" for name, value in given.items() if value is not None]
    return Request(
        recipe=changed(RECIPES[recipe](), [*shorthand, *settings]),
        tables=tuple(dict.fromkeys([*tables.replace(" ", "").split(","), *[CROSS_PLATFORM][: also_test is not None]])),
        seeds=seeds,
        split=SplitRules(
            holdout, split_seed, test_from, test_share, PairRules(ordered=not unordered, **rules), pairs_min_users, pool
        ),
        sentence_bert=sentence_bert,
        also_test=also_test,
        tag_notes=tag_notes,
    )
