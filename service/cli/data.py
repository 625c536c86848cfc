"""The commands that make data to train on: samples, published sets, and pairs of any."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.common import FILE, FOLDER, TIME, Command, echo, holdout_options, mistakes, was_given

if TYPE_CHECKING:
    from model.data.engines.query import Engine, PairRules
    from model.data.pairs import Pairs

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
    echo(f"{written.notes} notes and {written.events} events in {out}")


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Folder to write notes.jsonl and events.jsonl to.")
@click.option("--sessions", default=24_000, show_default=True, help="Reading sessions to draw.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sessions.")
@click.option(
    "--predict", "checkpoint", type=FOLDER,
    help="Also write this checkpoint's predictions of them into its folder: its worker need not make them again.",
)  # fmt: skip
def samples(out: Path, sessions: int, seed: int, checkpoint: Path | None) -> None:
    """Write the sample notes and a drawn click log, in the formats that the other commands read.

    \b
    Examples:
      notellm samples --out samples && notellm pairs samples --out pairs.parquet
      notellm samples --out samples --predict ./checkpoint
    """
    from model.data.samples.generate import sample_notes, write

    notes, events = write(out, sessions, seed)
    echo(f"{notes} notes and {events} clicks in {out}")
    if checkpoint is not None:
        with mistakes():
            from model.inference.open import open_backend
            from model.network.checkpoint import PREDICTIONS
            from service.worker import precomputed

            size = precomputed.write(checkpoint, open_backend("hf", checkpoint), sample_notes())
        echo(f"{notes} predictions in {checkpoint / PREDICTIONS}, {size / 1e6:.1f} MB")


def rules_options(command: Command) -> Command:
    """The options of eq. 1, for `pair_rules`."""
    options = [
        click.option("--unordered", is_flag=True, help="Count A and B whichever came first; needs no ts."),
        click.option("--upper", default=30.0, show_default=True, help="u: drop pairs of a higher score."),
        click.option("--lower", default=0.01, show_default=True, help="l: drop pairs of a lower score."),
        click.option(
            "--top", type=click.IntRange(min=1), default=10, show_default=True, help="t: related notes a note."
        ),
        click.option("--since", type=TIME, help="Only events from this ts on count: a number, or 2026-01-31."),
        click.option("--until", type=TIME, help="Only events before this ts count."),
        click.option(
            "--max-clicks", type=click.IntRange(min=1), default=1000, show_default=True,
            help="Readers with more clicked notes count for nothing.",
        ),
        click.option(
            "--max-views", type=click.IntRange(min=0), default=1000, show_default=True,
            help="Of the notes that a reader saw and never clicked, the last so many count.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--out", type=FILE, required=True, help="The .parquet file to write.")
@rules_options
@click.option(
    "--min-users", default=1, show_default=True, help="Keep pairs with as many users; 2 helps where most have one."
)
@holdout_options
@click.option("--test-from", type=TIME, help="Split by time instead: test on notes first seen from this ts on.")
@click.option(
    "--test-share", type=float, help="The same, from the ts on from which this share of the notes is first seen."
)
@click.option("--test", type=FOLDER, help="With either: folder for the test notes and their pairs (pool and gold).")
@click.option(
    "--engine",
    type=click.Choice(["duckdb", "spark"]),
    default="duckdb",
    show_default=True,
    help="What joins: DuckDB on this machine, or Spark on a cluster; the pairs are the same.",
)
@click.option("--memory", default="1GB", show_default=True, help="Memory of DuckDB; what does not fit goes to disk.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of DuckDB; by default one a core.")
@click.option("--spill", type=FOLDER, help="Where DuckDB's memory goes; by default a temporary folder.")
@click.option("--master", help="Spark's cluster, as of spark-submit; by default what that has set, else this machine.")
@click.option("--conf", multiple=True, metavar="PROPERTY=VALUE", help="A property of Spark; may be repeated.")
@click.option("--events", "url", help="Events that Spark reads elsewhere, in Parquet files: s3a://bucket/events.")
def pairs(
    data: Path,
    out: Path,
    min_users: int,
    holdout: float,
    split_seed: int,
    test_from: float | None,
    test_share: float | None,
    test: Path | None,
    engine: str,
    memory: str,
    threads: int | None,
    spill: Path | None,
    master: str | None,
    conf: tuple[str, ...],
    url: str | None,
    **rules: Any,
) -> None:
    """Find related pairs in a click log (co-occurrence, eq. 1 of the paper), for training.

    DATA is a folder with notes and events, as .parquet or .jsonl:

    \b
      notes   note_id, title, content, hashtags, category, exposure
      events  user_id, note_id, ts, event (view, click, like or save; impression and dismiss count for nothing)

    Either may be a folder of parts (notes/*.parquet). Text is UTF-8 or has a byte order mark, and may be packed
    (.jsonl.gz). ts is a number in any one unit, or an ISO 8601 time.

    Held-out notes take part in no pair. Writes note_id, related_id, score and users.

    Split by time, as the paper does, training sees the events before a moment and the notes first seen before it. The
    folder of --test gets notes.parquet and pairs.parquet of what came after, for `notellm evaluate --pool --gold`.

    With --engine spark, executors read the events: of DATA, which every one of them must then see at the same place, or
    of --events. The notes are read here, and the pairs come back here.

    \b
    Examples:
      notellm pairs ./data --out pairs.parquet
      notellm pairs ./data --out pairs.parquet --memory 16GB --spill /fast/disk
      notellm pairs ./data --out pairs.parquet --engine spark --master spark://host:7077 --events s3a://bucket/events
      notellm pairs ./data --out pairs.parquet --test-share 0.2 --test ./test
    """
    by_time = test_from is not None or test_share is not None
    if by_time != (test is not None) or (test_from is not None and test_share is not None):
        raise click.UsageError("a split by time takes --test, and one of --test-from and --test-share")
    if by_time and (was_given("holdout") or was_given("split_seed")):
        raise click.UsageError("--holdout and --split-seed are of the split by note; leave them out with --test")
    if by_time and url is not None:
        raise click.UsageError("a split by time reads the events of DATA: leave out --events")
    _check_engine(engine)
    properties = dict(map(_property, conf))
    with mistakes(), ExitStack() as running:
        from model.data.cooccurrence import PairRules, training_pairs
        from model.data.notes import load_notes
        from model.data.pairs import write_pairs
        from model.data.parquet_events import open_events

        chosen = PairRules(ordered=not rules.pop("unordered"), **rules)
        if engine == "spark":
            from model.data.engines.spark_engine import spark_engine

            spark = running.enter_context(spark_engine(master, properties))
            joins: Engine = spark
        else:
            from model.data.engines.duckdb_engine import DuckDbEngine

            joins = DuckDbEngine(memory, threads, spill)
        if test is None:
            events = spark.open(url) if url is not None else open_events(data)
            related = training_pairs(load_notes(data), events, chosen, holdout=holdout, seed=split_seed, engine=joins)
        else:
            related = _by_time(data, chosen, joins, test_from, test_share, test)
        skipped = related.skipped_users
        related = related.supported_by(min_users)
        write_pairs(out, related)
    echo(f"{len(related)} pairs of {len(set(related.note_ids))} notes in {out}")
    if skipped:
        echo(f"{skipped} readers clicked more than {rules['max_clicks']} notes and count for nothing", err=True)


def _check_engine(engine: str) -> None:
    """Raises UsageError for an option of the other engine."""
    if engine == "duckdb":
        for name, option in (("master", "--master"), ("conf", "--conf"), ("url", "--events")):
            if was_given(name):
                raise click.UsageError(f"{option} is of --engine spark")
    else:
        for name in ("memory", "threads", "spill"):
            if was_given(name):
                raise click.UsageError(f"--{name} is of DuckDB; Spark's is --conf, as in spark.executor.memory=8g")


def _property(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError("--conf has no property and value as in spark.executor.memory=8g")
    return name, value


def _by_time(
    data: Path, rules: "PairRules", engine: "Engine", start: float | None, share: float | None, test: Path
) -> "Pairs":
    """The training pairs of a split by time; writes pool and gold."""
    from model.data.events import load_events
    from model.data.notes import is_blank, load_notes, write_notes
    from model.data.pairs import write_pairs
    from model.data.periods import split_periods, temporal_pairs

    notes, events = load_notes(data), load_events(data)
    periods = split_periods(events, start=start, share=share)
    related, gold = temporal_pairs(notes, events, periods, rules, engine)
    pool = [note for note in notes if note.id in periods.after and not is_blank(note)]
    test.mkdir(parents=True, exist_ok=True)
    write_notes(test / "notes.parquet", pool)
    write_pairs(test / "pairs.parquet", gold)
    echo(f"{len(gold)} pairs of {len(pool)} notes first seen from {periods.start} on, in {test}")
    return related
